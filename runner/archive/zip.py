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
# So many entries of the directory are written at once.
DIRECTORY_ENTRIES = 1000
STAMPS_KNOWN = 1000
# Time, date, extra field.
_Stamp = tuple[int, int, bytes]


@dataclass(slots=True)
class _Begun:
    """An entry whose sizes are not known yet."""

    member: Entry
    name: bytes
    flags: int
    method: int
    offset: int
    wide: bool


class ZipWriter:
    """Writes through ``write``, which takes any number of bytes; the order of calls is that of the file."""

    def __init__(self, write: Callable[..., object]) -> None:
        self._write = write
        self._offset = 0
        self._directory: list[bytes] = []
        self._stamps: dict[tuple[int, tuple[int, int] | None], _Stamp] = {}
        self._begun: _Begun | None = None

    def small(self, member: Entry, content: bytes = b"", packed: Sequence[bytes | memoryview] = (), method: int = STORED) -> None:
        """What is in memory as a whole: a directory, a link, a file with its ``content`` and, unless ``method`` is
        :data:`STORED`, what it became."""
        if member.kind == "link":
            content = member.target.encode(errors="surrogateescape")
        crc, size = isal_zlib.crc32(content), len(content)
        packed_size = size
        if method != STORED:
            packed_size = sum(map(len, packed))
        elif content:
            packed = (content,)
        name, flags = _name(member)
        stamp = dos_time, dos_date, extra = self._stamp(member)
        head = LOCAL.pack(0x04034B50, VERSION, flags, method, dos_time, dos_date, crc, packed_size, size, len(name), len(extra))
        self._write(head, name, extra, *packed)
        self._list(member, name, stamp, flags, method, crc, size, packed_size, self._offset)
        self._offset += LOCAL.size + len(name) + len(extra) + packed_size

    def begin(self, member: Entry, size: int, method: int) -> None:
        """A file of at most ``size`` bytes, whose compressed content the caller writes next."""
        name, flags = _name(member)
        begun = _Begun(member, name, flags | DESCRIPTOR, method, self._offset, size >= WIDE_BYTES)
        dos_time, dos_date, extra = self._stamp(member)
        sizes = (0, 0, 0)
        if begun.wide:
            # A reader that goes through the file takes the size of the descriptor's fields from here.
            sizes = (0, LIMIT, LIMIT)
            extra = struct.pack("<HHQQ", WIDE, 16, 0, 0) + extra
        head = (0x04034B50, VERSION, begun.flags, method, dos_time, dos_date, *sizes, len(name), len(extra))
        self._put(LOCAL.pack(*head) + name + extra)
        self._begun = begun

    def end(self, crc: int, size: int, packed: int) -> None:
        """The file is over. ``packed`` bytes were written of it."""
        begun, self._begun = self._begun, None
        assert begun is not None
        self._offset += packed
        form = "<IIQQ" if begun.wide else "<IIII"
        self._put(struct.pack(form, 0x08074B50, crc, packed, size))
        stamp = self._stamp(begun.member)
        self._list(begun.member, begun.name, stamp, begun.flags, begun.method, crc, size, packed, begun.offset)

    def finish(self, comment: bytes = b"") -> None:
        """The directory, and a comment at the very end."""
        start = self._offset
        for first in range(0, len(self._directory), DIRECTORY_ENTRIES):
            self._put(b"".join(self._directory[first : first + DIRECTORY_ENTRIES]))
        size, count = self._offset - start, len(self._directory)
        if count >= ENTRIES_LIMIT or max(start, size) >= LIMIT:
            place = self._offset
            self._put(END64.pack(0x06064B50, END64.size - 12, MADE_BY, VERSION, 0, 0, count, count, size, start))
            self._put(LOCATOR.pack(0x07064B50, 0, place, 1))
        shown = min(count, ENTRIES_LIMIT)
        self._put(END.pack(0x06054B50, 0, 0, shown, shown, min(size, LIMIT), min(start, LIMIT), len(comment)) + comment)

    def _put(self, data: bytes) -> None:
        self._offset += len(data)
        self._write(data)

    def _list(
        self, member: Entry, name: bytes, stamp: _Stamp, flags: int, method: int, crc: int, size: int, packed: int, offset: int
    ) -> None:
        """Add an entry, which is complete, to the directory."""
        dos_time, dos_date, extra = stamp
        if size >= LIMIT or packed >= LIMIT or offset >= LIMIT:
            wide = [value for value in (size, packed, offset) if value >= LIMIT]
            extra = struct.pack(f"<HH{len(wide)}Q", WIDE, 8 * len(wide), *wide) + extra
            size, packed, offset = min(size, LIMIT), min(packed, LIMIT), min(offset, LIMIT)
        kind = member.kind
        attributes = (KINDS[kind] | (0o777 if kind == "link" else member.mode)) << 16 | (0x10 if kind == "dir" else 0)
        head = CENTRAL.pack(
            *(0x02014B50, MADE_BY, VERSION, flags, method, dos_time, dos_date, crc, packed, size),
            *(len(name), len(extra), 0, 0, 0, attributes, offset),
        )
        self._directory.append(head + name + extra)

    def _stamp(self, member: Entry) -> _Stamp:
        """Time and owner as a zip file has them. Files that were made together have them in common."""
        key = (member.mtime_ns // 1_000_000_000, member.owner)
        known = self._stamps.get(key)
        if known is None:
            seconds = max(key[0], 0)
            if len(self._stamps) >= STAMPS_KNOWN:
                self._stamps.clear()
            extra = struct.pack("<HHBI", TIMESTAMP, 5, 1, seconds & LIMIT)
            if member.owner is not None:
                extra = struct.pack("<HHBBIBI", OWNER, 11, 1, 4, member.owner[0], 4, member.owner[1]) + extra
            known = self._stamps[key] = (*_dos_time(seconds), extra)
        return known


def _name(member: Entry) -> tuple[bytes, int]:
    """The name of an entry, and the flag that says how it is written."""
    path = member.path
    if member.kind == "dir":
        path = "./" if path == "." else f"{path}/"
    if path.isascii():
        return path.encode(), 0
    name = path.encode(errors="surrogateescape")
    return name, UTF8 if _is_utf8(name) else 0


def _dos_time(seconds: int) -> tuple[int, int]:
    at = time.gmtime(max(seconds, EPOCH_S))
    return at.tm_hour << 11 | at.tm_min << 5 | at.tm_sec // 2, min(at.tm_year - 1980, 127) << 9 | at.tm_mon << 5 | at.tm_mday


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
