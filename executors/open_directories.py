"""Directories of a job that stay open while one file after the other is touched in them. Standard library only."""

from __future__ import annotations

import errno
import os
import stat

from executors.file_operations import Roots, make_dir, open_dir

# A deeper directory is walked to anew each time: descriptors are limited.
DEPTH_MAX = 200
NO_NAMES = frozenset(("", ".", ".."))
OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OpenDirectories:
    """The directories on the way to the last path, below ``root``; no link is followed.

    Whoever goes through a tree in order opens each directory once. Errors are :class:`OSError`.
    """

    def __init__(self, roots: Roots, root: str) -> None:
        self.roots = roots
        self.root = root
        self.root_fd = -1
        self.parts: list[str] = []
        self.fds: list[int] = []
        self.deep_fd = -1
        # The directory of the last path: most often the next one's, too.
        self.above: str | None = None
        self.above_fd = -1

    def parent(self, path: str, *, create: bool = False) -> tuple[int, str]:
        """A descriptor of the directory that ``path`` lies in, which is not the caller's to close, and the name there.

        Missing directories are made with ``create``. The root itself is called ``.``.
        """
        above, _, name = path.rpartition("/")
        if above == self.above and name not in NO_NAMES:
            return self.above_fd, name
        if self.root_fd < 0:
            self.open_root(create=create)
        if path == ".":
            return self.root_fd, path
        parts = above.split("/") if above else []
        if name in NO_NAMES or (parts != self.parts and not NO_NAMES.isdisjoint(parts)):
            raise OSError(errno.EPERM, "outside of the job's directories", path)
        self.above = None
        self.above_fd = self.open(parts, create=create)
        self.above = above
        return self.above_fd, name

    def make(self, path: str) -> None:
        """A directory; one that is there already will do."""
        if path == ".":
            self.open_root(create=True)
            return
        parent_fd, name = self.parent(path, create=True)
        try:
            os.mkdir(name, 0o777, dir_fd=parent_fd)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent_fd).st_mode):
                raise OSError(errno.ENOTDIR, "something else is in the place of a directory", path) from None

    def forget(self, path: str) -> None:
        """Something else may come to be in the place of ``path``."""
        parts = path.split("/")
        if self.parts[: len(parts)] == parts:
            self.cut(len(parts) - 1)

    def open_root(self, *, create: bool) -> None:
        if self.root_fd < 0:
            if create:
                make_dir(self.roots, self.root)
            fd = open_dir(self.roots, self.root)
            if fd is None:
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), self.root)
            self.root_fd = fd

    def open(self, parts: list[str], *, create: bool) -> int:
        if len(parts) > DEPTH_MAX:
            return self.open_deep(parts, create=create)
        if self.parts != parts:
            same = 0
            while same < min(len(parts), len(self.parts)) and parts[same] == self.parts[same]:
                same += 1
            self.cut(same)
            for part in parts[same:]:
                above = self.fds[-1] if self.fds else self.root_fd
                self.fds.append(step(above, part, create=create))
                self.parts.append(part)
        return self.fds[-1] if self.fds else self.root_fd

    def open_deep(self, parts: list[str], *, create: bool) -> int:
        fd = os.dup(self.open(parts[:DEPTH_MAX], create=create))
        for part in parts[DEPTH_MAX:]:
            try:
                inner = step(fd, part, create=create)
            finally:
                os.close(fd)
            fd = inner
        if self.deep_fd >= 0:
            os.close(self.deep_fd)
        self.deep_fd = fd
        return fd

    def cut(self, length: int) -> None:
        self.above = None
        while len(self.fds) > length:
            os.close(self.fds.pop())
            self.parts.pop()


def step(above: int, part: str, *, create: bool) -> int:
    """A descriptor of a directory in another one."""
    try:
        return os.open(part, OPEN, dir_fd=above)
    except FileNotFoundError:
        if not create:
            raise
    os.mkdir(part, 0o777, dir_fd=above)
    return os.open(part, OPEN, dir_fd=above)
