"""How shells print a value: when they trace commands, list variables, or quote by ``printf %q``.

Only what stands between the outer quotes is of interest, since these belong to the text around the value.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_ANSI = {
    "\a": "\\a",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\v": "\\v",
    "\f": "\\f",
    "\r": "\\r",
    "\x1b": "\\E",
    "'": "\\'",
    "\\": "\\\\",
}
_SINGLE_QUOTES = re.compile("'+")
_DOUBLE_QUOTED = re.compile(r'[\\"$`]')
_BACKSLASHED = re.compile(r"""[\s'"\\|&;()<>!{}*\[\]?^$`,]|\A[#~]|(?<=[=:])~""")


def quoted_forms(text: str) -> list[str]:
    """The forms of ``text`` that bash and dash print; also the text itself where quoting does not change it."""
    return [
        text.replace("'", "'\\''"),  # bash: single quotes
        _SINGLE_QUOTES.sub(lambda quotes: f"'\"{quotes.group()}\"'", text),  # dash: single quotes
        _DOUBLE_QUOTED.sub(r"\\\g<0>", text),  # bash: double quotes, as ``export`` and ``declare -p`` list
        _BACKSLASHED.sub(r"\\\g<0>", text),  # bash: ``printf %q``
        # bash: ``$'…'``; which characters beyond ASCII stay as they are depends on the locale.
        _ansi_quoted(text, lambda char: True),
        _ansi_quoted(text, lambda char: False),
        _ansi_quoted(text, str.isprintable),
    ]


def _ansi_quoted(text: str, stays: Callable[[str], bool]) -> str:
    return "".join([_ansi_character(char, stays) for char in text])


def _ansi_character(char: str, stays: Callable[[str], bool]) -> str:
    if char in _ANSI:
        return _ANSI[char]
    if " " <= char <= "~" or (char > "\x7f" and stays(char)):
        return char
    return "".join([f"\\{byte:03o}" for byte in char.encode(errors="surrogateescape")])
