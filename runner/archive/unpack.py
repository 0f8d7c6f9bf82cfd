"""Unpacking an archive into a workspace (``job-lifecycle.md`` 13.5)."""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from executors.errors import EntryRefused
from executors.workspace import EntriesWriter, Entry, Workspace
from runner.archive.formats import Format
from runner.archive.match import shown
from runner.archive.members import PATH_MAX, Limits, Member, Source
from runner.archive.untar import TarSource
from runner.archive.unzip import ZipSource
from runner.errors import ArchiveError

# Some time in 2242: what fits into 64 bits as nanoseconds.
LATEST_NS = (1 << 33) * 10**9

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
    opened = await asyncio.to_thread(open_archive, source, format, limits)
    try:
        writer = await workspace.write_entries(root)
        task = asyncio.get_running_loop().run_in_executor(None, Unpacker(root, opened, writer).run)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The thread ends with its next entry. Its archive stays open until then.
            writer.close()
            await asyncio.wait([task])
            task.exception()
            raise
        except EntryRefused as error:
            raise ArchiveError(_explain(error)) from error
        finally:
            writer.close()
            writer.dispose()
    finally:
        opened.close()


def open_archive(path: Path, format: Format, limits: Limits) -> Source:
    """The reader of a format. Raises :class:`ArchiveError`."""
    if format is Format.TARZSTD:
        return TarSource(path, limits)
    if format in (Format.ZIP, Format.ZIPZSTD):
        return ZipSource(path, limits)
    raise ArchiveError(f'"{format}" format: unsupported archive format')


class Unpacker:
    """Makes what is in ``source`` below ``root``."""

    def __init__(self, root: str, source: Source, writer: EntriesWriter) -> None:
        self._root = root
        self._source = source
        self._writer = writer

    def run(self) -> Unpacked:
        """Runs in a thread of its own."""
        links: list[Member] = []
        entries = size = 0
        for member in self._source.members:
            entry = self._entry(member)
            if entry.kind == "dir":
                self._writer.add_dir(entry)
            elif entry.kind == "link":
                links.append(member)
            elif entry.kind == "file":
                content = partial(self._source.content, member)
                self._writer.add_file(entry, content, is_shared=not self._source.is_in_order)
            entries, size = entries + 1, size + entry.size
        for member in links:
            target = self._source.target(member)
            if "\0" in target or len(target) > PATH_MAX:
                raise ArchiveError(f"{shown(member.name)} cannot be extracted: no link can have this target")
            self._writer.add_link(self._entry(member, target))
        self._writer.finish()
        return Unpacked(entries=entries, size_bytes=size)

    def _entry(self, member: Member, target: str = "") -> Entry:
        about = member.about
        return Entry(
            path=self._place(member.name),
            kind=about.kind,
            mode=about.mode,
            size=about.size,
            mtime_ns=min(max(about.mtime_ns, 0), LATEST_NS),
            target=target,
            owner=about.owner,
        )

    def _place(self, name: str) -> str:
        """Where an entry goes, relative to the target. Absolute names are taken below it."""
        path = posixpath.normpath(name.lstrip("/"))
        if path == ".." or path.startswith("../"):
            outside = posixpath.normpath(f"{self._root}/{path}")
            raise ArchiveError(f"{shown(outside)} cannot be extracted outside of chroot ({self._root})")
        if "\0" in name or len(path) > PATH_MAX:
            raise ArchiveError(f"{shown(name[:100])} cannot be extracted: no file can have this name")
        return path


def _explain(error: EntryRefused) -> str:
    if error.errno == errno.ENOTEMPTY:
        return f"remove {shown(error.path)}: directory not empty"
    return f"{shown(error.path)} cannot be extracted: {os.strerror(error.errno)}"
