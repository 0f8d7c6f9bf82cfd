"""Archives of caches on this host (``job-lifecycle.md`` 12.2). The runner alone writes here; jobs never need to.

Directories below the root are opened one by one and no link is followed: the root may belong to the user of the jobs.
Everything blocks.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from executors.file_operations import Roots, open_parent, open_regular, write_all

ARCHIVE = "cache.zip"  # whatever its format
METADATA = "metadata.json"
_TAG = "user.pyrunner.etag"


@dataclass(frozen=True, slots=True)
class Stored:
    """An archive that is there, open for reading. ``tag`` is what a remote store calls this version of it."""

    fd: int
    size: int
    mtime_ns: int
    tag: str = ""

    @property
    def path(self) -> Path:
        """A path for this process, while the archive is open."""
        return Path(f"/proc/self/fd/{self.fd}")


@dataclass(slots=True)
class Draft:
    """An archive that is being written, in ``fd``, beside the one that it may replace."""

    fd: int
    directory_fd: int
    name: str
    is_kept: bool = False

    @property
    def path(self) -> Path:
        """A path for this process, while the draft is open."""
        return Path(f"/proc/self/fd/{self.fd}")

    def keep(self, metadata: dict[str, str], *, mtime_ns: int | None = None, tag: str = "") -> None:
        """Put it in its place, with what is known about it."""
        if tag:
            _set_tag(self.fd, tag)
        if mtime_ns is not None:
            os.utime(self.fd, ns=(mtime_ns, mtime_ns))
        os.rename(self.name, ARCHIVE, src_dir_fd=self.directory_fd, dst_dir_fd=self.directory_fd)
        self.is_kept = True
        self._write_metadata(metadata)

    def _write_metadata(self, metadata: dict[str, str]) -> None:
        name = f"{self.name}.json"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o640, dir_fd=self.directory_fd)
        try:
            write_all(fd, msgspec.json.encode(metadata))
        finally:
            os.close(fd)
        os.rename(name, METADATA, src_dir_fd=self.directory_fd, dst_dir_fd=self.directory_fd)


class LocalStore:
    """Caches of one project. ``root`` is the directory of all caches, ``directory`` that of the project below it."""

    def __init__(self, root: str, directory: str) -> None:
        # The root itself may be a link of the administrator's.
        self._root = os.path.realpath(root)
        self._directory = posixpath.join(self._root, posixpath.relpath(directory, root))

    def place(self, key: str) -> str:
        """The directory of a key."""
        return posixpath.join(self._directory, key)

    @contextlib.contextmanager
    def opened(self, key: str) -> Iterator[Stored | None]:
        """What is stored under a key; None where nothing is. Raises :class:`OSError` for a name that cannot be."""
        try:
            fd = open_regular(Roots([self._root]), f"{self.place(key)}/{ARCHIVE}")
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        try:
            about = os.fstat(fd)
            with contextlib.suppress(OSError):  # what was used lately is trimmed last
                os.utime(fd, ns=(time.time_ns(), about.st_mtime_ns))
            yield Stored(fd, about.st_size, about.st_mtime_ns, _tag(fd))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def draft(self, key: str, writer: str) -> Iterator[Draft]:
        """A new archive; gone again where it was not kept. ``writer`` names who writes: each has one draft at a time."""
        name = f".{ARCHIVE}.{writer}"
        directory_fd, _ = open_parent(Roots([self._root]), f"{self.place(key)}/{ARCHIVE}", create=True, mode=0o700)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory_fd)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            draft = Draft(os.open(name, flags, 0o600, dir_fd=directory_fd), directory_fd, name)
            try:
                yield draft
            finally:
                os.close(draft.fd)
                if not draft.is_kept:
                    with contextlib.suppress(OSError):
                        os.unlink(name, dir_fd=directory_fd)
        finally:
            os.close(directory_fd)

    def tag(self, stored: Stored, tag: str) -> None:
        """Remember what a remote store calls an archive."""
        _set_tag(stored.fd, tag)


def _tag(fd: int) -> str:
    try:
        return os.getxattr(fd, _TAG).decode(errors="replace")
    except OSError:
        return ""


def _set_tag(fd: int, tag: str) -> None:
    """Where the file system keeps no such notes, times have to do."""
    with contextlib.suppress(OSError):
        os.setxattr(fd, _TAG, tag.encode())
