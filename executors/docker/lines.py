"""Lines that an executor adds to the log of a job."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol


class Level(enum.StrEnum):
    """How a line is shown; warnings and errors say so in front. ``OUTPUT`` is text as it is, with its own
    ends of lines."""

    PLAIN = "plain"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    OUTPUT = "output"


class Lines(Protocol):
    """Takes lines, one call each, without an end of line."""

    def add(self, level: Level, text: str) -> None:
        """Show a line."""
        ...


@dataclass(slots=True)
class KeptLines:
    """Keeps lines, so that work done side by side is told in a fixed order."""

    kept: list[tuple[Level, str]] = field(default_factory=list)

    def add(self, level: Level, text: str) -> None:
        """Keep a line."""
        self.kept.append((level, text))

    def pour(self, lines: Lines) -> None:
        """Hand everything on, once."""
        while self.kept:
            lines.add(*self.kept.pop(0))
