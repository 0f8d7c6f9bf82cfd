"""The directory of a zip file, read with bounded memory: nothing in it has been believed but what is checked here."""

from __future__ import annotations

import calendar
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from executors.workspace import Entry
from runner.archive.members import PATH_MAX, Limits, too_big
from runner.archive.zip import CENTRAL, END, END64, LIMIT, LOCATOR, OWNER, TIMESTAMP, WIDE
from runner.errors import ArchiveError

INVALID = "zip: not a valid zip file"
COMMENT_MAX = 0xFFFF
READ_BYTES = 1024 * 1024
# Systems whose attributes hold a mode in their upper half: Unix and macOS.
UNIX = frozenset({3, 19})
READ_ONLY, DIRECTORY = 0x01, 0x10


@dataclass(slots=True)
class ZipEntry:
    """One entry as the directory has it; ``offset`` is where its header stands in the file."""

    name: str
    about: Entry
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class _End:
    """Where the directory is: ``shift`` is what stands before the archive in its file."""

    count: int
    start: int
    size: int
    shift: int


def read_directory(fd: int, limits: Limits) -> list[ZipEntry]:
    """Every entry. Raises :class:`ArchiveError`."""
    end = _end(fd, os.fstat(fd).st_size)
    if end.count > limits.entries:
        raise too_big(end.count)
    found: list[ZipEntry] = []
    names = 0
    for entry in _entries(fd, end):
        names += len(entry.name)
        if len(found) >= limits.entries or names > limits.names_bytes:
            raise too_big(len(found))
        found.append(entry)
    if len(found) != end.count:
        raise ArchiveError(INVALID)
    return found


def _end(fd: int, size: int) -> _End:
    tail_start = max(size - END.size - COMMENT_MAX, 0)
    tail = os.pread(fd, size - tail_start, tail_start)
    at = tail.rfind(b"PK\5\6")
    while at >= 0 and (at + END.size > len(tail) or at + END.size + END.unpack_from(tail, at)[-1] > len(tail)):
        at = tail.rfind(b"PK\5\6", 0, at)
    if at < 0:
        raise ArchiveError(INVALID)
    _, disk, start_disk, _, count, directory_size, start, _ = END.unpack_from(tail, at)
    place = tail_start + at
    # Some write wide numbers although the others would do.
    wide = _end64(fd, place)
    if wide is not None:
        place, disk, start_disk, count, directory_size, start = wide
    shift = place - directory_size - start
    if disk or start_disk or shift < 0:
        raise ArchiveError(INVALID)
    return _End(count, start + shift, directory_size, shift)


def _end64(fd: int, end: int) -> tuple[int, int, int, int, int, int] | None:
    """Place, disks, count, size and start of the record with wide numbers; None where there is none."""
    head = os.pread(fd, LOCATOR.size, end - LOCATOR.size) if end >= LOCATOR.size else b""
    if len(head) < LOCATOR.size or not head.startswith(b"PK\6\7"):
        return None
    # What stands before the archive shifts the place that is written down.
    for place in (LOCATOR.unpack(head)[2], end - LOCATOR.size - END64.size):
        record = os.pread(fd, END64.size, place) if 0 <= place < end else b""
        if len(record) == END64.size and record.startswith(b"PK\6\6"):
            *_, disk, start_disk, _, count, size, start = END64.unpack(record)
            return place, disk, start_disk, count, size, start
    return None


def _entries(fd: int, end: _End) -> Iterator[ZipEntry]:
    at, stop = end.start, end.start + end.size
    block, block_at = b"", 0
    while at < stop:
        here = at - block_at
        if here + CENTRAL.size + 3 * COMMENT_MAX > len(block) and block_at + len(block) < stop:
            block, block_at, here = os.pread(fd, min(READ_BYTES, stop - at), at), at, 0
        if here + CENTRAL.size > len(block):
            raise ArchiveError(INVALID)
        head = CENTRAL.unpack_from(block, here)
        name_size, extra_size, comment_size = head[10:13]
        name_at = here + CENTRAL.size
        extra_at = name_at + name_size
        if head[0] != 0x02014B50 or extra_at + extra_size + comment_size > len(block):
            raise ArchiveError(INVALID)
        at = block_at + extra_at + extra_size + comment_size
        yield _entry(head, block[name_at:extra_at], block[extra_at : extra_at + extra_size], end)


def _entry(head: tuple[int, ...], raw_name: bytes, extra: bytes, end: _End) -> ZipEntry:
    _, made_by, _, flags, method, dos_time, dos_date, crc, packed, size, *_, attributes, offset = head
    name = raw_name.decode(errors="surrogateescape")
    if not name or len(raw_name) > PATH_MAX or "\0" in name:
        raise ArchiveError(f"{name[:100]!r} cannot be extracted: no file can have this name")
    seconds = -1
    owner = None
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if tag == WIDE:
            size, packed, offset = _wide(field, size, packed, offset)
        elif tag == TIMESTAMP and len(field) >= 5 and field[0] & 1:
            seconds = int.from_bytes(field[1:5], "little", signed=True)
        elif tag == OWNER:
            owner = _owner(field)
    if seconds == -1:
        seconds = _seconds(dos_date, dos_time)
    offset += end.shift
    if offset + packed > end.start:
        raise ArchiveError(INVALID)
    mode = _mode(made_by >> 8, attributes)
    kinds = {stat.S_IFLNK: "link", stat.S_IFREG: "file", stat.S_IFDIR: "dir", 0: "file"}
    kind = "dir" if name.endswith("/") else kinds.get(stat.S_IFMT(mode), "other")
    about = Entry(path="", kind=kind, mode=mode & 0o777, size=size, mtime_ns=seconds * 10**9, owner=owner)
    return ZipEntry(name, about, flags, method, crc, packed, size, offset)


def _wide(field: bytes, *values: int) -> tuple[int, int, int]:
    """Size, packed size and offset, where those that did not fit stand in the field, one behind the other."""
    found = []
    for value in values:
        if value == LIMIT:
            if len(field) < 8:
                raise ArchiveError(INVALID)
            value, field = int.from_bytes(field[:8], "little"), field[8:]
        found.append(value)
    return found[0], found[1], found[2]


def _owner(field: bytes) -> tuple[int, int] | None:
    """User and group; None where they are not those of any file."""
    if len(field) < 3 or field[0] != 1 or len(field) < 3 + field[1] or len(field) < 3 + field[1] + field[2 + field[1]]:
        return None
    split = 2 + field[1]
    uid, gid = (int.from_bytes(part, "little") for part in (field[2:split], field[split + 1 : split + 1 + field[split]]))
    return (uid, gid) if max(uid, gid) <= 0x7FFFFFFF else None


def _mode(system: int, attributes: int) -> int:
    if system in UNIX:
        return attributes >> 16
    if attributes & DIRECTORY:
        return stat.S_IFDIR | 0o777
    return stat.S_IFREG | (0o444 if attributes & READ_ONLY else 0o666)


def _seconds(date: int, time: int) -> int:
    """A time without a zone is taken for UTC, and what no calendar has is counted on, as the reference does: the thirteenth
    month is the next January, the day 0 the last of the month before."""
    years, month = divmod((date >> 5 & 15) - 1, 12)
    return calendar.timegm((1980 + (date >> 9) + years, month + 1, date & 31, time >> 11, time >> 5 & 63, (time & 31) * 2))
