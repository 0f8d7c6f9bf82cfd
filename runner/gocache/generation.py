"""A generation of a store: a directory that jobs fill with the Go tool, and what is known of it.

Everything in ``build``, ``mod`` and ``path`` belongs to jobs and may be anything: no link there is followed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec

from executors.file_operations import write_private
from runner.disk.trees import empty

BUILD, MODULES, GOPATH, PROXY, PUBLISHED = "build", "mod", "path", "proxy", "published"
# Build caches of images, one directory each; which ones there are is no business of jobs.
IMAGES = "images"
FACTS = "facts.json"
RETIRED = "retired"
GONE = ".gone-"
SHARD_LENGTH = 2
# Entries of an access list: tag, permissions, id (acl(5)); everybody may do everything with what is made below.
_ACL = struct.Struct("<HHI")
_OPEN_TO_ALL = struct.pack("<I", 2) + b"".join(_ACL.pack(tag, 7, 0xFFFFFFFF) for tag in (0x01, 0x04, 0x20))


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was found when a job had ended. Times are Unix nanoseconds."""

    size_bytes: int = 0
    used_at_ns: int = 0


class Generation:
    """One directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self, *, uid: int | None, gid: int | None) -> None:
        """Create what is missing, for the account of the jobs; without one for everybody. Raises :class:`OSError`."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name in (PROXY, PUBLISHED):
            (self.path / name).mkdir(exist_ok=True)
        for name in (BUILD, MODULES, GOPATH, IMAGES):
            directory = self.path / name
            directory.mkdir(mode=0o700, exist_ok=True)
            if uid is None:
                directory.chmod(0o755 if name == IMAGES else 0o777)
                with contextlib.suppress(OSError):  # without access lists the umask of the jobs has to do
                    os.setxattr(directory, "system.posix_acl_default", _OPEN_TO_ALL)
            elif name != IMAGES and gid is not None and (uid, gid) != (os.geteuid(), os.getegid()):
                os.chown(directory, uid, gid)

    @property
    def facts(self) -> Facts:
        """What is known; nothing of one that no job has left yet."""
        try:
            return msgspec.json.decode((self.path / FACTS).read_bytes(), type=Facts)
        except (OSError, msgspec.DecodeError):
            return Facts()

    def note(self, facts: Facts) -> None:
        """Remember what was found."""
        draft = self.path / f".{FACTS}"
        write_private(str(draft), msgspec.json.encode(facts))
        draft.replace(self.path / FACTS)

    @property
    def is_retired(self) -> bool:
        """Whether no job is to begin with it."""
        return (self.path / RETIRED).exists()

    def retire(self) -> None:
        """Leave it to the jobs that have it."""
        (self.path / RETIRED).touch()

    def is_warm(self) -> bool:
        """Whether a build has left something."""
        return any(True for _ in self.build_entries())

    def build_entries(self) -> Iterator[tuple[str, os.stat_result]]:
        """Files of build caches, by their paths below the generation."""
        with opened(self.path / IMAGES) as images:
            names = sorted(os.listdir(images)) if images is not None else []
        for path in (BUILD, *(f"{IMAGES}/{name}" for name in names)):
            with opened(self.path / path) as base:
                if base is not None:
                    yield from _cache_entries(base, path)


def _cache_entries(base: int, path: str) -> Iterator[tuple[str, os.stat_result]]:
    for name in sorted(os.listdir(base)):
        if len(name) != SHARD_LENGTH:
            continue
        with opened(name, base) as shard:
            for file in os.listdir(shard) if shard is not None else ():
                if not file.endswith(("-a", "-d")):
                    continue
                try:
                    about = os.lstat(file, dir_fd=shard)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(about.st_mode):
                    yield f"{path}/{name}/{file}", about


@contextlib.contextmanager
def opened(path: str | Path, parent: int | None = None) -> Iterator[int | None]:
    """A descriptor of a directory, no link followed; None where there is no directory."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
            raise
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def take_away(path: Path) -> Path:
    """Put a generation out of everybody's sight, whole; its new place. Raises :class:`OSError`."""
    return path.rename(path.with_name(f"{GONE}{secrets.token_hex(8)}"))


def remove_tree(path: Path) -> list[tuple[str, str]]:
    """Remove a directory that is out of sight; what could not be removed, and why. Raises :class:`OSError`."""
    with opened(path) as fd:
        problems = [] if fd is None else empty(fd)
    if not problems:
        path.rmdir()
    return problems
