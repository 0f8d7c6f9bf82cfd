"""Packing files of a workspace into a stream (``job-lifecycle.md`` 13.3). The same files give the same bytes.

One thread reads files and writes the archive's frame; others compress pieces of 1 MiB, each by itself, so that both cores
have work within one big file. Pieces come out in their order whoever is ready first.
"""

from __future__ import annotations

import asyncio
import struct
import urllib.parse
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass

from isal import isal_zlib

from executors.workspace import PIECE_BYTES, Entry, FileContent, FilesReader, Workspace
from runner.archive.formats import Format, Level, as_comment, as_frame
from runner.archive.piece import Parts, deflater, zstandard_framer
from runner.archive.tar import TarWriter
from runner.archive.zip import DEFLATED, ZSTANDARD, ZipWriter
from runner.errors import ArchiveError

Sink = Callable[[bytes], Awaitable[None]]
# So much is handed on at once: small files cost no hand-over each.
OUT_BYTES = 1024 * 1024
WORKERS = 2
PIECES_AHEAD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What was packed. ``skipped`` names files that were gone or could not be read, with the reason."""

    entries: int
    size_bytes: int
    skipped: tuple[tuple[str, str], ...] = ()


async def pack(
    workspace: Workspace,
    root: str,
    members: Sequence[Entry],
    sink: Sink,
    *,
    format: Format,
    level: Level,
    mark: str = "",
) -> Packed:
    """Pack ``members`` of ``root`` into ``sink``, in their order. Raises :class:`ArchiveError` for what cannot be packed.

    A file that grows is cut at the size that it had when it was opened, one that shrinks ends where it ends (in a tar file,
    which names sizes beforehand, with zeros, and it is named in ``skipped``). ``mark`` is kept at the end of zip and tar
    files, where unpackers pass over it.
    """
    paths = [member.source or member.path for member in members if member.kind == "file"]
    reader = await workspace.read_files(root, paths)
    outlet = _Outlet(sink, asyncio.get_running_loop())
    packer = _Packer(reader, outlet.send, level, mark)
    work = {
        Format.RAW: packer.raw,
        Format.GZIP: packer.gzip,
        Format.ZIP: packer.zip,
        Format.ZIPZSTD: packer.zip_zstandard,
        Format.TARZSTD: packer.tar_zstandard,
    }[format]
    task = asyncio.get_running_loop().run_in_executor(None, packer.run, lambda: work(members))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        outlet.shut()
        reader.close()
        raise
    return Packed(entries=packer.entries, size_bytes=packer.size, skipped=tuple(packer.skipped))


class _Outlet:
    """Hands pieces from the packing thread to a sink of the event loop."""

    def __init__(self, sink: Sink, loop: asyncio.AbstractEventLoop) -> None:
        self._sink = sink
        self._loop = loop
        self._is_shut = False
        self._sending: Future[None] | None = None

    def send(self, data: bytes) -> None:
        """Wait, in the thread, until the sink has taken a piece. Raises :class:`ArchiveError` once nobody wants any."""
        self._sending = asyncio.run_coroutine_threadsafe(self._put(data), self._loop)
        if self._is_shut:
            self._sending.cancel()
        try:
            self._sending.result()
        except CancelledError as error:
            raise ArchiveError("nobody wants the archive any more") from error

    def shut(self) -> None:
        """Take no more pieces; whoever waits is let go."""
        self._is_shut = True
        if self._sending is not None:
            self._sending.cancel()

    async def _put(self, data: bytes) -> None:
        await self._sink(data)


class _Packer:
    """Runs in a thread of its own; ``send`` blocks until a piece was taken."""

    def __init__(self, reader: FilesReader, send: Callable[[bytes], None], level: Level, mark: str) -> None:
        self._reader = reader
        self._files: Iterator[FileContent] = iter(())
        self._send = send
        self._level = level
        self._mark = mark
        self._compress = deflater(level)
        self._out: Parts = []
        self._waiting = 0
        self.entries = 0
        self.size = 0
        self.skipped: list[tuple[str, str]] = []

    def run(self, work: Callable[[], None]) -> None:
        """Do the work and give everything back."""
        try:
            self._files = iter(self._reader)
            work()
            self._flush()
        finally:
            self._reader.close()
            self._reader.dispose()

    def raw(self, members: Sequence[Entry]) -> None:
        for member in members:
            for piece in self._need(member).pieces():
                self._write(piece)

    def gzip(self, members: Sequence[Entry]) -> None:
        with ThreadPoolExecutor(WORKERS, "deflate") as pool:
            for member in members:
                file = self._need(member)
                name, comment = (_latin(part) for part in (member.path.rpartition("/")[2], member.path))
                seconds = max(member.mtime_ns // 1_000_000_000, 0) & 0xFFFFFFFF
                self._write(struct.pack("<4BIBB", 0x1F, 0x8B, 8, 0x18, seconds, 0, 255) + name + b"\0" + comment + b"\0")
                crc, size, _ = self._pieces(pool, file)
                self._write(struct.pack("<II", crc, size & 0xFFFFFFFF))

    def zip(self, members: Sequence[Entry]) -> None:
        self._zip(members, DEFLATED)

    def zip_zstandard(self, members: Sequence[Entry]) -> None:
        self._compress = zstandard_framer(self._level)
        self._zip(members, ZSTANDARD)

    def tar_zstandard(self, members: Sequence[Entry]) -> None:
        writer = TarWriter(self._write, self._level)
        for member in members:
            if member.kind != "file":
                self.entries += 1
                writer.small(member)
                continue
            file = self._open(member)
            if file is not None and not writer.file(member, file.size, file.pieces()):
                self.skipped.append((member.path, f"the file became shorter than {file.size} bytes"))
        writer.finish()
        if self._mark:
            self._write(as_frame(self._mark))

    def _zip(self, members: Sequence[Entry], method: int) -> None:
        writer = ZipWriter(self._write)
        with ThreadPoolExecutor(WORKERS, "deflate") as pool:
            for member in members:
                if member.kind != "file":
                    self.entries += 1
                    writer.small(member)
                    continue
                file = self._open(member)
                if file is None:
                    continue
                if file.size <= PIECE_BYTES:
                    self._small(writer, member, b"".join(file.pieces()), method)
                    continue
                writer.begin(member, file.size, method)
                writer.end(*self._pieces(pool, file))
        writer.finish(as_comment(self._mark) if self._mark else b"")

    def _small(self, writer: ZipWriter, member: Entry, content: bytes, method: int) -> None:
        """A file that is not worth a hand-over; stored where compressing makes it no smaller."""
        packed = self._compress(content, is_last=True) if content else []
        if sum(map(len, packed)) < len(content):
            writer.small(member, content, packed, method)
        else:
            writer.small(member, content)

    def _open(self, member: Entry) -> FileContent | None:
        """The next file; None where it cannot be read: what was deleted meanwhile is missed by nobody."""
        found = next(self._files)
        if found.error:
            self.skipped.append((member.path, found.error))
            return None
        self.entries += 1
        return found

    def _need(self, member: Entry) -> FileContent:
        """The same where the archive is worth nothing without the file."""
        file = self._open(member)
        if file is None:
            raise ArchiveError(f"{member.path}: {self.skipped[-1][1]}")
        return file

    def _pieces(self, pool: ThreadPoolExecutor, file: FileContent) -> tuple[int, int, int]:
        """Compress a file into the archive; CRC and size of its content, and what it became."""
        before = self.size + self._waiting
        ahead: deque[Future[Parts]] = deque()
        crc = size = 0
        pieces = file.pieces()
        piece = next(pieces, None)
        if piece is None:
            # Only a file that was emptied since it was opened comes here.
            nothing = self._compress(b"", is_last=True)
            self._write(*nothing)
            return 0, 0, sum(map(len, nothing))
        while piece is not None:
            following = next(pieces, None)
            if following is None and size == 0:
                self._write(*self._compress(piece, is_last=True))  # a small file is not worth a hand-over
                return isal_zlib.crc32(piece), len(piece), self.size + self._waiting - before
            crc, size = isal_zlib.crc32(piece, crc), size + len(piece)
            ahead.append(pool.submit(self._compress, piece, is_last=following is None))
            if len(ahead) > PIECES_AHEAD:
                self._write(*ahead.popleft().result())
            piece = following
        while ahead:
            self._write(*ahead.popleft().result())
        return crc, size, self.size + self._waiting - before

    def _write(self, *parts: bytes | memoryview) -> None:
        self._out += parts
        self._waiting += sum(map(len, parts))
        if self._waiting >= OUT_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._out:
            data, self._out = b"".join(self._out), []
            self.size, self._waiting = self.size + len(data), 0
            self._send(data)


def _latin(name: str) -> bytes:
    """A name for the header of a gzip member, which is Latin-1 without NUL."""
    if name.isascii():
        return name.encode()
    return b"e:" + urllib.parse.quote(name, errors="surrogateescape").encode()
