"""The formats of archives and how hard they are compressed (``job-lifecycle.md`` 13.3)."""

from __future__ import annotations

import re
import struct
from enum import StrEnum
from pathlib import Path

from runner.errors import ArchiveError

# A frame of zstandard that decoders pass over.
SKIPPED_FRAME = 0x184D2A50
_MARK = re.compile(rb"pyrunner:([0-9a-f]{1,128})$")
_MARK_BYTES = 256


class Format(StrEnum):
    """How files are packed."""

    ZIP = "zip"
    GZIP = "gzip"
    RAW = "raw"
    TARZSTD = "tarzstd"
    ZIPZSTD = "zipzstd"


class Level(StrEnum):
    """How hard they are compressed."""

    FASTEST = "fastest"
    FAST = "fast"
    DEFAULT = "default"
    SLOW = "slow"
    SLOWEST = "slowest"


def compression_level(text: str) -> tuple[Level, str]:
    """The level of a variable's value, and what is wrong with it."""
    try:
        return Level(text or "default"), ""
    except ValueError:
        return Level.DEFAULT, f'compression level "{text}" is invalid, falling back to default'


def sniff(path: Path) -> Format:
    """The format of an archive by its first bytes. Raises :class:`ArchiveError` for gzip."""
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith(b"\x1f\x8b"):
        raise ArchiveError('"gzip" format: unsupported archive format')
    return Format.TARZSTD if head == b"\x28\xb5\x2f\xfd" else Format.ZIP


def as_comment(mark: str) -> bytes:
    """A mark (hexadecimal digits) as the comment of a zip file, which stands at its very end."""
    return b"pyrunner:" + mark.encode()


def as_frame(mark: str) -> bytes:
    """The same for the end of a file of zstandard frames."""
    comment = as_comment(mark)
    return struct.pack("<II", SKIPPED_FRAME, len(comment)) + comment


def read_mark(path: Path) -> str:
    """The mark at the end of an archive; empty where there is none."""
    with path.open("rb") as file:
        file.seek(max(file.seek(0, 2) - _MARK_BYTES, 0))
        found = _MARK.search(file.read())
    return found[1].decode() if found else ""
