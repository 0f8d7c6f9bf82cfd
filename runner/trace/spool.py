"""The log as the coordinator must see it, in a file: repaired UTF-8, limited, with size and checksum as it grows."""

from __future__ import annotations

import codecs
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

_CHUNK_BYTES = 1024 * 1024


# Bytes that are no UTF-8, as ``surrogateescape`` decodes them: one character for each.
_BROKEN = re.compile("[\udc80-\udcff]")


class SpoolState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the log stands. ``pending`` is the beginning of a character whose rest has not come yet."""

    size: int
    crc: int
    pending: bytes
    is_full: bool


class Spool:
    """An append-only file. ``limit_bytes`` is the size at which output is cut; ``on_growth`` is called after a write.

    Where the disk takes no more, ``on_broken`` hears of it, and the log ends with a line that says so, as at the limit.
    """

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._limit_bytes = limit_bytes
        self._crc = 0
        self._pending = b""
        self.size = 0
        self.is_full = False
        self.on_growth: Callable[[], None] | None = None
        self.on_broken: Callable[[str], None] | None = None
        self._tail = b""
        if os.fstat(self._fd).st_size:
            self.reopen()

    @property
    def checksum(self) -> str:
        """Over everything stored."""
        return f"crc32:{self._crc:08x}"

    def write(self, data: bytes) -> None:
        """Store output. Nothing is stored once the limit is reached."""
        if self.is_full or not data:
            return
        text = self._repair(data)
        if self.size + len(text) < self._limit_bytes:
            self._append(text)
            return
        self.is_full = True
        self._append(_whole_characters(text, self._limit_bytes - self.size) + self._notice())

    def finish(self) -> None:
        """Store what waited for the rest of a character."""
        rest, self._pending = self._pending, b""
        if rest and not self.is_full:
            self.write(("\ufffd" * len(rest)).encode())

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on."""
        stored = self.size - len(self._tail)
        found = os.pread(self._fd, max(min(size, stored - offset), 0), offset)
        behind = max(offset - stored, 0)
        return found + self._tail[behind : behind + size - len(found)]

    def state(self) -> SpoolState:
        """What :meth:`restore` takes."""
        return SpoolState(size=self.size, crc=self._crc, pending=self._pending, is_full=self.is_full)

    def restore(self, state: SpoolState) -> None:
        """Cut the log back to where it stood; to all there is where the host lost the end of the file."""
        if os.fstat(self._fd).st_size < state.size:
            self.reopen()
            return
        os.ftruncate(self._fd, state.size)
        self._tail = b""
        self.size, self._crc, self._pending, self.is_full = state.size, state.crc, state.pending, state.is_full

    def reopen(self) -> None:
        """Go on behind what is in the file."""
        self.size, self._crc, self._pending = 0, 0, b""
        self._tail = b""
        end = os.fstat(self._fd).st_size
        while self.size < end and (chunk := os.pread(self._fd, _CHUNK_BYTES, self.size)):
            self._crc = zlib.crc32(chunk, self._crc)
            self.size += len(chunk)
        self.is_full = self.size >= self._limit_bytes

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _repair(self, data: bytes) -> bytes:
        if not self._pending and data.isascii():
            return data
        data = self._pending + data
        try:
            _, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError:
            text, used = codecs.utf_8_decode(data, "surrogateescape", False)
            self._pending = data[used:]
            return _BROKEN.sub("\ufffd", text).encode()
        self._pending = data[used:]
        return data[:used] if self._pending else data

    def _append(self, data: bytes) -> None:
        if not data:
            return
        try:
            self._write(data)
        except OSError as error:
            data = self._break(error)
        self._crc = zlib.crc32(data, self._crc)
        self.size += len(data)
        if self.on_growth is not None:
            self.on_growth()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        position = self.size
        while view:
            written = os.pwrite(self._fd, view, position)
            view = view[written:]
            position += written

    def _break(self, error: OSError) -> bytes:
        """End the log with a line in memory, since the disk has no room for it."""
        os.ftruncate(self._fd, self.size)
        self.is_full = True
        self._tail = (
            f"\n\x1b[33;1mThe runner cannot store more of this job's log: {error.strerror}.\n"
            "Job execution will continue but no more output will be collected.\x1b[0;m\n"
        ).encode()
        if self.on_broken is not None:
            self.on_broken(f"the log of the job cannot be stored: {error.strerror}")
        return self._tail

    def _notice(self) -> bytes:
        return (
            f"\n\x1b[33;1mJob's log exceeded limit of {self._limit_bytes} bytes.\n"
            "Job execution will continue but no more output will be collected.\x1b[0;m\n"
        ).encode()


def _whole_characters(text: bytes, size: int) -> bytes:
    """The first ``size`` bytes, less the beginning of a character that does not fit."""
    size = max(size, 0)
    while 0 < size < len(text) and text[size] & 0xC0 == 0x80:
        size -= 1
    return text[:size]
