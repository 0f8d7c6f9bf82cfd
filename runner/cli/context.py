"""What every command that reads the configuration begins with."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import structlog

from executors.registry import KINDS
from runner import logs
from runner.config.load import Loaded, load
from runner.config.location import Location, find_config
from runner.config.model import Config, RunnerConfig
from runner.config.system_id import load_system_id
from runner.identity import REVISION, VERSION, architecture, os_name

log = structlog.get_logger()
T = TypeVar("T")


def check_logging(ctx: click.Context) -> None:
    """End the command where the command line, or the environment, asks for a log that there is not."""
    level, form = ctx.obj["log_level"], ctx.obj["log_format"]
    if level and level.lower() not in logs.LEVELS:
        fail(f'failed to parse log level: not a valid level: "{level}"')
    if form and form not in logs.FORMATS:
        fail(f'unknown log format "{form}", expected one of: {" ".join(logs.FORMATS)}')


def begin(ctx: click.Context, config: str | None, *, mode: bool = True) -> Location:
    """Set logging up, say what runs, find the configuration file."""
    check_logging(ctx)
    logs.configure(level=ctx.obj["log_level"] or "info", form=ctx.obj["log_format"] or "runner")
    log.info("Runtime platform", arch=architecture(), os=os_name(), pid=os.getpid(), revision=REVISION, version=VERSION)
    if mode and os.geteuid() == 0:
        log.info("Running in system-mode.")
    elif mode:
        log.warning("Running in user-mode.")
    location = find_config(config, os.environ, is_root=os.geteuid() == 0)
    if location.is_fallback:
        log.info("using the configuration of GitLab Runner", path=str(location.path))
    return location


def read_config(path: Path) -> Config:
    """The configuration; a missing file is an empty one, an unusable one ends the command."""
    try:
        loaded = load(path, environ=os.environ, executors=KINDS)
    except FileNotFoundError:
        return Config(path=path)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    return usable(loaded)


def usable(loaded: Loaded) -> Config:
    """The configuration of a loaded file; says what is wrong with it."""
    if loaded.config is None:
        fail("; ".join(str(found) for found in loaded.errors))
    return loaded.config


def system_id(path: Path) -> str:
    """The system id beside the file; made where it is missing."""
    found = load_system_id(path, override=os.environ.get("PYRUNNER_SYSTEM_ID", ""))
    if found.created:
        log.info("Created missing unique system ID", system_id=found.value)
    if found.warning:
        log.warning(found.warning)
    return found.value


def http_of(runner: RunnerConfig, path: Path) -> Any:
    """The HTTP client of an entry."""
    from runner.coordinator.http import HttpClient
    from runner.coordinator.tls import find_files

    files = find_files(
        runner.url,
        ca=runner.tls_ca_file,
        cert=runner.tls_cert_file,
        key=runner.tls_key_file,
        config_dir=path.absolute().parent,
    )
    return HttpClient(runner.url, tls=files)


def ask(runner: RunnerConfig, path: Path, call: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Make one call to the coordinator of an entry."""

    async def run() -> T:
        http = http_of(runner, path)
        try:
            return await call(http)
        finally:
            await http.close()

    return asyncio.run(run())


def info_of(runner: RunnerConfig) -> dict[str, Any]:
    """What the runner says of itself."""
    from runner.coordinator.info import runner_info

    return runner_info(KINDS.get(runner.executor), shell=runner.shell, labels=runner.labels)


def check_writable(path: Path, *, may_be_made: bool = False) -> None:
    """End the command where what it is about to do could not be saved; a missing file has nothing to lose, unless the
    command would make it."""
    from runner.config.edit import why_not_writable

    reason = why_not_writable(path) if may_be_made or path.exists() else ""
    if reason:
        fail(f"the configuration could not be saved: {reason}")


def fail(text: str) -> NoReturn:
    """End the command with a message and status 1."""
    raise click.ClickException(text)


def masked(token: str) -> str:
    """A token as it may be shown: prefix and the short form."""
    from runner.identity import short_token

    prefix = "glrt-" if token.startswith("glrt-") else ""
    return f"{prefix}{short_token(token)}" if token else ""
