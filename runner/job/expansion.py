"""Expansion of ``$NAME`` in values, as the reference does it: no shell, one pass (``job-lifecycle.md`` 8.3)."""

from __future__ import annotations

import re
from collections.abc import Callable

_REFERENCE = re.compile(r"\$(?:\$|\{\$\}|\{([^}]*)\}|(\{)|([0-9*#@!?\-])|([A-Za-z_][A-Za-z0-9_]*))", re.ASCII)


def expand(text: str, look_up: Callable[[str], str | None]) -> str:
    """Replace references by what ``look_up`` knows; unknown ones vanish. File variables stand for their path."""
    if "$" not in text:
        return text

    def replace(match: re.Match[str]) -> str:
        if match.group() in ("$$", "${$}"):
            return "$"
        if match.group(2):
            return ""  # ``${`` without its end: only the two characters go
        if match.group(3):
            return ""  # special parameters of shells, one character
        name = match.group(1) if match.group(1) is not None else match.group(4)
        return (look_up(name) or "") if name else ""

    return _REFERENCE.sub(replace, text)
