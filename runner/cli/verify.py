"""``pyrunner verify``: ask GitLab whether it knows the configured runners."""

from __future__ import annotations

import click
import structlog

from runner.cli.context import ask, begin, check_writable, fail, info_of, read_config, system_id
from runner.config.model import RunnerConfig
from runner.coordinator.registration import CallResult, is_created_token
from runner.logs import printable

log = structlog.get_logger()

EXIT_NOT_ASKED = 2


@click.command("verify")
@click.option("-c", "--config", help="Configuration file")
@click.option("-n", "--name", help="Name of the runner")
@click.option("-u", "--url", help="URL of the runner, with --token")
@click.option("-t", "--token", help="Token of the runner")
@click.option("--delete", is_flag=True, help="Remove runners that GitLab does not know any more")
@click.option("--strict", is_flag=True, help="Fail with status 2 when a runner could not be asked about")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    config: str | None,
    name: str | None,
    url: str | None,
    token: str | None,
    delete: bool,
    strict: bool,
) -> int:
    """Check that GitLab knows the configured runners."""
    location = begin(ctx, config)
    found = read_config(location.path)
    chosen = [index for index, runner in enumerate(found.runners) if _is_chosen(runner, name, url, token)]
    if not chosen and (name or token or url):
        fail("mutate config: no runner matches the filtering parameters")
    if delete:
        check_writable(location.path)
    own_id = system_id(location.path)
    gone: list[int] = []
    not_asked = 0
    for index in chosen:
        runner = found.runners[index]
        from runner.coordinator.registration import verify

        result = ask(
            runner,
            location.path,
            lambda http, one=runner: verify(http, one.token, own_id, info_of(one)),  # type: ignore[misc]
        )
        _say(runner, result)
        not_asked += not result.ok and not result.refused
        if result.refused:
            gone.append(index)
    if gone and not delete:
        fail("Failed to verify runners")
    if gone:
        from runner.config.edit import remove_runners

        remove_runners(location.path, gone)
        log.info(f"Updated {location.path}")
    return EXIT_NOT_ASKED if strict and not_asked else 0


def _is_chosen(runner: RunnerConfig, name: str | None, url: str | None, token: str | None) -> bool:
    if not name and not token and not url:
        return True
    if name and runner.name == name:
        return True
    if url and not name and not token:
        return not runner.name and url in ("*", runner.url)
    return bool(token and runner.token == token and (not url or url in ("*", runner.url)))


def _say(runner: RunnerConfig, result: CallResult) -> None:
    facts = {"runner": runner.short_token, "runner_name": runner.name}
    if result.ok:
        word = "valid" if is_created_token(runner.token) else "alive"
        name = printable(runner.name)
        click.echo(f"Verifying runner... is {word}  runner={printable(runner.short_token)} runner_name={name}")
    elif result.refused:
        word = "not valid" if is_created_token(runner.token) else "removed"
        log.error(f"Verifying runner... is {word}", status=result.text, **facts)
    elif result.client_error:
        log.error("Verifying runner... client error", status=result.text, **facts)
    else:
        log.warning("Verifying runner... failed: GitLab could not be asked", status=result.text, **facts)
