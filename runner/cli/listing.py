"""``pyrunner list``: the configured runners."""

from __future__ import annotations

import json
import os

import click
import structlog

from executors.registry import KINDS
from runner.cli.context import begin, masked, system_id
from runner.config.load import load
from runner.logs import printable

log = structlog.get_logger()


@click.command("list")
@click.option("-c", "--config", help="Configuration file")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option("--show-tokens", is_flag=True, help="Print whole tokens")
@click.pass_context
def command(ctx: click.Context, *, config: str | None, as_json: bool, show_tokens: bool) -> int:
    """List the configured runners."""
    location = begin(ctx, config, mode=False)
    log.info("Listing configured runners", ConfigFile=str(location.path))
    try:
        loaded = load(location.path, environ=os.environ, executors=KINDS)
    except FileNotFoundError:
        return 0
    except OSError as error:
        log.warning("configuration cannot be read", error=error.strerror)
        return 0
    if loaded.config is None:
        log.warning("configuration cannot be used", error="; ".join(map(str, loaded.errors)))
        return 0
    system_id(location.path)
    rows = [
        {
            "name": runner.name,
            "executor": runner.executor,
            "token": runner.token if show_tokens else masked(runner.token),
            "url": runner.url,
        }
        for runner in loaded.config.runners
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        line = f"{row['name']:<50} Executor={row['executor']} Token={row['token']} URL={row['url']}"
        click.echo(printable(line))
    return 0
