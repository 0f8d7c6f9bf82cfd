"""Free space of the file systems that jobs use."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A file system that does not answer in this time is waited for no more until it does.
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """A file system: a directory on it, its ``st_dev``, and what an ordinary user may still write there, bytes."""

    path: str
    device: int
    free_bytes: int


def look(paths: Sequence[str]) -> list[Space]:
    """The file systems of directories, each once; of one that is not there yet, where it would be made. Blocks."""
    found: dict[int, Space] = {}
    for path in paths:
        place = Path(path)
        while True:
            try:
                device = place.stat().st_dev
                if device not in found:
                    about = os.statvfs(place)
                    found[device] = Space(path=path, device=device, free_bytes=about.f_bavail * about.f_frsize)
            except OSError:
                if place != place.parent:
                    place = place.parent
                    continue
            break
    return list(found.values())


class Probe:
    """Looks in a thread of its own: one that hangs holds up neither the loop nor the end of the process."""

    def __init__(self) -> None:
        self._pending: asyncio.Future[list[Space]] | None = None
        self._last: list[Space] = []
        self._gave_up = False

    async def look(self, paths: Sequence[str]) -> list[Space]:
        """What there is now; what there was, where a file system does not answer in time."""
        is_late = self._pending is not None and not self._pending.done()
        if self._pending is None or self._pending.done():
            self._pending = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._run, args=(self._pending, list(paths)), name="disk-space", daemon=True).start()
        # Whoever looks meanwhile, and finds this one done, puts another in its place.
        pending = self._pending
        done, _ = await asyncio.wait((pending,), timeout=0 if is_late and self._gave_up else PATIENCE_S)
        self._gave_up = not done
        if done:
            self._last = pending.result()
        return self._last

    def _run(self, future: asyncio.Future[list[Space]], paths: list[str]) -> None:
        found = look(paths)
        try:
            future.get_loop().call_soon_threadsafe(_settle, future, found)
        except RuntimeError:
            return  # the loop is over, and nobody waits


def _settle(future: asyncio.Future[list[Space]], found: list[Space]) -> None:
    if not future.done():
        future.set_result(found)
