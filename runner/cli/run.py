"""``pyrunner run``: the daemon."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import click

from runner.config.duration import parse_duration
from runner.config.location import find_config


@click.command("run")
@click.option("-c", "--config", help="Configuration file")
@click.option("--listen-address", envvar="LISTEN_ADDRESS", help="Address of metrics and health, [host]:port")
@click.option("-n", "--service", help="Name of the service, for compatibility")
@click.option("-d", "--working-directory", help="Directory in which the daemon works")
@click.option("-u", "--user", help="Account that shell jobs run as")
@click.option("--syslog", is_flag=True, envvar="LOG_SYSLOG", help="For compatibility: the journal has the log")
@click.option(
    "--graceful-shutdown-timeout",
    envvar="PYRUNNER_GRACEFUL_SHUTDOWN_TIMEOUT",
    help="How long SIGTERM lets jobs run on, for example 30m",
)
@click.pass_context
def command(
    ctx: click.Context,
    *,
    config: str | None,
    listen_address: str | None,
    service: str | None,
    working_directory: str | None,
    user: str | None,
    syslog: bool,
    graceful_shutdown_timeout: str | None,
) -> int:
    """Run the daemon: ask for jobs and run them until a signal says stop."""
    from executors.accounts import account
    from executors.errors import InvalidSpec
    from executors.open_files import raise_limit
    from runner.cli.context import check_logging, fail
    from runner.daemon.app import run
    from runner.daemon.options import RunOptions

    check_logging(ctx)
    if user:
        try:
            account(user)
        except InvalidSpec as error:
            fail(str(error))
    raise_limit()
    location = find_config(config, os.environ, is_root=os.geteuid() == 0)
    return run(
        RunOptions(
            config=location.path,
            listen_address=listen_address,
            working_directory=Path(working_directory) if working_directory else None,
            user=user,
            log_level=ctx.obj["log_level"],
            log_format=ctx.obj["log_format"],
            graceful_shutdown_timeout_s=_seconds(graceful_shutdown_timeout),
            argv=tuple(sys.argv),
        )
    )


def _seconds(text: str | None) -> float | None:
    """Plain seconds, a duration, or ``infinity``."""
    if not text:
        return None
    if text == "infinity":
        return math.inf
    if text.isdigit():
        return float(text)
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--graceful-shutdown-timeout") from error
