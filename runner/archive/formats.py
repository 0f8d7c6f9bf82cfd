"""The formats of archives and how hard they are compressed (``job-lifecycle.md`` 13.3)."""

from __future__ import annotations

from enum import StrEnum


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
