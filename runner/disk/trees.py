"""Trees that jobs have left behind: measured and removed without following a link. Standard library only.

A tree may be of any depth and any width, have no permissions, and change meanwhile. Few descriptors are open at a time,
nothing recurses, and no other file system that is mounted inside is entered.
"""

from __future__ import annotations

import errno
import os
import stat

# Directories whose descriptors are kept open on the way down; from there on the way back is by ``..``, checked.
OPEN_LEVELS = 64
BLOCK = 512
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A directory that something keeps filling is given up after so many looks.
ROUNDS = 5


class _Level:
    """A directory on the way down: what is left to enter, and who it is, where its descriptor is closed meanwhile."""

    def __init__(self, fd: int, about: os.stat_result, pending: list[str]) -> None:
        self.fd = fd
        self.identity = (about.st_dev, about.st_ino)
        self.pending = pending


def measure(parent_fd: int, name: str) -> int:
    """Bytes on disk of a tree; files with several names count once. What cannot be read counts nothing."""
    try:
        about = os.lstat(name, dir_fd=parent_fd)
    except OSError:
        return 0
    if not stat.S_ISDIR(about.st_mode):
        return about.st_blocks * BLOCK
    try:
        return about.st_blocks * BLOCK + _measure_below(os.open(name, DIRECTORY, dir_fd=parent_fd), about.st_dev)
    except OSError:
        return about.st_blocks * BLOCK


def _measure_below(fd: int, device: int) -> int:
    seen: set[int] = set()
    total, pending = _measure_entries(fd, device, seen)
    levels = [_Level(fd, os.fstat(fd), pending)]
    try:
        while levels:
            level = levels[-1]
            if not level.pending:
                _step_back(levels)
                continue
            try:
                inner = os.open(level.pending.pop(), DIRECTORY, dir_fd=level.fd)
            except OSError:
                continue
            about = os.fstat(inner)
            if about.st_dev != device:
                os.close(inner)
                continue
            size, pending = _measure_entries(inner, device, seen)
            total += size
            levels.append(_Level(inner, about, pending))
            if len(levels) > OPEN_LEVELS:
                far = levels[-1 - OPEN_LEVELS]
                os.close(far.fd)
                far.fd = -1
    finally:
        for level in levels:
            if level.fd >= 0:
                os.close(level.fd)
    return total


def _step_back(levels: list[_Level]) -> None:
    """Leave a directory for the one above, which must still be where it was."""
    left = levels.pop()
    try:
        if levels and levels[-1].fd < 0:
            above = os.open("..", DIRECTORY, dir_fd=left.fd)
            about = os.fstat(above)
            if (about.st_dev, about.st_ino) != levels[-1].identity:
                os.close(above)
                levels.clear()  # somebody moves the tree: what was seen has to do
            else:
                levels[-1].fd = above
    except OSError:
        levels.clear()
    finally:
        os.close(left.fd)


def _measure_entries(fd: int, device: int, seen: set[int]) -> tuple[int, list[str]]:
    total, inner = 0, []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                about = _about(entry)
                if about is None or about.st_dev != device:
                    continue
                if stat.S_ISDIR(about.st_mode):
                    inner.append(entry.name)
                elif about.st_nlink > 1:
                    if about.st_ino in seen:
                        continue
                    seen.add(about.st_ino)
                total += about.st_blocks * BLOCK
    except OSError:
        pass
    return total, inner


def _about(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None


def empty(fd: int) -> list[tuple[str, str]]:
    """Remove everything in a directory that is out of everybody's sight; what could not be removed, and why.

    What is too deep in a tree is moved up into ``fd`` first: so depth costs nothing.
    """
    problems: dict[str, str] = {}
    progress = True
    while progress:
        progress = False
        for name in os.listdir(fd):
            if name not in problems:
                progress = True
                try:
                    _remove(fd, name, fd, OPEN_LEVELS)
                except OSError as error:
                    problems[name] = error.strerror or str(error)
    return list(problems.items())


def _remove(parent_fd: int, name: str, top_fd: int, levels: int) -> None:
    """Remove an entry; a directory so many levels further down goes to the top instead."""
    try:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=parent_fd).st_mode):
            os.unlink(name, dir_fd=parent_fd)
            return
        for _ in range(ROUNDS):
            if _is_removed(parent_fd, name):
                return
            unlock(parent_fd, name)
            if levels == 0:
                os.rename(name, f"deeper-{os.urandom(8).hex()}", src_dir_fd=parent_fd, dst_dir_fd=top_fd)
                return
            _hollow(parent_fd, name, top_fd, levels - 1)
    except FileNotFoundError:
        return
    if not _is_removed(parent_fd, name):
        raise OSError(errno.ENOTEMPTY, "something keeps writing there")


def _is_removed(parent_fd: int, name: str) -> bool:
    try:
        os.rmdir(name, dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _hollow(parent_fd: int, name: str, top_fd: int, levels: int) -> None:
    fd = os.open(name, DIRECTORY, dir_fd=parent_fd)
    try:
        for inner in os.listdir(fd):
            _remove(fd, inner, top_fd, levels)
    finally:
        os.close(fd)


def unlock(parent_fd: int, name: str) -> None:
    """Let this user into a directory; whatever has taken its place is left alone."""
    if os.geteuid() == 0:
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    except OSError:
        pass  # not ours: what follows says so
    finally:
        os.close(fd)
