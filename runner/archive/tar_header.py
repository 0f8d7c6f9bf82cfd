"""Headers of tar files: ustar, with the extensions of GNU tar and POSIX for what does not fit. Pure.

The standard library's reader takes extensions of any size into memory, and a chain of them through recursion; this one
knows no more than archives of caches need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from executors.workspace import Entry

BLOCK = 512
# What eleven, and seven, octal digits can say.
OCTAL_MAX, OWNER_MAX = 8**11 - 1, 8**7 - 1
# What a long name or a header of POSIX may be long.
EXTENSION_MAX = 1024 * 1024
REGULAR = frozenset((b"0", b"\0", b"7"))
LINK, DIR, LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL, GNU_SPARSE = b"2", b"5", b"L", b"K", b"x", b"g", b"S"
EXTENSIONS = frozenset((LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL))
# Hard links, devices, directories and FIFOs: whatever the size says, nothing follows.
WITHOUT_CONTENT = frozenset((b"1", LINK, b"3", b"4", DIR, b"6"))
KINDS = {LINK: "link", DIR: "dir"}
_RECORD = re.compile(rb"([0-9]{1,7}) ")
_SECONDS = re.compile(rb"(-?[0-9]{1,12})(?:\.[0-9]*)?")
_NUMBER = re.compile(rb"[0-9]{1,19}")


class BadHeader(ValueError):
    """What stands there is no header."""


@dataclass(frozen=True, slots=True)
class Header:
    """``size`` is that of what follows."""

    kind: bytes
    name: bytes
    target: bytes
    mode: int
    seconds: int
    size: int
    owner: tuple[int, int] | None

    @property
    def entry(self) -> Entry:
        """Set-uid, set-gid and sticky are dropped; devices, FIFOs and hard links are "other". Without a path."""
        kind = "file" if self.kind in REGULAR else KINDS.get(self.kind, "other")
        return Entry(
            path="",
            kind=kind,
            mode=self.mode & 0o777,
            size=self.size if kind == "file" else 0,
            mtime_ns=self.seconds * 10**9,
            target=self.target.decode(errors="surrogateescape") if kind == "link" else "",
            owner=self.owner,
        )


def parse_header(block: bytes, extensions: dict[bytes, bytes]) -> Header:
    """The header in a block, with what extensions before it say. Raises :class:`BadHeader`."""
    if _number(block[148:156]) != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise BadHeader
    kind = block[156:157]
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = prefix + b"/" + name
    if kind not in EXTENSIONS:
        name = extensions.get(b"path", name)
    if kind == b"\0" and name.endswith(b"/"):
        kind = DIR
    size = _extended(extensions, b"size", block[124:136])
    if kind in WITHOUT_CONTENT:
        size = 0
    if size < 0:
        raise BadHeader
    return Header(
        kind=kind,
        name=name,
        target=extensions.get(b"linkpath", _text(block[157:257])),
        mode=_number(block[100:108]),
        seconds=_seconds(extensions[b"mtime"]) if b"mtime" in extensions else _number(block[136:148]),
        size=size,
        owner=_owner(_extended(extensions, b"uid", block[108:116]), _extended(extensions, b"gid", block[116:124])),
    )


def parse_extension(kind: bytes, content: bytes) -> dict[bytes, bytes]:
    """What an extension says about the header that comes next. Raises :class:`BadHeader`."""
    if kind == LONG_NAME:
        return {b"path": _text(content)}
    if kind == LONG_LINK:
        return {b"linkpath": _text(content)}
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        length = _RECORD.match(content, at)
        end = at + int(length[1]) if length is not None else 0
        if length is None or end > len(content) or end <= length.end() or content[end - 1 : end] != b"\n":
            raise BadHeader
        key, equals, value = content[length.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise BadHeader
        found[key] = value
        at = end
    return found


def is_sparse(header: Header, extensions: dict[bytes, bytes]) -> bool:
    """Whether the content is a map and the pieces of a file between its holes."""
    return header.kind == GNU_SPARSE or any(key.startswith(b"GNU.sparse.") for key in extensions)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """Octal digits, or the bytes of a number in two's complement behind a mark."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F | (field[0] & 0x40) << 1]) + field[1:], "big", signed=True)
    digits = field.strip(b" \0")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise BadHeader
    return int(digits or b"0", 8)


def _extended(extensions: dict[bytes, bytes], key: bytes, field: bytes) -> int:
    if key not in extensions:
        return _number(field)
    if not _NUMBER.fullmatch(extensions[key]):
        raise BadHeader
    return int(extensions[key])


def _seconds(value: bytes) -> int:
    found = _SECONDS.fullmatch(value)
    if found is None:
        raise BadHeader
    return int(found[1])


def _owner(uid: int, gid: int) -> tuple[int, int] | None:
    return (uid, gid) if min(uid, gid) >= 0 and max(uid, gid) <= 0x7FFFFFFF else None


def make_header(member: Entry, size: int) -> bytes:
    """The blocks that stand before a member; what does not fit into one is in an extended header before it."""
    path = b"./" if member.path == "." else member.path.encode(errors="surrogateescape")
    if member.kind == "dir" and path != b"./":
        path += b"/"
    target = member.target.encode(errors="surrogateescape") if member.kind == "link" else b""
    uid, gid = member.owner or (0, 0)
    extensions = []
    if len(path) > 100:
        extensions.append(_record(b"path", path))
    if len(target) > 100:
        extensions.append(_record(b"linkpath", target))
    if size > OCTAL_MAX:
        extensions.append(_record(b"size", b"%d" % size))
    extensions += [_record(key, b"%d" % number) for key, number in ((b"uid", uid), (b"gid", gid)) if number > OWNER_MAX]
    kind = {"dir": DIR, "link": LINK}.get(member.kind, b"0")
    mode = 0o777 if member.kind == "link" else member.mode
    seconds = min(max(member.mtime_ns // 10**9, 0), OCTAL_MAX)
    block = _block(path[:100], mode, (uid, gid), size, seconds, kind, target[:100])
    if not extensions:
        return block
    content = b"".join(extensions)
    head = _block(b"././@PaxHeader", 0o644, (0, 0), len(content), seconds, PAX, b"")
    return head + content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0") + block


def _record(key: bytes, value: bytes) -> bytes:
    """A record of an extended header, which begins with its own length."""
    length = len(key) + len(value) + 3
    size = length + len(b"%d" % (length + len(b"%d" % length)))
    return b"%d %s=%s\n" % (size, key, value)


def _block(name: bytes, mode: int, owner: tuple[int, int], size: int, seconds: int, kind: bytes, target: bytes) -> bytes:
    uid, gid = (number if number <= OWNER_MAX else 0 for number in owner)
    size = size if size <= OCTAL_MAX else 0
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode & 0o7777, uid, gid, size, seconds)
    before = name.ljust(100, b"\0") + numbers
    behind = b"%s%sustar\00000%s" % (kind, target.ljust(100, b"\0"), bytes(247))
    checksum = sum(before) + sum(behind) + 8 * 0x20
    return b"%s%06o\0 %s" % (before, checksum, behind)
