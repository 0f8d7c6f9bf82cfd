"""Reading tar files in zstandard, once from front to back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import zstandard

from runner.archive.match import shown
from runner.archive.members import Limits, Member, too_big
from runner.archive.tar_header import (
    BLOCK,
    EXTENSION_MAX,
    EXTENSIONS,
    PAX_GLOBAL,
    BadHeader,
    Header,
    is_sparse,
    parse_extension,
    parse_header,
)
from runner.errors import ArchiveError

PIECE_BYTES = 1024 * 1024
INVALID = "tar: not a valid tar.zst file"
# zstd --ultra --long=31 is for those who can spend the memory: nobody writes caches with it.
WINDOW_BYTES = 128 * 1024 * 1024
END = bytes(BLOCK)


class TarSource:
    """See :class:`runner.archive.members.Source`. What is too much is refused when it is come to."""

    is_in_order = True

    def __init__(self, path: Path, limits: Limits) -> None:
        self._limits = limits
        self._stream = _Stream(path)
        self._left = 0
        self._padding = 0
        self._current = -1

    @property
    def members(self) -> Iterator[Member]:
        """See :class:`runner.archive.members.Source`: once, each until the next one is asked for."""
        size = names = headers = 0
        extensions: dict[bytes, bytes] = {}
        while (header := self._next(extensions)) is not None:
            headers += 1
            size += header.size
            names += len(header.name) + len(header.target)
            limits = self._limits
            if headers > limits.entries or size > limits.size_bytes or names > limits.names_bytes:
                raise too_big(headers, size)
            if header.kind in EXTENSIONS:
                extensions |= self._extension(header)
                continue
            member = Member(self._current + 1, header.name.decode(errors="surrogateescape"), header.entry)
            if is_sparse(header, extensions):
                raise ArchiveError(f"{shown(member.name)} cannot be extracted: sparse files in tar files are not supported")
            extensions = {}
            self._current += 1
            self._left, self._padding = header.size, -header.size % BLOCK
            yield member

    def target(self, member: Member) -> str:
        """See :class:`runner.archive.members.Source`."""
        return member.about.target

    def content(self, member: Member) -> Iterator[bytes]:
        """See :class:`runner.archive.members.Source`."""
        assert member.number == self._current, "the content of a member is read in its turn"
        while self._left:
            piece = self._stream.some(min(PIECE_BYTES, self._left))
            self._left -= len(piece)
            yield piece

    def close(self) -> None:
        """See :class:`runner.archive.members.Source`."""
        self._stream.close()

    def _next(self, extensions: dict[bytes, bytes]) -> Header | None:
        self._stream.skip(self._left + self._padding)
        self._left = self._padding = 0
        block = self._stream.exactly(BLOCK)
        if block == END:
            return None
        try:
            return parse_header(block, extensions)
        except BadHeader as error:
            raise ArchiveError(INVALID) from error

    def _extension(self, header: Header) -> dict[bytes, bytes]:
        if header.size > EXTENSION_MAX:
            raise ArchiveError(f"tar: an extended header of {header.size} bytes is too big")
        content = self._stream.exactly(header.size)
        self._padding = -header.size % BLOCK
        if header.kind == PAX_GLOBAL:
            return {}  # comments about all members
        try:
            return parse_extension(header.kind, content)
        except BadHeader as error:
            raise ArchiveError(INVALID) from error


class _Stream:
    """What a file in zstandard holds, from front to back; an end that comes too early is an error."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        self._reader = decompressor.stream_reader(self._file, read_across_frames=True, closefd=True)
        self._buffer = b""
        self._at = 0

    def some(self, size: int) -> bytes:
        """At least one byte, and ``size`` at most."""
        if self._at == len(self._buffer):
            try:
                self._buffer, self._at = self._reader.read(PIECE_BYTES), 0
            except zstandard.ZstdError as error:
                raise ArchiveError(INVALID) from error
            if not self._buffer:
                raise ArchiveError(INVALID)
        if self._at == 0 and size >= len(self._buffer):
            found, self._buffer = self._buffer, b""
            return found
        found = self._buffer[self._at : self._at + size]
        self._at += len(found)
        return found

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        found = self.some(size) if size else b""
        while len(found) < size:
            found += self.some(size - len(found))
        return found

    def skip(self, size: int) -> None:
        """Pass over so many bytes."""
        while size:
            size -= len(self.some(size))

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
