"""``pyrunner reset-token``: a new authentication token for runners."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click
import structlog

from runner.cli.context import ask, begin, fail, read_config, system_id
from runner.config.model import RunnerConfig
from runner.coordinator.registration import reset_token, reset_token_with_pat, token_values

log = structlog.get_logger()


@click.command("reset-token")
@click.option("-c", "--config", help="Configuration file")
@click.option("-n", "--name", help="Name of the runner")
@click.option("-u", "--url", help="URL of the runner, with --id")
@click.option("-i", "--id", "runner_id", type=int, help="Id of the runner, with --url")
@click.option("--all-runners", is_flag=True, help="All runners of the file")
@click.option("--pat", help="Personal access token to do it with")
@click.pass_context
def command(
    ctx: click.Context,
    *,
    config: str | None,
    name: str | None,
    url: str | None,
    runner_id: int | None,
    all_runners: bool,
    pat: str | None,
) -> int:
    """Get a new authentication token for a runner."""
    location = begin(ctx, config)
    found = read_config(location.path)
    system_id(location.path)
    if all_runners:
        for index, runner in enumerate(found.runners):
            if not _reset(location.path, index, runner, pat):
                log.error("Failed to reset runner authentication token", runner=runner.short_token)
        return 0
    for index, runner in enumerate(found.runners):
        by_name = bool(name) and runner.name == name
        by_id = bool(url) and runner_id is not None and (runner.url, runner.id) == (url, runner_id)
        if by_name or by_id:
            if not _reset(location.path, index, runner, pat):
                fail("Failed to reset runner authentication token")
            return 0
    fail("Couldn't get runner credentials")


def _reset(path: Path, index: int, runner: RunnerConfig, pat: str | None) -> bool:
    from runner.config.edit import store_token, why_token_not_writable

    reason = why_token_not_writable(path, runner.pyrunner.token_file)
    if reason:
        fail(f"the new token could not be saved: {reason}")
    if pat:
        result = ask(runner, path, lambda http: reset_token_with_pat(http, runner.id, pat))
    else:
        result = ask(runner, path, lambda http: reset_token(http, runner.token))
    if not result.ok:
        hint = "check used token" if result.refused else result.text
        log.error("Resetting runner authentication token... failed", status=hint, runner=runner.short_token)
        return False
    store_token(path, index, runner.pyrunner.token_file, token_values(result.credentials))
    log.info("Resetting runner authentication token... succeeded", runner=runner.short_token)
    click.echo(f"{datetime.now().astimezone():%Y/%m/%d %H:%M:%S} Updated", err=True)
    return True
