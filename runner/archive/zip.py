"""The frame of a zip file that is written in one go: headers, data descriptors, the directory at its end."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isal import isal_zlib

from executors.workspace import Entry

STORED, DEFLATED, ZSTANDARD = 0, 8, 93
# Tags of extra fields: 64-bit numbers, time, user and group.
WIDE, TIMESTAMP, OWNER = 0x0001, 0x5455, 0x7875
VERSION = 45
MADE_BY = 3 << 8 | VERSION  # Unix
DESCRIPTOR, UTF8 = 0x0008, 0x0800
KINDS = {"dir": 0o040000, "file": 0o100000, "link": 0o120000}
LIMIT = 0xFFFFFFFF
# What cannot be compressed becomes a little larger: from this size on both sizes are written with 64 bits.
WIDE_BYTES = LIMIT - LIMIT // 256
ENTRIES_LIMIT = 0xFFFF
EPOCH_S = 315_532_800  # 1980, where the times of zip files begin
LOCAL = struct.Struct("<IHHHHHIIIHH")
CENTRAL = struct.Struct("<IHHHHHHIIIHHHHHII")
END = struct.Struct("<IHHHHIIH")
END64 = struct.Struct("<IQHHIIQQQQ")
LOCATOR = struct.Struct("<IIQI")


@dataclass(slots=True)
class _Written:
    name: bytes
    mode: int
    extra: bytes
    dos_time: tuple[int, int]
    method: int
    flags: int
    offset: int
    wide: bool = False
    crc: int = 0
    size: int = 0
    packed: int = 0


class ZipWriter:
    """Writes through ``write``, which takes bytes; the order of calls is that of the file."""

    def __init__(self, write: Callable[[bytes | memoryview], object]) -> None:
        self._write_out = write
        self._offset = 0
        self._entries: list[_Written] = []

    def small(self, member: Entry, content: bytes = b"", packed: Sequence[bytes | memoryview] = (), method: int = STORED) -> None:
        """What is in memory as a whole: a directory, a link, a file with its ``content`` and, unless ``method`` is
        :data:`STORED`, what it became."""
        if member.kind == "link":
            content = member.target.encode(errors="surrogateescape")
        if method == STORED:
            packed = (content,) if content else ()
        entry = self._entry(member, method, 0)
        entry.crc, entry.size, entry.packed = isal_zlib.crc32(content), len(content), sum(map(len, packed))
        self._local(entry)
        self._offset += entry.packed
        for part in packed:
            self._write_out(part)

    def begin(self, member: Entry, size: int, method: int) -> None:
        """A file of at most ``size`` bytes, whose compressed content the caller writes next."""
        entry = self._entry(member, method, DESCRIPTOR)
        entry.wide = size >= WIDE_BYTES
        self._local(entry)

    def end(self, crc: int, size: int, packed: int) -> None:
        """The file is over. ``packed`` bytes were written of it."""
        entry = self._entries[-1]
        entry.crc, entry.size, entry.packed = crc, size, packed
        self._offset += packed
        form = "<IIQQ" if entry.wide else "<IIII"
        self._write(struct.pack(form, 0x08074B50, crc, packed, size))

    def finish(self, comment: bytes = b"") -> None:
        """The directory, and a comment at the very end."""
        start = self._offset
        for entry in self._entries:
            self._central(entry)
        size, count = self._offset - start, len(self._entries)
        if count >= ENTRIES_LIMIT or max(start, size) >= LIMIT:
            place = self._offset
            self._write(END64.pack(0x06064B50, END64.size - 12, MADE_BY, VERSION, 0, 0, count, count, size, start))
            self._write(LOCATOR.pack(0x07064B50, 0, place, 1))
        shown = min(count, ENTRIES_LIMIT)
        self._write(END.pack(0x06054B50, 0, 0, shown, shown, min(size, LIMIT), min(start, LIMIT), len(comment)) + comment)

    def _write(self, data: bytes) -> None:
        self._offset += len(data)
        self._write_out(data)

    def _entry(self, member: Entry, method: int, flags: int) -> _Written:
        path = "./" if member.path == "." else f"{member.path}/" if member.kind == "dir" else member.path
        name = path.encode(errors="surrogateescape")
        seconds = max(member.mtime_ns // 1_000_000_000, 0)
        if not path.isascii() and _is_utf8(name):
            flags |= UTF8
        mode = KINDS[member.kind] | (0o777 if member.kind == "link" else member.mode)
        extra = struct.pack("<HHBI", TIMESTAMP, 5, 1, seconds & LIMIT)
        if member.owner is not None:
            extra = struct.pack("<HHBBIBI", OWNER, 11, 1, 4, member.owner[0], 4, member.owner[1]) + extra
        entry = _Written(name, mode, extra, _dos_time(seconds), method, flags, self._offset)
        self._entries.append(entry)
        return entry

    def _local(self, entry: _Written) -> None:
        sizes = (0, 0, 0) if entry.flags & DESCRIPTOR else (entry.crc, entry.packed, entry.size)
        extra = entry.extra
        if entry.wide:
            # A reader that goes through the file takes the size of the descriptor's fields from here.
            sizes = (0, LIMIT, LIMIT)
            extra = struct.pack("<HHQQ", WIDE, 16, 0, 0) + extra
        head = (0x04034B50, VERSION, entry.flags, entry.method, *entry.dos_time, *sizes, len(entry.name), len(extra))
        self._write(LOCAL.pack(*head) + entry.name + extra)

    def _central(self, entry: _Written) -> None:
        wide = [value for value in (entry.size, entry.packed, entry.offset) if value >= LIMIT]
        extra = entry.extra
        if wide:
            extra = struct.pack(f"<HH{len(wide)}Q", WIDE, 8 * len(wide), *wide) + extra
        head = (
            *(0x02014B50, MADE_BY, VERSION, entry.flags, entry.method, *entry.dos_time),
            *(entry.crc, min(entry.packed, LIMIT), min(entry.size, LIMIT), len(entry.name), len(extra), 0, 0, 0),
            *(entry.mode << 16 | (0x10 if entry.name.endswith(b"/") else 0), min(entry.offset, LIMIT)),
        )
        self._write(CENTRAL.pack(*head) + entry.name + extra)


def _dos_time(seconds: int) -> tuple[int, int]:
    at = time.gmtime(max(seconds, EPOCH_S))
    return at.tm_hour << 11 | at.tm_min << 5 | at.tm_sec // 2, min(at.tm_year - 1980, 127) << 9 | at.tm_mon << 5 | at.tm_mday


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
