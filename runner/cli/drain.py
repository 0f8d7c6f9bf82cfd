"""``pyrunner drain``: no more jobs; the daemon ends once those that it has have ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from runner.cli.context import fail
from runner.cli.daemon import EXIT_NOT_RUNNING, control_path, end
from runner.config.duration import format_duration, parse_duration
from runner.ops.control_client import ControlClient, ControlError, NotRunning

PERIOD_S = 0.5
REPEAT_S = 30.0


@click.command("drain")
@click.option("-c", "--config", help="Configuration file")
@click.option("--socket", help="Control socket of the daemon")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until the daemon has ended")
@click.option("--timeout", help="Wait no longer than this, for example 30m; the daemon goes on draining")
@click.pass_context
def command(ctx: click.Context, *, config: str | None, socket: str | None, wait: bool, timeout: str | None) -> int:
    """Let the daemon end once its jobs have ended, as SIGQUIT does."""
    limit_s = _seconds(timeout)
    try:
        with ControlClient(control_path(config, socket)) as daemon:
            daemon.ask("drain")
            if wait:
                _follow(daemon, limit_s)
            else:
                click.echo("No more jobs are requested")
    except NotRunning as error:
        end(ctx, f"pyrunner is not running: {error}", EXIT_NOT_RUNNING)
    except ControlError as error:
        fail(str(error))
    return 0


def _follow(daemon: ControlClient, limit_s: float | None) -> None:
    """Tell of progress until the daemon is gone."""
    began = said_at = time.monotonic()
    said: list[str] | None = None
    while True:
        try:
            found = daemon.ask("jobs")
        except NotRunning:
            click.echo("The daemon has ended")
            return
        now = time.monotonic()
        names = [f"{job['id']} ({job['stage'] or job['state']})" for job in found["jobs"]]
        if said is None or _ids(names) != _ids(said) or now - said_at >= REPEAT_S:
            click.echo(_progress(found, names))
            said, said_at = names, now
        if limit_s is not None and now - began >= limit_s:
            fail(f"jobs still run after {format_duration(limit_s)}; the daemon goes on draining")
        time.sleep(PERIOD_S)


def _ids(names: list[str]) -> list[str]:
    return [name.partition(" ")[0] for name in names]


def _progress(found: Mapping[str, Any], names: list[str]) -> str:
    unreported = f", {len(found['unreported'])} unreported" if found["unreported"] else ""
    return f"Draining, jobs left: {len(names)}{unreported}{': ' if names else ''}{', '.join(names)}"


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return float(text) if text.isdigit() else parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from error
