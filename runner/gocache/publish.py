"""Modules of a store as a proxy's directory: what jobs of lower trust may read, and check by ``go.sum`` themselves."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from runner.gocache.generation import MODULES, PUBLISHED, Generation, opened

DOWNLOADED = f"{MODULES}/cache/download"
# Not the lists of versions: they name what was downloaded here, not what there is.
SUFFIXES = (".info", ".mod", ".zip")
DEPTH_MAX = 40


def publish(generation: Generation) -> int:
    """Link new files of downloaded modules below ``published``; how many. What cannot be linked is left out."""
    count = 0
    for path, fd in version_directories(generation):
        target = generation.path / PUBLISHED / path
        there = set(os.listdir(target)) if target.is_dir() else set()
        for name in os.listdir(fd):
            if name in there or not name.endswith(SUFFIXES):
                continue
            try:
                if stat.S_ISREG(os.lstat(name, dir_fd=fd).st_mode):
                    target.mkdir(parents=True, exist_ok=True)
                    os.link(name, target / name, src_dir_fd=fd, follow_symlinks=False)
                    count += 1
            except OSError:
                continue
    return count


def version_directories(generation: Generation) -> Iterator[tuple[str, int]]:
    """Directories ``<module>/@v`` of downloads: path below the downloads, descriptor that is valid until the next one."""
    with opened(generation.path / MODULES) as modules, opened("cache", modules) as cache, opened("download", cache) as base:
        if modules is not None and cache is not None and base is not None:
            yield from _below(base, "", 0)


def _below(fd: int, path: str, depth: int) -> Iterator[tuple[str, int]]:
    for name in sorted(os.listdir(fd)):
        with opened(name, fd) as inner:
            if inner is None:
                continue
            if name == "@v":
                yield f"{path}{name}", inner
            elif depth < DEPTH_MAX:
                yield from _below(inner, f"{path}{name}/", depth + 1)
