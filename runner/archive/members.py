"""What an unpacker sees of an archive, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from executors.base import Entry

# What one name of a file may be long, and a link contain.
PATH_MAX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an archive may unpack to."""

    entries: int = 1_000_000
    size_bytes: int = 64 * 1024**3


@dataclass(frozen=True, slots=True)
class Member:
    """An entry under the ``name`` that the archive gives it; ``about`` has no path yet. ``number`` counts from 0."""

    number: int
    name: str
    about: Entry


class Source(Protocol):
    """An opened archive. ``members`` stand in its order; nothing in it has been believed but what ``check`` looks at."""

    @property
    def members(self) -> Sequence[Member]:
        """Every entry."""
        ...

    @property
    def is_in_order(self) -> bool:
        """Whether contents have to be read in the order of the members, each before the next one."""
        ...

    def target(self, member: Member) -> str:
        """What a link contains."""
        ...

    def content(self, member: Member) -> Iterator[bytes]:
        """The content of a file in pieces, checked. Raises :class:`runner.errors.ArchiveError`."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...
