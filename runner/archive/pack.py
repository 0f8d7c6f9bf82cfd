"""Packing files of a workspace into a stream (``job-lifecycle.md`` 13.3). The same files give the same bytes."""

from __future__ import annotations

import asyncio
import io
import struct
import time
import urllib.parse
import zipfile
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from executors.base import Entry, Workspace, WorkspaceError
from runner.archive.formats import DEFLATE, Format, Level
from runner.errors import ArchiveError

Sink = Callable[[bytes], Awaitable[None]]
PIECE_BYTES = 1024 * 1024
KINDS = {"dir": 0o040000, "file": 0o100000, "link": 0o120000}
UNIX = 3
ZIP_EPOCH_S = 315_532_800


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What was packed. ``skipped`` names files that were gone or could not be read, with the reason."""

    entries: int
    size_bytes: int
    skipped: tuple[tuple[str, str], ...] = ()


async def pack(workspace: Workspace, root: str, members: Sequence[Entry], sink: Sink, *, format: Format, level: Level) -> Packed:
    """Pack ``members`` of ``root`` into ``sink``, in their order. Raises :class:`ArchiveError` for what cannot be packed."""
    packer = _Packer(workspace, root, sink, DEFLATE[level])
    match format:
        case Format.RAW:
            await packer.raw(members)
        case Format.GZIP:
            await packer.gzip(members)
        case Format.ZIP:
            await packer.zip(members)
        case Format.TARZSTD | Format.ZIPZSTD:
            raise ArchiveError(f'"{format}" format: unsupported archive format')
    return Packed(entries=packer.entries, size_bytes=packer.size, skipped=tuple(packer.skipped))


class _Packer:
    def __init__(self, workspace: Workspace, root: str, sink: Sink, level: int) -> None:
        self._workspace = workspace
        self._root = root
        self._sink = sink
        self._level = level
        self.entries = 0
        self.size = 0
        self.skipped: list[tuple[str, str]] = []

    async def _send(self, data: bytes) -> None:
        if data:
            self.size += len(data)
            await self._sink(data)

    async def _pieces(self, member: Entry) -> AsyncIterator[bytes]:
        """Content as it is now, at most as much as was listed: a file that grows does not go on for ever."""
        path = f"{self._root}/{member.source or member.path}"
        offset = 0
        while offset < member.size:
            limit = min(PIECE_BYTES, member.size - offset)
            piece = await self._workspace.read(path, limit=limit, offset=offset)
            if not piece:
                return
            offset += len(piece)
            yield piece

    async def raw(self, members: Sequence[Entry]) -> None:
        for member in members:
            self.entries += 1
            async for piece in self._pieces(member):
                await self._send(piece)

    async def gzip(self, members: Sequence[Entry]) -> None:
        for member in members:
            self.entries += 1
            packer = zlib.compressobj(self._level, zlib.DEFLATED, -zlib.MAX_WBITS)
            crc, size = 0, 0
            name, comment = (_latin(part) for part in (member.path.rpartition("/")[2], member.path))
            head = struct.pack("<4BIBB", 0x1F, 0x8B, 8, 0x18, max(member.mtime_ns // 1_000_000_000, 0) & 0xFFFFFFFF, 0, 255)
            await self._send(head + name + b"\0" + comment + b"\0")
            async for piece in self._pieces(member):
                crc, size = zlib.crc32(piece, crc), size + len(piece)
                await self._send(await asyncio.to_thread(packer.compress, piece))
            await self._send(packer.flush() + struct.pack("<II", crc, size & 0xFFFFFFFF))

    async def zip(self, members: Sequence[Entry]) -> None:
        out = _Out()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=self._level) as archive:
            for member in members:
                if await self._is_gone(member):
                    continue
                self.entries += 1
                with archive.open(_info(member, self._level), "w", force_zip64=member.size >= zipfile.ZIP64_LIMIT) as file:
                    if member.kind == "link":
                        file.write(member.target.encode(errors="surrogateescape"))
                    elif member.kind == "file":
                        async for piece in self._pieces(member):
                            await asyncio.to_thread(file.write, piece)
                            await self._send(out.take())
                await self._send(out.take())
        await self._send(out.take())

    async def _is_gone(self, member: Entry) -> bool:
        """Whether a file cannot be packed any more; what was deleted meanwhile is missed by nobody."""
        if member.kind != "file":
            return False
        try:
            found = await self._workspace.read(f"{self._root}/{member.source or member.path}", limit=0)
        except WorkspaceError as error:
            self.skipped.append((member.path, str(error)))
            return True
        if found is None:
            self.skipped.append((member.path, "no such file"))
        return found is None


class _Out(io.RawIOBase):
    """What a zip writer writes to; it cannot go back in it."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What was written since it was last asked."""
        found, self._parts = b"".join(self._parts), []
        return found


def _info(member: Entry, level: int) -> zipfile.ZipInfo:
    name = "./" if member.path == "." else f"{member.path}/" if member.kind == "dir" else member.path
    seconds = max(member.mtime_ns // 1_000_000_000, 0)
    info = zipfile.ZipInfo(name, time.gmtime(max(seconds, ZIP_EPOCH_S))[:6])
    info.create_system = UNIX
    info.external_attr = (KINDS[member.kind] | (0o777 if member.kind == "link" else member.mode)) << 16
    info.extra = struct.pack("<HHBI", 0x5455, 5, 1, seconds & 0xFFFFFFFF)
    info.compress_type = zipfile.ZIP_DEFLATED if member.kind == "file" and member.size else zipfile.ZIP_STORED
    info._compresslevel = level  # type: ignore[attr-defined]  # noqa: SLF001 - ``open`` takes no other way
    return info


def _latin(name: str) -> bytes:
    """A name for the header of a gzip member, which is Latin-1 without NUL."""
    if name.isascii():
        return name.encode()
    return b"e:" + urllib.parse.quote(name, errors="surrogateescape").encode()
