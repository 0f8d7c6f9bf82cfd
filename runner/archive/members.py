"""What an unpacker sees of an archive, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from executors.workspace import Entry
from runner.errors import ArchiveError

# What one name of a file may be long, and a link contain.
PATH_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may unpack to."""

    entries: int = 1_000_000
    size_bytes: int = 64 * 1024**3
    names_bytes: int = 256 * 1024**2


def too_big(entries: int, size_bytes: int = 0) -> ArchiveError:
    """What to raise for an archive beyond the limits."""
    size = f", {size_bytes} bytes" if size_bytes else ""
    return ArchiveError(f"the archive is too big: {entries} entries{size}")


@dataclass(frozen=True, slots=True)
class Member:
    """An entry under the ``name`` that the archive gives it; ``about`` has no path yet. ``number`` counts from 0."""

    number: int
    name: str
    about: Entry


class Source(Protocol):
    """An opened archive. Everything in it may be wrong, and whatever is raises :class:`runner.errors.ArchiveError`."""

    @property
    def members(self) -> Iterable[Member]:
        """Every entry, in the order of the archive."""
        ...

    @property
    def is_in_order(self) -> bool:
        """Whether a content has to be read before the next member is asked for."""
        ...

    def target(self, member: Member) -> str:
        """What a link contains."""
        ...

    def content(self, member: Member) -> Iterator[bytes]:
        """The content of a file in pieces, checked."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...
