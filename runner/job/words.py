"""Words of a job's definition, expanded as a shell expands text in double quotes (``job-lifecycle.md`` 13.2).

``$X``, ``${X}``, ``${#X}``, ``${X:-word}`` and its kin, ``${X%pattern}``, ``${X/pattern/text}``, ``${X:1:3}`` and
``$((1+2))``. A backslash escapes only ``$``, a backquote, a double quote and itself. Commands are never run: they are an
error. Names that are not set are empty.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable

from runner.job.arithmetic import calculate

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]", re.ASCII)
_SPECIAL = "$?*@!#-"
_DEFAULTS = re.compile(r"(:?)([-=+?])", re.ASCII)
# A pattern up to the slash that is not escaped, and the text behind it.
_PATTERN = re.compile(r"((?:\\.|[^/\\]|\\\Z)*)(?:/(.*))?", re.DOTALL)
_CASE = re.compile(r"\^\^?|,,?")
_TRIM = re.compile(r"(%%|%|##|#)")
_DEPTH_MAX = 16
_LOOKUP = Callable[[str], str | None]


class BadWord(ValueError):
    """A text that cannot be expanded; says why, and where (line:column)."""


def expand_word(text: str, look_up: _LOOKUP) -> str:
    """The text with every reference replaced. Raises :class:`BadWord`."""
    if not any(character in text for character in "$\\`"):
        return text
    return _Expander(text, look_up, 0).run()


class _Expander:
    def __init__(self, text: str, look_up: _LOOKUP, depth: int) -> None:
        self._text = text
        self._look_up = look_up
        self._depth = depth
        self._at = 0
        if depth > _DEPTH_MAX:
            raise BadWord("nested too deeply")

    def run(self) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            character = self._text[self._at]
            following = self._text[self._at + 1 : self._at + 2]
            if character == "\\" and following and following in '$`"\\':
                found.append(following)
                self._at += 2
            elif character == "`":
                raise self._command()
            elif character == "$":
                found.append(self._reference())
            else:
                found.append(character)
                self._at += 1
        return "".join(found)

    def _command(self) -> BadWord:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        return BadWord(f"unexpected command substitution at {line}:{column}")

    def _reference(self) -> str:
        behind = self._text[self._at + 1 :]
        if behind.startswith("(("):
            return self._arithmetic()
        if behind.startswith("("):
            raise self._command()
        if behind.startswith("{"):
            end = self._closing(self._at + 1, "{", "}")
            inner = self._text[self._at + 2 : end]
            self._at = end + 1
            return self._braced(inner)
        name = _NAME.match(behind)
        if name is not None:
            self._at += 1 + name.end()
            return self._look_up(name.group()) or ""
        if behind and behind[0] in _SPECIAL:
            self._at += 2
            return ""
        self._at += 1
        return "$"

    def _closing(self, opening: int, left: str, right: str) -> int:
        depth = 0
        position = opening
        while position < len(self._text):
            character = self._text[position]
            if character == "\\":
                position += 1
            elif character == left:
                depth += 1
            elif character == right:
                depth -= 1
                if depth == 0:
                    return position
            position += 1
        raise BadWord(f"{left} without its {right}")

    def _braced(self, inner: str) -> str:
        if inner.startswith("#") and _NAME.fullmatch(inner[1:]):
            return str(len(self._look_up(inner[1:]) or ""))
        name = _NAME.match(inner)
        if name is None:
            if inner in _SPECIAL:
                return ""
            raise BadWord(f"not a valid parameter expansion: ${{{inner}}}")
        value = self._look_up(name.group())
        rest = inner[name.end() :]
        if not rest:
            return value or ""
        default = _DEFAULTS.match(rest)
        if default is not None:
            return self._default(name.group(), value, default, rest[default.end() :])
        trim = _TRIM.match(rest)
        if trim is not None:
            return _trimmed(value or "", trim.group(), self._inner(rest[trim.end() :]))
        if _CASE.fullmatch(rest):
            return _in_case(value or "", rest)
        if rest.startswith(":"):
            return self._slice(value or "", rest[1:])
        if rest.startswith("/"):
            return _replaced(value or "", rest[1:], self._inner)
        raise BadWord(f"not a valid parameter expansion: ${{{inner}}}")

    def _default(self, name: str, value: str | None, form: re.Match[str], word: str) -> str:
        is_there = bool(value) if form.group(1) else value is not None
        if form.group(2) == "+":
            return self._inner(word) if is_there else ""
        if is_there:
            return value or ""
        if form.group(2) == "?":
            raise BadWord(f"{name}: {self._inner(word) or 'parameter null or not set'}")
        return self._inner(word)

    def _inner(self, text: str) -> str:
        return _Expander(text, self._look_up, self._depth + 1).run()

    def _slice(self, value: str, rest: str) -> str:
        start_text, has_length, length_text = rest.partition(":")
        start = self._number(start_text)
        if start < 0:
            start = start + len(value) if start + len(value) >= 0 else len(value)
        if not has_length:
            return value[start:]
        length = self._number(length_text)
        return value[start : start + length] if length >= 0 else value[start : len(value) + length]

    def _arithmetic(self) -> str:
        end = self._closing(self._at + 1, "(", ")")
        inner = self._text[self._at + 3 : end - 1]
        self._at = end + 1
        return str(self._number(inner))

    def _number(self, text: str) -> int:
        text = self._inner(text)
        try:
            return calculate(text, self._look_up)
        except ValueError as error:
            raise BadWord(f"cannot be calculated: {text}: {error}") from error


def _trimmed(value: str, form: str, pattern: str) -> str:
    """``value`` without what matches at its beginning (``#``) or end (``%``), doubled for the longest match."""
    matches = re.compile(fnmatch.translate(pattern)).match
    lengths = range(len(value) + 1) if len(form) == 1 else range(len(value), -1, -1)
    for length in lengths:
        piece = value[:length] if form[0] == "#" else value[len(value) - length :]
        if matches(piece):
            return value[length:] if form[0] == "#" else value[: len(value) - length]
    return value


def _replaced(value: str, rest: str, inner: Callable[[str], str]) -> str:
    """The first match replaced, every one behind ``/``, that at the beginning behind ``#``, that at the end behind ``%``."""
    form = rest[:1] if rest[:1] in ("/", "#", "%") else ""
    found = _PATTERN.match(rest, len(form))
    assert found is not None
    pattern, text = (inner((part or "").replace("\\/", "/")) for part in found.groups())
    if not pattern:
        return value
    expression = fnmatch.translate(pattern).removeprefix("(?s:").removesuffix(r")\Z")
    before, after = ("\\A" if form == "#" else ""), (r"\Z" if form == "%" else "")
    return re.sub(f"{before}(?s:{expression}){after}", lambda _: text, value, count=0 if form == "/" else 1)


def _in_case(value: str, form: str) -> str:
    """In upper (``^``) or lower case (``,``): the first character, or all where the sign is doubled."""
    changed = value.upper() if form[0] == "^" else value.lower()
    return changed if len(form) == 2 else changed[:1] + value[1:]
