"""Making room in stores: what was not used for the longest time goes first, and nothing that a running job may need."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog

from executors.file_operations import Roots, open_parent, remove_entry
from runner.gocache.generation import MODULES, PUBLISHED, Generation
from runner.gocache.measure import BLOCK, Meter
from runner.gocache.publish import DOWNLOADED, version_directories

log = structlog.get_logger()

HOUR_NS = 3600 * 10**9
# The Go tool refreshes the time of what it uses once an hour.
SPARED_NS = 24 * HOUR_NS
MARGIN_NS = 2 * HOUR_NS
# Files of a version among the downloads; its lock stays.
FILES = (".zip", ".ziphash", ".info", ".mod")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What goes as a whole: a file of the build cache (``path`` below the generation), or a version of a module (``path``
    of its module, as directories spell it)."""

    generation: Generation
    path: str
    version: str = ""
    used_at_ns: int
    size_bytes: int

    def remove(self) -> None:
        """Take it away. Raises :class:`OSError`."""
        if not self.version:
            _remove(self.generation, self.path)
            return
        # Aside first: a version is there whole or not at all.
        unpacked = f"{MODULES}/{self.path}@{self.version}"
        _remove(self.generation, unpacked, aside=True)
        for suffix in FILES:
            _remove(self.generation, f"{DOWNLOADED}/{self.path}/@v/{self.version}{suffix}")
            _remove(self.generation, f"{PUBLISHED}/{self.path}/@v/{self.version}{suffix}")


def entries(generation: Generation, meter: Meter) -> Iterator[Entry]:
    """Everything in a generation that can go by itself."""
    for path, about in generation.build_entries():
        size = about.st_blocks * BLOCK
        yield Entry(generation=generation, path=path, used_at_ns=about.st_mtime_ns, size_bytes=size)
    for path, fd in version_directories(generation):
        names = set(os.listdir(fd))
        for version in sorted(name.removesuffix(".zip") for name in names if name.endswith(".zip")):
            found = [os.lstat(version + suffix, dir_fd=fd) for suffix in FILES if version + suffix in names]
            module = path.removesuffix("/@v")
            unpacked = generation.path / MODULES / f"{module}@{version}"
            yield Entry(
                generation=generation,
                path=module,
                version=version,
                used_at_ns=max(max(about.st_atime_ns, about.st_mtime_ns) for about in found),
                size_bytes=sum(about.st_blocks for about in found) * BLOCK + meter.tree_bytes(unpacked),
            )


def spared_since_ns(now_ns: int, oldest_job_ns: int | None) -> int:
    """In a store that jobs have, what was used after this moment stays (``docker-executor.md`` 14.4)."""
    spared = now_ns - SPARED_NS
    return spared if oldest_job_ns is None else min(spared, oldest_job_ns - MARGIN_NS)


def trim(found: Iterable[Entry], excess_bytes: int, may_go: Callable[[Entry], bool]) -> int:
    """Take away the oldest until so much is free; how much that was. ``may_go`` is asked at the last moment."""
    freed = 0
    for entry in sorted(found, key=lambda entry: entry.used_at_ns):
        if freed >= excess_bytes:
            break
        if not may_go(entry):
            continue
        try:
            entry.remove()
        except OSError as error:
            log.debug("part of a Go store could not be removed", path=entry.path, error=str(error))
        else:
            freed += entry.size_bytes
    return freed


def _remove(generation: Generation, path: str, *, aside: bool = False) -> None:
    """Remove something in a generation without following links; what is gone is fine."""
    root = str(generation.path)
    try:
        fd, name = open_parent(Roots([root]), f"{root}/{path}")
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if aside:
            hidden = f".gone-{secrets.token_hex(8)}"
            try:
                os.rename(name, hidden, src_dir_fd=fd, dst_dir_fd=fd)
            except FileNotFoundError:
                return
            name = hidden
        remove_entry(fd, name)
    finally:
        os.close(fd)
