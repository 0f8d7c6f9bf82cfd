"""Loads the configuration again when its content changes (``config-cli-daemon.md`` 8)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from executors.registry import KINDS
from runner.config.load import Loaded, load
from runner.config.model import Config, DiskConfig, RunnerConfig

log = structlog.get_logger()

POLL_S = 3.0
MISSING_EVERY_S = 60.0
Stamp = tuple[int, int, int]


class ConfigFile:
    """The file, as it was when it was last read. ``last_error`` is why the newest content is not in force, ``loaded_at`` the
    Unix time since when the content in force is."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self._environ = environ
        self._stamp: Stamp | None = None
        self._hash = ""
        self.last_error = ""
        self.loaded_at = time.time()

    def read(self) -> Loaded:
        """Read the file now. Raises :class:`OSError`."""
        self._stamp = self._look()
        return self.peek()

    def peek(self) -> Loaded:
        """The same for somebody who takes nothing of it: a change is still one."""
        return load(self.path, environ=self._environ, executors=KINDS)

    def empty(self) -> Config:
        """What holds while there is no file."""
        return Config(path=self.path)

    def has_changed(self) -> bool:
        """Whether the file is another one than the one that was read."""
        return self._look() != self._stamp

    def _look(self) -> Stamp | None:
        try:
            about = os.stat(self.path)  # noqa: PTH116 - three numbers at once
        except OSError:
            return None
        return (about.st_ino, about.st_size, about.st_mtime_ns)

    def take(self, loaded: Loaded, *, always: bool) -> Config | None:
        """Log what was found; the new configuration, or None when the old one stays."""
        for found in loaded.diagnostics:
            if found.severity != "error":
                log.warning(str(found))
            elif loaded.config is None:
                log.error("Failed to load config", error=str(found))
            else:
                log.error(str(found))
        if loaded.config is None:
            self.last_error = str(loaded.errors[0]) if loaded.errors else "unusable"
            return None
        self.last_error = ""
        if loaded.config.content_hash == self._hash and not always:
            return None
        self._hash = loaded.config.content_hash
        self.loaded_at = time.time()
        return loaded.config

    def is_in_force(self, config: Config) -> bool:
        """Whether this content was taken."""
        return config.content_hash == self._hash

    def accept(self, config: Config) -> None:
        """This content is in force without having been taken: nobody needs to hear of it."""
        self._stamp = self._look()
        self._hash = config.content_hash


class Watcher:
    """Looks at the file every three seconds, and at once when asked. ``failed`` hears of files that cannot be used."""

    def __init__(self, file: ConfigFile, apply: Callable[[Config], Awaitable[None]], failed: Callable[[], None]) -> None:
        self._file = file
        self._apply = apply
        self._failed = failed
        self._asked = asyncio.Event()
        self._waiting: list[asyncio.Future[str]] = []
        self._missing_said = float("-inf")

    def ask(self) -> None:
        """Reload now, whether the file changed or not."""
        self._asked.set()

    async def reload(self) -> str:
        """Reload now; why the file cannot be used, empty once it is in force."""
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self.ask()
        return await done

    async def run(self) -> None:
        """Watch for ever."""
        while True:
            try:
                await asyncio.wait_for(self._asked.wait(), POLL_S)
            except TimeoutError:
                pass
            forced = self._asked.is_set()
            self._asked.clear()
            waiting, self._waiting = self._waiting, []
            if forced or self._file.has_changed():
                try:
                    await self._reload(forced=forced)
                finally:
                    for done in waiting:
                        if not done.done():
                            done.set_result(self._file.last_error)
            elif not self._file.path.exists():
                self._say_missing()

    async def _reload(self, *, forced: bool) -> None:
        try:
            loaded = self._file.read()
        except OSError as error:
            self._file.last_error = f"{self._file.path}: {error.strerror}"
            self._failed()
            self._say_missing()
            return
        config = self._file.take(loaded, always=forced)
        if config is not None:
            await self._apply(config)
        elif loaded.config is None:
            self._failed()

    def _say_missing(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._missing_said >= MISSING_EVERY_S:
            self._missing_said = now
            log.warning("Failed to load config", error=f"{self._file.path}: no such file or directory")


def log_changes(before: Config, after: Config) -> None:
    """Say what a reload changed, never any values."""

    def identity(runner: RunnerConfig) -> tuple[str, str]:
        return runner.url, runner.token

    old = {identity(runner): runner for runner in before.runners}
    new = {identity(runner): runner for runner in after.runners}
    for key, runner in new.items():
        if key not in old:
            log.info("runner added", runner=runner.short_token, runner_name=runner.name)
            continue
        fields = [name for name in runner.__struct_fields__ if getattr(runner, name) != getattr(old[key], name)]
        changed = sorted(set(fields) - {"line"})
        if changed:
            log.info("runner changed", runner=runner.short_token, runner_name=runner.name, keys=", ".join(changed))
    for key, runner in old.items():
        if key not in new:
            log.info("runner removed", runner=runner.short_token, runner_name=runner.name)
    for name in ("listen_address", "pyrunner"):
        if _fixed(before, name) != _fixed(after, name):
            log.warning(f"{name} changed: restart needed")


def _fixed(config: Config, name: str) -> object:
    """What counts from the start on only."""
    own = msgspec.structs.replace(config.pyrunner, disk=DiskConfig())
    return own if name == "pyrunner" else getattr(config, name)
