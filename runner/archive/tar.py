"""A tar file in zstandard that is written in one go."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import zstandard

from executors.workspace import Entry
from runner.archive.formats import Level
from runner.archive.piece import ZSTANDARD
from runner.archive.tar_header import BLOCK, make_header


class TarWriter:
    """Writes through ``write``; the order of calls is that of the file."""

    def __init__(self, write: Callable[[bytes], object], level: Level) -> None:
        self._write_out = write
        # Threads of its own would take hundreds of MiB for jobs ahead, and gain nothing at the usual level.
        self._compressor = zstandard.ZstdCompressor(level=ZSTANDARD[level], write_checksum=True).compressobj()

    def small(self, member: Entry) -> None:
        """A directory or a link."""
        self._write(make_header(member, 0))

    def file(self, member: Entry, size: int, content: Iterator[bytes]) -> bool:
        """A file of ``size`` bytes; False where its content was shorter, and zeros stand in."""
        self._write(make_header(member, size))
        left = size
        for piece in content:
            self._write(piece)
            left -= len(piece)
        self._write(bytes(left + -size % BLOCK))
        return left == 0

    def finish(self) -> None:
        """The end of the file."""
        self._write(bytes(2 * BLOCK))
        self._write_out(self._compressor.flush())

    def _write(self, data: bytes) -> None:
        packed = self._compressor.compress(data)
        if packed:
            self._write_out(packed)
