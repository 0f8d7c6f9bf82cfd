"""The running daemon, as commands find it: by the control socket that the configuration names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import click

from executors.registry import KINDS
from runner.cli.context import fail
from runner.config.load import load
from runner.config.location import find_config
from runner.config.model import DaemonSettings

EXIT_NOT_RUNNING = 3


def control_path(config: str | None, given: str | None) -> Path:
    """Where the daemon of a configuration answers; ``given`` is what the command line says. Ends the command where the
    configuration turns the socket off."""
    if given:
        return Path(given)
    location = find_config(config, os.environ, is_root=os.geteuid() == 0)
    settings = DaemonSettings()
    try:
        loaded = load(location.path, environ=os.environ, executors=KINDS)
        if loaded.config is not None:
            settings = loaded.config.pyrunner
        problem = str(loaded.errors[0]) if loaded.config is None else ""
    except FileNotFoundError:
        problem = ""
    except OSError as error:  # whoever may not read the file may have a daemon in the usual place
        problem = f"{location.path}: {error.strerror}"
    path = settings.control_path
    if problem:
        click.echo(f"WARNING: {problem}; asking at {path}, name another socket with --socket", err=True)
    if path is None:
        fail(f"{location.path} turns the control socket off: control_socket is empty")
    return path


def end(ctx: click.Context, text: str, status: int) -> NoReturn:
    """End the command with a message and a status."""
    click.echo(f"FATAL: {text}", err=True)
    ctx.exit(status)
