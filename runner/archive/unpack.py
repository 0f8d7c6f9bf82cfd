"""Unpacking an archive into a workspace (``job-lifecycle.md`` 13.5)."""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from executors.base import Entry, OpenedFiles, Workspace, WorkspaceError
from executors.file_operations import write_all
from runner.archive.formats import Format
from runner.errors import ArchiveError

TIMESTAMP = 0x5455
PIECE_BYTES = 1024 * 1024
PATH_MAX = 4096
ENCRYPTED = 1
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What a byte of deflate can stand for at most.
MAX_RATIO = 1032


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
    """Unpack the file ``source`` below ``root``; what is there and not in the archive stays. Raises :class:`ArchiveError`.

    Files first, then links (so that no file is written through one of them), modes and times last. An archive comes from
    another job: nothing in it is believed, and nothing of it is read on the event loop.
    """
    if format is not Format.ZIP:
        raise ArchiveError(f'"{format}" format: unsupported archive format')
    try:
        archive = await asyncio.to_thread(zipfile.ZipFile, source)
        with archive:
            _check(archive, source.stat().st_size, limits)
            return await _Unpacker(workspace, root, archive).run()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ArchiveError("zip: not a valid zip file") from error


def _check(archive: zipfile.ZipFile, size: int, limits: Limits) -> None:
    """Refuse what cannot be right before anything is unpacked."""
    infos = archive.infolist()
    unpacked = sum(info.file_size for info in infos)
    if len(infos) > limits.entries or unpacked > limits.size_bytes:
        raise ArchiveError(f"the archive is too big: {len(infos)} entries, {unpacked} bytes")
    if sum(info.compress_size for info in infos) > size:
        raise ArchiveError("the archive is not valid: its entries overlap")
    for info in infos:
        if info.flag_bits & ENCRYPTED:
            raise ArchiveError(f"{info.filename} cannot be extracted: it is encrypted")
        if info.compress_type not in METHODS:
            raise ArchiveError(f"{info.filename} cannot be extracted: unknown compression method {info.compress_type}")
        if info.file_size > info.compress_size * MAX_RATIO + PIECE_BYTES:
            raise ArchiveError(f"{info.filename} cannot be extracted: it is bigger than its content can be")


class _Unpacker:
    def __init__(self, workspace: Workspace, root: str, archive: zipfile.ZipFile) -> None:
        self._workspace = workspace
        self._root = root
        self._archive = archive

    async def run(self) -> Unpacked:
        infos = self._archive.infolist()
        size = sum(info.file_size for info in infos)
        files, links, done = [], [], []
        for info in infos:
            entry = _entry(self._place(info.filename), info, info.external_attr >> 16)
            if entry.kind == "dir":
                await self._workspace.make_dir(f"{self._root}/{entry.path}")
            elif entry.kind == "link":
                links.append((entry, info))
            elif entry.kind == "file":
                files.append((entry, info))
            done.append(entry)
        await self._write_files(files)
        for entry, info in links:
            await self._make_link(entry, self._target(entry, info))
        # What is in a directory before the directory: making it changed its time.
        await self._workspace.adorn(self._root, sorted(done, key=lambda entry: entry.path, reverse=True))
        return Unpacked(entries=len(infos), size_bytes=size)

    async def _write_files(self, files: Sequence[tuple[Entry, zipfile.ZipInfo]]) -> None:
        opened = await self._workspace.create_files(self._root, [entry.path for entry, _ in files])
        task = asyncio.get_running_loop().run_in_executor(None, self._copy, files, opened)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # The thread ends with its next file: nobody sends it another one.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise
        finally:
            opened.close()

    def _copy(self, files: Sequence[tuple[Entry, zipfile.ZipInfo]], opened: OpenedFiles) -> None:
        for (entry, info), file in zip(files, opened, strict=True):
            if file.fd < 0:
                raise ArchiveError(self._in_the_way(entry, file.error))
            with open(file.fd, "wb", buffering=0) as target, self._archive.open(info) as content:
                left = info.file_size
                while piece := content.read(PIECE_BYTES):
                    left -= len(piece)
                    if left < 0:
                        raise ArchiveError(f"{entry.path} is bigger than the archive says")
                    try:
                        write_all(target.fileno(), piece)
                    except OSError as error:
                        raise ArchiveError(f"{entry.path} cannot be extracted: {error.strerror}") from error

    def _target(self, entry: Entry, info: zipfile.ZipInfo) -> str:
        """What a link points to: the content of its entry."""
        if info.file_size > PATH_MAX:
            raise ArchiveError(f"{entry.path} cannot be extracted: the target of the link is too long")
        with self._archive.open(info) as content:
            return content.read(PATH_MAX).decode(errors="surrogateescape")

    async def _make_link(self, entry: Entry, target: str) -> None:
        try:
            await self._workspace.make_link(f"{self._root}/{entry.path}", target)
        except WorkspaceError as error:
            raise ArchiveError(self._in_the_way(entry, str(error))) from error

    def _in_the_way(self, entry: Entry, problem: str) -> str:
        path = f"{self._root}/{entry.path}"
        is_full = os.strerror(errno.ENOTEMPTY) in problem
        return f"remove {path}: directory not empty" if is_full else f"{path} cannot be extracted: {problem}"

    def _place(self, name: str) -> str:
        """Where an entry goes, relative to the target. Absolute names are taken below it."""
        path = posixpath.normpath(f"{self._root}/{name}")
        if path != self._root and not path.startswith(f"{self._root}/"):
            raise ArchiveError(f"{path} cannot be extracted outside of chroot ({self._root})")
        return posixpath.relpath(path, self._root)


def _entry(path: str, info: zipfile.ZipInfo, mode: int) -> Entry:
    """Mode and time of an entry: set-uid, set-gid and sticky are dropped; the time is the extra field's, else local."""
    try:
        seconds = time.mktime((*info.date_time, 0, 0, -1))
    except (ValueError, OverflowError):
        seconds = 0.0
    extra = info.extra
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        if tag == TIMESTAMP and 5 <= size <= len(extra) - 4 and extra[4] & 1:
            seconds = struct.unpack_from("<i", extra, 5)[0]
        extra = extra[4 + size :]
    kinds = {stat.S_IFLNK: "link", stat.S_IFREG: "file", 0: "file"}
    kind = "dir" if info.is_dir() else kinds.get(stat.S_IFMT(mode), "other")
    return Entry(path=path, kind=kind, mode=stat.S_IMODE(mode) & 0o777, size=info.file_size, mtime_ns=int(seconds) * 10**9)
