"""Reading zip files: what GitLab, GitLab Runner and this runner write, and nothing that is not sure to be right."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import zstandard
from isal import igzip_lib, isal_zlib

from runner.archive.match import shown
from runner.archive.members import PATH_MAX, Limits, Member, too_big
from runner.archive.zip import DEFLATED, LOCAL, STORED, ZSTANDARD
from runner.archive.zip_directory import INVALID, ZipEntry, read_directory
from runner.errors import ArchiveError

PIECE_BYTES = 1024 * 1024
# So much of a compressed file is read at once.
READ_BYTES = 256 * 1024
# More than an extra field of a local header usually has.
EXTRA_BYTES = 64
WINDOW_BYTES = 128 * 1024 * 1024
ENCRYPTED = 1
# What a byte can stand for at most: deflate's longest match for its shortest code, a block of one repeated byte.
MAX_RATIO = {STORED: 1, DEFLATED: 1032, ZSTANDARD: 64 * 1024}


class _Decompressor(Protocol):
    unconsumed_tail: bytes
    eof: bool

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


class ZipSource:
    """See :class:`runner.archive.members.Source`. Contents may be read by several threads at once."""

    is_in_order = False

    def __init__(self, path: Path, limits: Limits) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._entries = read_directory(self._fd, limits)
            _check(self._entries, os.fstat(self._fd).st_size, limits)
        except BaseException:
            os.close(self._fd)
            raise
        self._members = [Member(number, entry.name, entry.about) for number, entry in enumerate(self._entries)]

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
        entry = self._entries[member.number]
        left, crc = entry.size, 0
        for piece in self._unpacked(entry):
            left -= len(piece)
            if left < 0:
                raise ArchiveError(f"{shown(member.name)} is bigger than the archive says")
            crc = isal_zlib.crc32(piece, crc)
            yield piece
        if left or crc != entry.crc:
            raise ArchiveError(f"zip: checksum error in {shown(member.name)}")

    def close(self) -> None:
        """See :class:`runner.archive.members.Source`."""
        os.close(self._fd)

    def _unpacked(self, entry: ZipEntry) -> Iterator[bytes]:
        packed = self._packed(entry)
        if entry.method == STORED:
            return packed
        return _inflated(packed) if entry.method == DEFLATED else _frames(packed)

    def _packed(self, entry: ZipEntry) -> Iterator[bytes]:
        """What follows the header of an entry; a small one is read together with it."""
        wanted = LOCAL.size + len(entry.name) + EXTRA_BYTES + entry.packed
        head = os.pread(self._fd, min(wanted, READ_BYTES), entry.offset)
        if len(head) < LOCAL.size or not head.startswith(b"PK\3\4"):
            raise ArchiveError(INVALID)
        *_, name_size, extra_size = LOCAL.unpack_from(head)
        start = LOCAL.size + name_size + extra_size
        piece = head[start : start + entry.packed]
        at, left = entry.offset + start + len(piece), entry.packed - len(piece)
        if piece:
            yield piece
        while left:
            piece = os.pread(self._fd, min(READ_BYTES, left), at)
            if not piece:
                raise ArchiveError(INVALID)
            at, left = at + len(piece), left - len(piece)
            yield piece


def _check(entries: Sequence[ZipEntry], file_size: int, limits: Limits) -> None:
    """Refuse what cannot be right before anything is unpacked."""
    size = sum(entry.size for entry in entries)
    if size > limits.size_bytes:
        raise too_big(len(entries), size)
    if sum(entry.packed for entry in entries) > file_size:
        raise ArchiveError("the archive is not valid: its entries overlap")
    for entry in entries:
        name = f"{shown(entry.name)} cannot be extracted"
        if entry.flags & ENCRYPTED:
            raise ArchiveError(f"{name}: it is encrypted")
        if entry.method not in MAX_RATIO:
            raise ArchiveError(f"{name}: unknown compression method {entry.method}")
        if entry.size > entry.packed * MAX_RATIO[entry.method] + PIECE_BYTES:
            raise ArchiveError(f"{name}: it is bigger than its content can be")


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


def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)


def _frames(packed: Iterator[bytes]) -> Iterator[bytes]:
    try:
        with _decompressor().stream_reader(_Pieces(packed), read_across_frames=True) as reader:  # type: ignore[arg-type]
            while piece := reader.read(PIECE_BYTES):
                yield piece
    except zstandard.ZstdError as error:
        raise ArchiveError(INVALID) from error
