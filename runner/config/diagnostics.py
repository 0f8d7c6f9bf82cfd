"""What is wrong with a configuration file, as values: path, place, code, text, hint."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


class Severity(enum.StrEnum):
    """An error takes something out of use, a warning does not."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnostic:
    """One finding. Lines and columns count from 1; 0 where the place is not known."""

    path: Path
    severity: Severity
    code: str
    text: str
    line: int = 0
    column: int = 0
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.path}:{self.line}:{self.column}: {self.severity}[{self.code}]: {self.text}{hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that is most like this one; empty when none is."""
    import difflib  # for files that have a mistake

    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.7)
    return f'did you mean "{found[0]}"?' if found else ""
