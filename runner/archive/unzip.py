"""Reading zip files: what GitLab, GitLab Runner and this runner write, and nothing that is not sure to be right."""

from __future__ import annotations

import os
import stat
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import zstandard
from isal import igzip_lib, isal_zlib

from executors.base import Entry
from runner.archive.members import PATH_MAX, Limits, Member
from runner.archive.zip import DEFLATED, LOCAL, STORED, ZSTANDARD
from runner.errors import ArchiveError

TIMESTAMP = 0x5455
PIECE_BYTES = 1024 * 1024
# So much of a compressed file is read at once.
READ_BYTES = 256 * 1024
ENCRYPTED = 1
# What a byte can stand for at most: deflate's longest match for its shortest code, a block of one repeated byte.
MAX_RATIO = {STORED: 1, DEFLATED: 1032, ZSTANDARD: 64 * 1024}
INVALID = "zip: not a valid zip file"


class _Decompressor(Protocol):
    unconsumed_tail: bytes
    eof: bool

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class ZipSource:
    """See :class:`runner.archive.members.Source`. Contents may be read by several threads at once."""

    is_in_order = False

    def __init__(self, path: Path, limits: Limits) -> None:
        try:
            with zipfile.ZipFile(path) as archive:
                self._infos = archive.infolist()
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, EOFError, struct.error) as error:
            raise ArchiveError(INVALID) from error
        self._size = path.stat().st_size
        _check(self._infos, self._size, limits)
        self._members = [Member(number, info.filename, _entry(info)) for number, info in enumerate(self._infos)]
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    @property
    def members(self) -> Sequence[Member]:
        """See :class:`runner.archive.members.Source`."""
        return self._members

    def target(self, member: Member) -> str:
        """See :class:`runner.archive.members.Source`."""
        if member.about.size > PATH_MAX:
            raise ArchiveError(f"{member.name} cannot be extracted: the target of the link is too long")
        return b"".join(self.content(member)).decode(errors="surrogateescape")

    def content(self, member: Member) -> Iterator[bytes]:
        """See :class:`runner.archive.members.Source`."""
        info = self._infos[member.number]
        left, crc = info.file_size, 0
        for piece in self._unpacked(info):
            left -= len(piece)
            if left < 0:
                raise ArchiveError(f"{member.name} is bigger than the archive says")
            crc = isal_zlib.crc32(piece, crc)
            yield piece
        if left or crc != info.CRC:
            raise ArchiveError(f"zip: checksum error in {member.name}")

    def close(self) -> None:
        """See :class:`runner.archive.members.Source`."""
        os.close(self._fd)

    def _unpacked(self, info: zipfile.ZipInfo) -> Iterator[bytes]:
        head = os.pread(self._fd, LOCAL.size, info.header_offset)
        if len(head) < LOCAL.size or not head.startswith(b"PK\3\4"):
            raise ArchiveError(INVALID)
        *_, name_length, extra_length = LOCAL.unpack(head)
        packed = self._packed(info.header_offset + LOCAL.size + name_length + extra_length, info.compress_size)
        if info.compress_type == STORED:
            return packed
        if info.compress_type == DEFLATED:
            return _inflated(packed)
        return _frames(packed)

    def _packed(self, start: int, size: int) -> Iterator[bytes]:
        end = start + size
        while start < end:
            piece = os.pread(self._fd, min(READ_BYTES, end - start), start)
            if not piece:
                raise ArchiveError(INVALID)
            start += len(piece)
            yield piece


def _check(infos: Sequence[zipfile.ZipInfo], size: int, limits: Limits) -> None:
    """Refuse what cannot be right before anything is unpacked."""
    unpacked = sum(info.file_size for info in infos)
    if len(infos) > limits.entries or unpacked > limits.size_bytes:
        raise ArchiveError(f"the archive is too big: {len(infos)} entries, {unpacked} bytes")
    if sum(info.compress_size for info in infos) > size:
        raise ArchiveError("the archive is not valid: its entries overlap")
    for info in infos:
        if info.flag_bits & ENCRYPTED:
            raise ArchiveError(f"{info.filename} cannot be extracted: it is encrypted")
        if info.compress_type not in MAX_RATIO:
            raise ArchiveError(f"{info.filename} cannot be extracted: unknown compression method {info.compress_type}")
        if info.file_size > info.compress_size * MAX_RATIO[info.compress_type] + PIECE_BYTES:
            raise ArchiveError(f"{info.filename} cannot be extracted: it is bigger than its content can be")


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    inflate = isal_zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        yield from _bounded(packed, inflate, lambda: inflate.eof)
    except igzip_lib.IsalError as error:  # type: ignore[misc]
        raise ArchiveError(INVALID) from error
    if not inflate.eof:
        raise ArchiveError(INVALID)


def _bounded(packed: Iterator[bytes], inflate: _Decompressor, is_over: Callable[[], bool]) -> Iterator[bytes]:
    """Pieces of a bounded size, whatever the ratio."""
    for data in packed:
        while data and not is_over():
            piece = inflate.decompress(data, PIECE_BYTES)
            data = inflate.unconsumed_tail
            if piece:
                yield piece
    while not is_over() and (piece := inflate.decompress(b"", PIECE_BYTES)):
        yield piece


class _Pieces:
    """An iterator as something to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        if not self._rest:
            self._rest = next(self._pieces, b"")
        found, self._rest = self._rest[:size], self._rest[size:]
        return found


def _frames(packed: Iterator[bytes]) -> Iterator[bytes]:
    try:
        with zstandard.ZstdDecompressor().stream_reader(_Pieces(packed), read_across_frames=True) as reader:  # type: ignore[arg-type]
            while piece := reader.read(PIECE_BYTES):
                yield piece
    except zstandard.ZstdError as error:
        raise ArchiveError(INVALID) from error


def _entry(info: zipfile.ZipInfo) -> Entry:
    """Mode and time of an entry: set-uid, set-gid and sticky are dropped; the time is the extra field's, else local."""
    mode = info.external_attr >> 16
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
    return Entry(path="", kind=kind, mode=stat.S_IMODE(mode) & 0o777, size=info.file_size, mtime_ns=int(seconds) * 10**9)
