"""``pyrunner reload``: let the daemon load its configuration again."""

from __future__ import annotations

import click

from runner.cli.context import fail
from runner.cli.daemon import EXIT_NOT_RUNNING, control_path, end
from runner.ops.control_client import ControlClient, ControlError, NotRunning


@click.command("reload")
@click.option("-c", "--config", help="Configuration file")
@click.option("--socket", help="Control socket of the daemon")
@click.pass_context
def command(ctx: click.Context, *, config: str | None, socket: str | None) -> int:
    """Let the daemon load its configuration again, and say what is wrong with it."""
    try:
        with ControlClient(control_path(config, socket)) as daemon:
            daemon.ask("reload")
    except NotRunning as error:
        end(ctx, f"pyrunner is not running: {error}", EXIT_NOT_RUNNING)
    except ControlError as error:
        fail(str(error))
    click.echo("Configuration loaded")
    return 0
