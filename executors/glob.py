"""Patterns of paths and of images: doublestar globs as the reference reads them (``job-lifecycle.md`` 13.2).

``*`` and ``?`` stay within one component, ``**`` as a whole component is any depth, ``[a-z]`` ``[!a]`` ``[^a]`` are
classes, ``{a,b}`` alternatives (also across components), a backslash escapes. Everything else is literal, dots in front
included. There are no ``[[:class:]]``, no ``~``, and no ``!`` in front.
"""

from __future__ import annotations

import posixpath
import re

META = frozenset("*?[{")
ALTERNATIVES_MAX = 10_000


class BadPattern(ValueError):
    """The pattern is malformed: an unclosed class or brace, or a backslash at its end."""


def relative(pattern: str, project_dir: str) -> str | None:
    """The pattern, cleaned and relative to the project directory; None where it leads out of it."""
    root = posixpath.normpath(project_dir)
    path = posixpath.normpath(posixpath.join(root, pattern))
    if path.startswith("//"):
        path = path[1:]
    if path == root:
        return "."
    inside = root.rstrip("/") + "/"
    return path.removeprefix(inside) if path.startswith(inside) else None


def alternatives(pattern: str) -> list[str]:
    """The patterns without braces that a pattern stands for. Raises :class:`BadPattern`."""
    done: list[str] = []
    waiting = [pattern]
    while waiting:
        text = waiting.pop()
        opening = _find(text, "{")
        if opening is None:
            done.append(text)
        else:
            before, choices, behind = _split_braces(text, opening)
            waiting += [before + choice + behind for choice in reversed(choices)]
        if len(done) + len(waiting) > ALTERNATIVES_MAX:
            raise BadPattern(pattern)
    return done


def has_meta(text: str) -> bool:
    """Whether any character of a piece of a pattern is more than itself; escaped ones are not."""
    return any(character in META for _, character, escaped in _characters(text) if not escaped)


def unescape(text: str) -> str:
    """A piece of a pattern without wildcards as the name that it means."""
    return "".join(character for _, character, _ in _characters(text))


def split_static(pattern: str) -> tuple[list[str], list[str]]:
    """The components before the first one with a wildcard, and the rest. No braces in ``pattern``."""
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        if has_meta(part):
            return [unescape(before) for before in parts[:number]], parts[number:]
    return [unescape(part) for part in parts], []


def is_everything(parts: list[str]) -> bool:
    """Whether a pattern takes a directory with all in it, the directory itself included."""
    return all(part == "**" for part in parts)


def walker(parts: list[str]) -> re.Pattern[str]:
    """Matches paths below a directory, for looking files up.

    Where a ``**`` at the end may match nothing (``a*/**`` takes ``a``) it has a group, which then is not set.
    """
    if is_everything(parts):
        return re.compile(".*", re.DOTALL)
    return re.compile(_components(_collapsed(parts), trailing="(/.*)?"), re.DOTALL)


def matcher(pattern: str) -> re.Pattern[str]:
    """Matches whole relative paths, as ``exclude`` does. Raises :class:`BadPattern`.

    Of ``a/**`` the end may match nothing, so it takes ``a``; a star just before it must then match something:
    ``a*/**`` does not take ``a``, nor does ``a/**/**``. (The reference looks no further than the end of the name.)
    """
    return re.compile("|".join(_whole(text.split("/")) for text in alternatives(pattern)), re.DOTALL)


def _whole(parts: list[str]) -> str:
    if is_everything(parts):
        return ".*"
    if parts[-1] != "**":
        return _components(_collapsed(parts), trailing="")
    if parts[-2] == "**":
        return _components(_collapsed(parts), trailing="/.*")
    if re.search(r"(?<!\\)(?:\\\\)*\*+$", parts[-2]):
        below = _components(_collapsed(parts), trailing="/.*")
        itself = _components(_collapsed(parts[:-1]), trailing="").removesuffix("[^/]*") + "[^/]+"
        return f"{below}|{itself}"
    return _components(_collapsed(parts), trailing="(?:/.*)?")


def _collapsed(parts: list[str]) -> list[str]:
    """Without a ``**`` next to another."""
    return [part for number, part in enumerate(parts) if part != "**" or parts[number - 1 : number] != ["**"]]


def _components(parts: list[str], *, trailing: str) -> str:
    """``trailing`` is what a ``**`` at the end stands for, behind a component."""
    found = ""
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        if part == "**":
            found = found.removesuffix("/") + trailing if is_last else found + "(?:[^/]+/)*"
        else:
            found += _component(part) + ("" if is_last else "/")
    return found


def _component(part: str) -> str:
    found = ""
    position = 0
    while position < len(part):
        character = part[position]
        position += 1
        if character == "*":
            found += "" if found.endswith("[^/]*") else "[^/]*"
        elif character == "?":
            found += "[^/]"
        elif character == "[":
            piece, position = _class(part, position)
            found += piece
        elif character == "\\":
            if position >= len(part):
                raise BadPattern(part)
            found += re.escape(part[position])
            position += 1
        else:
            found += re.escape(character)
    return found


def _class(part: str, position: int) -> tuple[str, int]:
    """A class as a regular expression, and the position behind its ``]``."""
    negated = part[position : position + 1] in ("!", "^")
    position += negated
    ranges: list[tuple[str, str]] = []
    while position < len(part) and part[position] != "]":
        first, position = _class_character(part, position)
        last = first
        if part[position : position + 1] == "-" and part[position + 1 : position + 2] not in ("", "]"):
            last, position = _class_character(part, position + 1)
        ranges.append((first, last))
    if position >= len(part) or not ranges:
        raise BadPattern(part)
    body = "".join(f"{re.escape(first)}-{re.escape(last)}" for first, last in ranges if first <= last)
    if not body:
        return ("[^/]" if negated else r"(?!)"), position + 1
    return (f"[^/{body}]" if negated else f"(?!/)[{body}]"), position + 1


def _class_character(part: str, position: int) -> tuple[str, int]:
    if part[position] == "\\":
        position += 1
    if position >= len(part):
        raise BadPattern(part)
    return part[position], position + 1


def _characters(text: str) -> list[tuple[int, str, bool]]:
    """Position, character, and whether a backslash stands in front of it (which is left out)."""
    found = []
    position = 0
    while position < len(text):
        escaped = text[position] == "\\"
        position += escaped
        if position >= len(text):
            raise BadPattern(text)
        found.append((position, text[position], escaped))
        position += 1
    return found


def _find(text: str, wanted: str) -> int | None:
    """The first place where ``wanted`` stands unescaped and outside of classes."""
    in_class = False
    for position, character, escaped in _characters(text):
        if escaped:
            continue
        if in_class:
            in_class = character != "]"
        elif character == wanted:
            return position
        elif character == "[":
            in_class = True
    return None


def _split_braces(text: str, opening: int) -> tuple[str, list[str], str]:
    depth = 0
    start = opening + 1
    choices: list[str] = []
    for position, character, escaped in _characters(text):
        if escaped or position < opening:
            continue
        if character == "{":
            depth += 1
        elif character == "," and depth == 1:
            choices.append(text[start:position])
            start = position + 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return text[:opening], [*choices, text[start:position]], text[position + 1 :]
    raise BadPattern(text)
