"""The process that looks through directories and empties them for the disk budget. Standard library only.

One request as JSON on standard input, one answer on standard output. It runs at the lowest priority; its death at any
point leaves things either whole in their place or out of sight, where the next one finds them.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import Any

from runner.disk.trees import BLOCK, DIRECTORY, empty, measure, unlock

REMOVED = ".pyrunner-removed-"
ARCHIVE = "cache.zip"
# In the order in which they go: the second is nothing without the first. A draft beside them belongs to who writes it.
CACHE_FILES = (ARCHIVE, "metadata.json")
TEMPORARY = ".tmp"
# Groups nest up to 20 deep; keys of caches may add some.
DEPTH = 48

# Name, size, time of the last use, file system.
Row = tuple[str, int, int, int]


def main() -> None:
    """Answer the request of standard input."""
    os.nice(19)
    request = json.load(sys.stdin)
    json.dump(REQUESTS[request.pop("do")](**request), sys.stdout)


def list_items(shape: str, roots: list[str], known: dict[str, list[int]]) -> list[Row]:
    """Items below the roots. ``known`` maps names to (time of last use, size) that were measured before."""
    found: dict[str, Row] = {}
    for root in roots:
        try:
            fd = os.open(root, DIRECTORY)
        except OSError:
            continue
        try:
            for row in SHAPES[shape](fd, root, known):
                found.setdefault(row[0], row)
        finally:
            os.close(fd)
    return list(found.values())


def entries(fd: int, path: str, known: dict[str, list[int]]) -> Iterator[Row]:
    """Every directory right below."""
    for name in _folders(fd):
        if not name.startswith("."):
            yield from _rows(fd, f"{path}/{name}", (name,), known)


def workspaces(fd: int, path: str, known: dict[str, list[int]], depth: int = 0) -> Iterator[Row]:
    """Projects: directories with one of the runner's (``<project>.tmp``) beside them. Each job changes that one."""
    names = set(_folders(fd))
    projects = {name.removesuffix(TEMPORARY) for name in names if name.endswith(TEMPORARY) and name != TEMPORARY}
    for name in sorted(projects):
        yield from _rows(fd, f"{path}/{name}", (name, name + TEMPORARY), known)
    own = {name + TEMPORARY for name in projects} | projects
    yield from _below(workspaces, fd, path, known, depth, names - own)


def caches(fd: int, path: str, known: dict[str, list[int]], depth: int = 0) -> Iterator[Row]:
    """Directories with an archive in them. Whoever reads one sets its times."""
    size, used, device = 0, 0, 0
    folders = []
    for entry in os.scandir(fd):
        try:
            about = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        if stat.S_ISDIR(about.st_mode):
            folders.append(entry.name)
        elif stat.S_ISREG(about.st_mode):
            size += about.st_blocks * BLOCK
            if entry.name == ARCHIVE:
                used, device = about.st_ctime_ns, about.st_dev
    if used:
        yield path, size, used, device
    yield from _below(caches, fd, path, known, depth, set(folders))


def _below(shape: Any, fd: int, path: str, known: dict[str, list[int]], depth: int, names: set[str]) -> Iterator[Row]:
    if depth >= DEPTH:
        return
    for name in sorted(names):
        if name.startswith(REMOVED):
            continue
        try:
            inner = os.open(name, DIRECTORY, dir_fd=fd)
        except OSError:
            continue
        try:
            yield from shape(inner, f"{path}/{name}", known, depth + 1)
        finally:
            os.close(inner)


SHAPES = {"entries": entries, "workspaces": workspaces, "caches": caches}


def _rows(fd: int, path: str, names: tuple[str, ...], known: dict[str, list[int]]) -> Iterator[Row]:
    """An item that is made of directories here; the times of the last one are its own. None where it is gone."""
    try:
        about = os.lstat(names[-1], dir_fd=fd)
    except FileNotFoundError:
        return
    before = known.get(path)
    is_known = before is not None and before[0] == about.st_ctime_ns
    size = before[1] if is_known and before is not None else sum(measure(fd, name) for name in names)
    yield path, size, about.st_ctime_ns, about.st_dev


