"""Where keys stand in a TOML text: no parser of the language says it."""

from __future__ import annotations

import re

_HEADER = re.compile(r"\s*(\[\[|\[)\s*([^\]]+?)\s*(?:\]\]|\])")
_KEY = re.compile(r"""\s*((?:"[^"]*"|'[^']*'|[A-Za-z0-9_\-]+)(?:\s*\.\s*(?:"[^"]*"|'[^']*'|[A-Za-z0-9_\-]+))*)\s*=""")

Path = tuple[str | int, ...]


class Positions:
    """Line and column of every header and key, by path: ``("runners", 0, "limit")``; names in lower case."""

    def __init__(self, text: str) -> None:
        self._places: dict[Path, tuple[int, int]] = {}
        self._counts: dict[Path, int] = {}
        self._scan(text)

    def find(self, *path: str | int) -> tuple[int, int]:
        """Line and column, (0, 0) when the path is not in the text; the nearest table above counts too."""
        wanted = tuple(part.lower() if isinstance(part, str) else part for part in path)
        while wanted:
            if wanted in self._places:
                return self._places[wanted]
            wanted = wanted[:-1]
        return 0, 0

    def _scan(self, text: str) -> None:
        table: Path = ()
        closing = ""
        for number, line in enumerate(text.splitlines(), start=1):
            if closing:
                if closing in line:
                    closing = ""
                continue
            header = _HEADER.match(line)
            if header is not None and "=" not in line.partition("]")[0]:
                table = self._open(header.group(2), is_array=header.group(1) == "[[")
                self._places.setdefault(table, (number, line.index("[") + 1))
                continue
            key = _KEY.match(line)
            if key is not None:
                path = (*table, *_parts(key.group(1)))
                self._places.setdefault(path, (number, len(line) - len(line.lstrip()) + 1))
                closing = _open_string(line[key.end() :])

    def _open(self, name: str, *, is_array: bool) -> Path:
        path: Path = ()
        parts = _parts(name)
        for index, part in enumerate(parts):
            path = (*path, part)
            if index + 1 == len(parts) and is_array:
                count = self._counts.get(path, -1) + 1
                self._counts[path] = count
                return (*path, count)
            if path in self._counts:
                path = (*path, self._counts[path])
        return path


def _parts(name: str) -> list[str]:
    return [part.strip().strip("\"'").lower() for part in name.split(".")]


def _open_string(rest: str) -> str:
    """The delimiter of a multi-line string that begins in this line and does not end in it."""
    for mark in ('"""', "'''"):
        if rest.count(mark) % 2:
            return mark
    return ""
