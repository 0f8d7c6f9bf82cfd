"""Unpacking an archive into a workspace (``job-lifecycle.md`` 13.5)."""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from executors.base import Entry, OpenedFile, OpenedFiles, Workspace, WorkspaceError
from executors.file_operations import write_all
from runner.archive.formats import Format
from runner.archive.members import Limits, Member, Source
from runner.archive.untar import TarSource
from runner.archive.unzip import ZipSource
from runner.errors import ArchiveError

WORKERS = 2
# A smaller file is not worth a hand-over to another thread.
SHARED_BYTES = 64 * 1024
ZEROS = bytes(1024 * 1024)

__all__ = ["Limits", "Unpacked", "unpack"]


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
    opened = await asyncio.to_thread(_open, source, format, limits)
    try:
        return await _Unpacker(workspace, root, opened).run()
    finally:
        opened.close()


def _open(path: Path, format: Format, limits: Limits) -> Source:
    if format is Format.TARZSTD:
        return TarSource(path, limits)
    if format in (Format.ZIP, Format.ZIPZSTD):
        return ZipSource(path, limits)
    raise ArchiveError(f'"{format}" format: unsupported archive format')


class _Unpacker:
    def __init__(self, workspace: Workspace, root: str, source: Source) -> None:
        self._workspace = workspace
        self._root = root
        self._source = source

    async def run(self) -> Unpacked:
        files: list[tuple[Entry, Member]] = []
        links: list[tuple[Entry, Member]] = []
        done: list[Entry] = []
        for member in self._source.members:
            entry = replace(member.about, path=self._place(member.name))
            if entry.kind == "dir":
                await self._workspace.make_dir(f"{self._root}/{entry.path}")
            elif entry.kind == "link":
                links.append((entry, member))
            elif entry.kind == "file":
                files.append((entry, member))
            done.append(entry)
        await self._write_files(files)
        for entry, member in links:
            await self._make_link(entry, self._source.target(member))
        # What is in a directory before the directory: making it changed its time.
        await self._workspace.adorn(self._root, sorted(done, key=lambda entry: entry.path, reverse=True))
        return Unpacked(entries=len(done), size_bytes=sum(entry.size for entry in done))

    async def _write_files(self, files: Sequence[tuple[Entry, Member]]) -> None:
        opened = await self._workspace.create_files(self._root, [entry.path for entry, _ in files])
        task = asyncio.get_running_loop().run_in_executor(None, self._copy, files, opened)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            # The thread ends with its next file: nobody sends it another one. Its archive stays open until then.
            opened.close()
            await asyncio.wait([task])
            task.exception()
            raise
        finally:
            opened.close()

    def _copy(self, files: Sequence[tuple[Entry, Member]], opened: OpenedFiles) -> None:
        waiting: deque[Future[None]] = deque()
        with ThreadPoolExecutor(WORKERS, "unpack") as pool:
            for (entry, member), file in zip(files, opened, strict=True):
                if file.fd < 0:
                    raise ArchiveError(self._in_the_way(entry, file.error))
                if self._source.is_in_order or entry.size < SHARED_BYTES:
                    self._write(entry, member, file)
                    continue
                waiting.append(pool.submit(self._write, entry, member, file))
                if len(waiting) > WORKERS:
                    waiting.popleft().result()
            while waiting:
                waiting.popleft().result()

    def _write(self, entry: Entry, member: Member, file: OpenedFile) -> None:
        with open(file.fd, "wb", buffering=0) as target:
            fd = target.fileno()
            try:
                for piece in self._source.content(member):
                    if len(piece) == len(ZEROS) and piece == ZEROS:
                        os.lseek(fd, len(piece), os.SEEK_CUR)
                    else:
                        write_all(fd, piece)
                os.ftruncate(fd, entry.size)
            except OSError as error:
                raise ArchiveError(f"{entry.path} cannot be extracted: {error.strerror}") from error

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
