"""Scripts that write more than the disk of an engine is to hold for them.

An engine takes output in many times faster than it gives it out again, and in a form that may be many times larger. So
where the file is in sight of this process it is looked at itself; elsewhere what was read has to do.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from executors.docker.errors import EngineError, EngineUnreachable

if TYPE_CHECKING:
    from executors.docker.client import Engine

# Nothing that is shorter needs to be looked at.
FIRST_LOOK_BYTES = 1024 * 1024
LOOK_S = 0.25
# Of lines as they usually are the engine's file is twice as large as they are.
FILE_FACTOR = 3


class Flood:
    """The output of one run in a container; ``limit_bytes`` is what it may be."""

    def __init__(self, engine: Engine, container: str, limit_bytes: int) -> None:
        self._engine = engine
        self._container = container
        self._limit_bytes = limit_bytes
        self._path: str | None = None
        self._next_look_s = 0.0

    async def is_over(self, read_bytes: int) -> bool:
        """Whether it is more than that; ``read_bytes`` are known of it."""
        if read_bytes > self._limit_bytes:
            return True
        now_s = time.monotonic()
        if read_bytes < FIRST_LOOK_BYTES or now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_S
        if self._path is None:
            self._path = await self._find()
        try:
            return bool(self._path) and Path(self._path).stat().st_size > FILE_FACTOR * self._limit_bytes
        except OSError:
            self._path = ""
            return False

    async def _find(self) -> str:
        """The file of the log on the engine's host; empty where it is not told."""
        try:
            about = await self._engine.call(lambda client: client.inspect_container(self._container))
        except (EngineError, EngineUnreachable):
            return ""
        return str(about.get("LogPath") or "")
