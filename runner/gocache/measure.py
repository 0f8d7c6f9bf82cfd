"""How much a generation holds. What has not changed since it was last looked at is not looked at again."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from runner.gocache.generation import BUILD, GOPATH, IMAGES, MODULES, Generation, opened

# A directory that was changed this recently may be changing still.
SETTLED_NS = 60 * 10**9
DEPTH_MAX = 100
BLOCK = 512


class Meter:
    """Measures; remembers directories in which files are made once and for all, by their times."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int]] = {}

    def size_bytes(self, generation: Generation) -> int:
        """Room that it takes on the disk."""
        total = 0
        for name in (BUILD, IMAGES, MODULES, GOPATH):
            with opened(generation.path / name) as fd:
                if fd is not None:
                    total += self._directory(fd, str(generation.path / name), 0)
        return total

    def tree_bytes(self, path: Path) -> int:
        """The same of one directory in it."""
        with opened(path) as fd:
            return 0 if fd is None else self._directory(fd, str(path), 0)

    def forget(self, generation: Generation) -> None:
        """It is gone, or was changed in a way that times do not show."""
        prefix = f"{generation.path}/"
        self._known = {path: known for path, known in self._known.items() if not path.startswith(prefix)}

    def _directory(self, fd: int, path: str, depth: int) -> int:
        changed_ns = os.fstat(fd).st_mtime_ns
        known = self._known.get(path)
        if known is not None and known[0] == changed_ns:
            return known[1]
        size, has_inner = 0, False
        for name in os.listdir(fd):
            try:
                about = os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                continue
            size += about.st_blocks * BLOCK
            if stat.S_ISDIR(about.st_mode) and depth < DEPTH_MAX:
                has_inner = True
                with opened(name, fd) as inner:
                    size += 0 if inner is None else self._directory(inner, f"{path}/{name}", depth + 1)
        # A version of a module is unpacked once; other directories tell of their own entries only.
        if (not has_inner or "@" in os.path.basename(path)) and time.time_ns() - changed_ns > SETTLED_NS:  # noqa: PTH119
            self._known[path] = (changed_ns, size)
        return size