def _folders(fd: int) -> list[str]:
    with os.scandir(fd) as found:
        return [entry.name for entry in found if entry.is_dir(follow_symlinks=False)]


def take(shape: str, names: dict[str, list[str]]) -> list[list[str]]:
    """Move items out of sight, into a directory of the root that they lie below. What could not be moved, and why.

    ``names`` maps roots to items.
    """
    failed = []
    for root, items in names.items():
        trash_fd = -1
        try:
            root_fd = os.open(root, DIRECTORY)
            try:
                trash_fd = _new_trash(root_fd)
                for item in items:
                    try:
                        _move(shape, root_fd, os.path.relpath(item, root).split("/"), trash_fd)
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        failed.append([item, error.strerror or str(error)])
            finally:
                os.close(root_fd)
        except OSError as error:
            failed += [[item, error.strerror or str(error)] for item in items]
        finally:
            if trash_fd >= 0:
                os.close(trash_fd)
    return failed


def _new_trash(root_fd: int) -> int:
    name = REMOVED + os.urandom(8).hex()
    os.mkdir(name, 0o700, dir_fd=root_fd)
    fd = os.open(name, DIRECTORY, dir_fd=root_fd)
    if os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise PermissionError(1, "somebody else puts directories in the place of new ones")
    return fd


def _move(shape: str, root_fd: int, parts: list[str], trash_fd: int) -> None:
    fd = _opened(os.dup(root_fd), parts[: None if shape == "caches" else -1])
    try:
        for name in _parts_of(shape, parts[-1]):
            try:
                if shape != "caches":
                    unlock(fd, name)
                os.rename(name, os.urandom(8).hex(), src_dir_fd=fd, dst_dir_fd=trash_fd)
            except FileNotFoundError:
                continue
    finally:
        os.close(fd)


def _parts_of(shape: str, name: str) -> list[str]:
    """What belongs to an item, the part first without which the rest is nothing."""
    if shape == "caches":
        return list(CACHE_FILES)
    return [name, name + TEMPORARY] if shape == "workspaces" else [name]


def sweep(roots: list[str]) -> list[list[str]]:
    """Empty what was moved out of sight. What could not be removed, and why."""
    failed = []
    for root in roots:
        try:
            root_fd = os.open(root, DIRECTORY)
        except OSError:
            continue
        try:
            for name in _folders(root_fd):
                if name.startswith(REMOVED):
                    failed += [[f"{root}/{name}", why] for why in _sweep_one(root_fd, name)]
        finally:
            os.close(root_fd)
    return failed


def measure_named(root: str, known: dict[str, int | None]) -> dict[str, int]:
    """Bytes on disk of directories that are there, by their paths below the root; measured where they are not known."""
    found = {}
    for name, size in known.items():
        parts = name.split("/")
        try:
            fd = _opened(os.open(root, DIRECTORY), parts[:-1])
        except OSError:
            continue
        try:
            if stat.S_ISDIR(os.lstat(parts[-1], dir_fd=fd).st_mode):
                found[name] = measure(fd, parts[-1]) if size is None else size
        except OSError:
            continue
        finally:
            os.close(fd)
    return found


def _opened(fd: int, parts: list[str]) -> int:
    """The directory that lies so far below another one, which is closed."""
    try:
        for part in parts:
            inner = os.open(part, DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
    except OSError:
        os.close(fd)
        raise
    return fd


REQUESTS: dict[str, Callable[..., Any]] = {"list": list_items, "take": take, "sweep": sweep, "measure": measure_named}


def _sweep_one(root_fd: int, name: str) -> set[str]:
    try:
        fd = os.open(name, DIRECTORY, dir_fd=root_fd)
        try:
            problems = {why for _, why in empty(fd)}
        finally:
            os.close(fd)
        if not problems:
            os.rmdir(name, dir_fd=root_fd)
    except FileNotFoundError:
        return set()
    except OSError as error:
        return {error.strerror or str(error)}
    return problems
