"""``pyrunner unregister``: remove runners from GitLab and from the configuration."""

from __future__ import annotations

from pathlib import Path

import click
import structlog

from runner.cli.context import ask, begin, check_writable, fail, read_config, system_id
from runner.config.model import RunnerConfig
from runner.coordinator.registration import is_created_token, unregister

log = structlog.get_logger()
FAILED = "failed to unregister runner"


@click.command("unregister")
@click.option("-c", "--config", help="Configuration file")
@click.option("-n", "--name", help="Name of the runner")
@click.option("-t", "--token", envvar="CI_SERVER_TOKEN", help="Token of the runner")
@click.option("-u", "--url", envvar="CI_SERVER_URL", help="For compatibility: name and token choose the runner")
@click.option("--all-runners", is_flag=True, help="All runners of the file")
@click.pass_context
def command(
    ctx: click.Context, *, config: str | None, name: str | None, token: str | None, url: str | None, all_runners: bool
) -> int:
    """Remove a runner from GitLab and from the configuration."""
    location = begin(ctx, config)
    found = read_config(location.path)
    check_writable(location.path)
    own_id = system_id(location.path)
    if all_runners:
        log.warning("Unregistering all runners")
        gone: list[int] = []
        try:
            for index, runner in enumerate(found.runners):
                if _remove(runner, location.path, own_id):
                    gone.append(index)
        finally:  # whatever ends this, GitLab does not know these any more
            _save(location.path, gone)
        return 0
    if not name and not token:
        fail(f"{FAILED}: mutate config: unregister runner: at least one of --name or --token must be specified")
    chosen = [runner for runner in found.runners if _matches(runner, name, token)]
    if not chosen:
        fail(f"{FAILED}: mutate config: no runner matches the filtering parameters")
    if not _remove(chosen[0], location.path, own_id):
        fail(f"{FAILED}: mutate config: unregister runner: failed to unregister runner")
    same = [index for index, runner in enumerate(found.runners) if (runner.url, runner.token) == (chosen[0].url, chosen[0].token)]
    _save(location.path, same)
    return 0


def _matches(runner: RunnerConfig, name: str | None, token: str | None) -> bool:
    return (not name or runner.name == name) and (not token or runner.token == token)


def _remove(runner: RunnerConfig, path: Path, own_id: str) -> bool:
    result = ask(runner, path, lambda http: unregister(http, runner.token, own_id))
    what = "runner manager" if is_created_token(runner.token) else "runner"
    facts = {"runner": runner.short_token}
    if result.ok:
        log.info(f"Unregistering {what} from GitLab succeeded", **facts)
    elif result.refused:
        log.error(f"Unregistering {what} from GitLab forbidden", status=result.text, **facts)
    else:
        log.error(f"Unregistering {what} from GitLab failed", status=result.text, **facts)
    return result.ok


def _save(path: Path, indexes: list[int]) -> None:
    from runner.config.edit import remove_runners

    if indexes:
        remove_runners(path, indexes)
        log.info(f"Updated {path}")
