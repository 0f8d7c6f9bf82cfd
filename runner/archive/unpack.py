"""Unpacking an archive into a workspace (``job-lifecycle.md`` 13.5)."""

from __future__ import annotations

import posixpath
import stat
import struct
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from executors.base import Entry, Workspace
from runner.archive.formats import Format
from runner.errors import ArchiveError

TIMESTAMP = 0x5455


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may unpack to."""

    entries: int = 1_000_000
    size_bytes: int = 64 * 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """What was unpacked."""

    entries: int
    size_bytes: int


async def unpack(workspace: Workspace, root: str, source: Path, *, format: Format, limits: Limits) -> Unpacked:
    """Unpack the file ``source`` below ``root``; what is there and not in the archive stays. Raises :class:`ArchiveError`."""
    if format is not Format.ZIP:
        raise ArchiveError(f'"{format}" format: unsupported archive format')
    try:
        with zipfile.ZipFile(source) as archive:
            return await _Unpacker(workspace, root, archive, limits).run()
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArchiveError("zip: not a valid zip file") from error


class _Unpacker:
    def __init__(self, workspace: Workspace, root: str, archive: zipfile.ZipFile, limits: Limits) -> None:
        self._workspace = workspace
        self._root = root
        self._archive = archive
        self._limits = limits

    async def run(self) -> Unpacked:
        infos = self._archive.infolist()
        size = sum(info.file_size for info in infos)
        if len(infos) > self._limits.entries or size > self._limits.size_bytes:
            raise ArchiveError(f"the archive is too big: {len(infos)} entries, {size} bytes")
        full = {entry.path.rpartition("/")[0] for entry in await self._workspace.list(self._root)}
        links = []
        done: list[Entry] = []
        for info in infos:
            path = self._place(info.filename)
            mode = info.external_attr >> 16
            done.append(_entry(posixpath.relpath(path, self._root), info, mode))
            if info.is_dir():
                await self._workspace.make_dir(path)
                continue
            inside = posixpath.relpath(path, self._root)
            if inside in full:
                raise ArchiveError(f"remove {path}: directory not empty")
            full |= {posixpath.dirname(inside)}
            if stat.S_ISLNK(mode):
                links.append((path, self._archive.read(info)))
            elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                await self._workspace.write(path, self._archive.read(info))
        for path, target in links:
            inside = posixpath.relpath(path, self._root)
            if inside in full:
                raise ArchiveError(f"remove {path}: directory not empty")
            await self._workspace.make_link(path, target.decode(errors="surrogateescape"))
        # What is in a directory before the directory: making it changed its time.
        await self._workspace.adorn(self._root, sorted(done, key=lambda entry: entry.path, reverse=True))
        return Unpacked(entries=len(infos), size_bytes=size)

    def _place(self, name: str) -> str:
        path = posixpath.normpath(f"{self._root}/{name}")
        if path != self._root and not path.startswith(f"{self._root}/"):
            raise ArchiveError(f"{path} cannot be extracted outside of chroot ({self._root})")
        return path


def _entry(path: str, info: zipfile.ZipInfo, mode: int) -> Entry:
    """Mode and time of an entry: set-uid, set-gid and sticky are dropped; the time is the extra field's, else local."""
    seconds = time.mktime((*info.date_time, 0, 0, -1))
    extra = info.extra
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        if tag == TIMESTAMP and size >= 5 and extra[4] & 1:
            seconds = struct.unpack_from("<i", extra, 5)[0]
        extra = extra[4 + size :]
    kind = "dir" if info.is_dir() else "link" if stat.S_ISLNK(mode) else "file"
    return Entry(path=path, kind=kind, mode=stat.S_IMODE(mode) & 0o777, size=info.file_size, mtime_ns=int(seconds) * 10**9)
