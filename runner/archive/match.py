"""Choosing files for an archive (``job-lifecycle.md`` 13.2): a listing and patterns in, members and log lines out. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from executors.glob import BadPattern, alternatives, is_everything, matcher, relative, split_static, walker
from executors.workspace import Entry

HOPS_MAX = 40
ROOT = "."


class Level(StrEnum):
    """How a line is shown: as it is, or behind ``WARNING:``, ``ERROR:`` or ``FATAL:``."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class Line:
    """A line for the job's log, without colour and padding."""

    level: Level
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """``members`` in the order of the archive: by path, so that a directory comes before what is in it, the project
    directory itself (``.``) first; each path once. ``lines`` in the order in which they are shown."""

    members: tuple[Entry, ...]
    lines: tuple[Line, ...]


class LeadsOut(Exception):
    """A link on the way leads out of the project directory; names the link."""


def select(
    entries: Sequence[Entry],
    project_dir: str,
    *,
    paths: Sequence[str],
    exclude: Sequence[str] = (),
    untracked: Sequence[str] | None = None,
) -> Selection:
    """What ``paths`` and ``untracked`` choose of a listing of the project directory, less what ``exclude`` matches.

    ``entries`` are those of :func:`runner.archive.listing.list_for`, or all; one with the path ``.`` is the project
    directory itself, which is made up where there is none (0755, as new as the newest entry).
    Patterns are expanded already. ``untracked`` are the paths that ``git ls-files -o`` named, None where they are not asked
    for. A member that was reached through a link inside the project keeps the path that the pattern gave it, and
    ``source`` is where it lies. What lies behind a link that leads out is refused with a warning. Sockets, FIFOs and
    devices are named in a warning, never members.
    """
    return _Choice(_Tree(entries, project_dir), exclude).run(paths, untracked)


def shown(path: str) -> str:
    """A path fit for a line of log: control characters and bytes that are no UTF-8 are escaped."""
    return "".join(character if character.isprintable() else _escaped(character) for character in path)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


class _Tree:
    """A listing as something to look paths up in."""

    def __init__(self, entries: Iterable[Entry], project_dir: str) -> None:
        self.project_dir = project_dir
        self._entries = {entry.path: entry for entry in entries}
        newest_ns = max((entry.mtime_ns for entry in self._entries.values()), default=0)
        self.root = self._entries.pop(ROOT, Entry(path=ROOT, kind="dir", mode=0o755, size=0, mtime_ns=newest_ns))
        self._paths = sorted(self._entries)

    def get(self, path: str) -> Entry | None:
        return self.root if path in ("", ROOT) else self._entries.get(path)

    def below(self, path: str) -> Sequence[str]:
        """Paths of everything below a directory."""
        if path in ("", ROOT):
            return self._paths
        # "0" is the character behind "/": everything that begins with "path/" lies in between.
        return self._paths[bisect_left(self._paths, f"{path}/") : bisect_left(self._paths, f"{path}0")]

    def resolve(self, path: str, *, last: bool) -> str | None:
        """Where a path really lies, links followed (that of the last component only with ``last``).

        The project directory is ``""``. None where nothing is there; raises :class:`LeadsOut`.
        """
        waiting = [part for part in reversed(path.split("/")) if part not in ("", ROOT)]
        done: list[str] = []
        hops = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                if not done:
                    raise LeadsOut(path)
                done.pop()
                continue
            here = "/".join([*done, part])
            entry = self.get(here)
            if entry is None:
                return None
            if entry.kind != "link" or (not waiting and not last):
                if waiting and entry.kind != "dir":
                    return None
                done.append(part)
                continue
            hops += 1
            if hops > HOPS_MAX:
                return None
            target = entry.target
            if target.startswith("/"):
                inside = relative(target, self.project_dir)
                if inside is None:
                    raise LeadsOut(here)
                done, target = [], inside
            waiting += [part for part in reversed(target.split("/")) if part not in ("", ROOT)]
        return "/".join(done)


@dataclass(frozen=True, slots=True)
class _Exclude:
    pattern: str
    matches: re.Pattern[str] | None
    is_outside: bool
    taken: set[str]


class _Choice:
    """One selection while it is being made."""

    def __init__(self, tree: _Tree, exclude: Sequence[str]) -> None:
        self._tree = tree
        self._lines: list[Line] = []
        self._members: dict[str, Entry] = {}
        self._excludes = [_exclude(pattern, tree.project_dir) for pattern in exclude if pattern]

    def run(self, paths: Sequence[str], untracked: Sequence[str] | None) -> Selection:
        for pattern in paths:
            self._process(pattern)
        if untracked is not None:
            self._process_untracked(untracked)
        for exclude in self._excludes:
            if exclude.taken:
                self._say(Level.INFO, f"{exclude.pattern}: excluded {len(exclude.taken)} files")
        order = sorted(self._members, key=lambda path: (path != ROOT, path))
        return Selection(members=tuple(self._members[path] for path in order), lines=tuple(self._lines))

    def _say(self, level: Level, text: str) -> None:
        self._lines.append(Line(level, text))

    def _process(self, pattern: str) -> None:
        if not pattern:
            self._say(Level.WARNING, "No matching files. Path is empty.")
            return
        inside = relative(pattern, self._tree.project_dir)
        if inside is None:
            self._say(Level.WARNING, f"processPath: artifact path is not a subpath of project directory: {pattern}")
            return
        try:
            matches = [match for text in alternatives(inside) for match in self._look_up(text)]
        except BadPattern:
            self._say(Level.WARNING, f"{pattern}: syntax error in pattern")
            return
        except LeadsOut as error:
            text = f"{pattern}: {shown(str(error))} is a link out of the project directory, nothing behind it is archived"
            self._say(Level.WARNING, text)
            return
        special: list[str] = []
        count = self._take(matches, special)
        if special:
            more = f" and {len(special) - 1} more" if len(special) > 1 else ""
            self._say(Level.WARNING, f"{pattern}: {shown(special[0])}{more}: sockets, FIFOs and devices are not archived")
        if count:
            self._say(Level.INFO, f"{pattern}: found {count} matching artifact files and directories")
        elif not special:
            hint = f"Ensure that the artifact path is relative to the working directory ({self._tree.project_dir})"
            self._say(Level.WARNING, f"{pattern}: no matching files. {hint}")

    def _process_untracked(self, untracked: Sequence[str]) -> None:
        paths = [path.rstrip("/") for path in untracked]
        count = self._take([(path, path) for path in paths], [])
        if count:
            self._say(Level.INFO, f"untracked: found {count} files")
        else:
            self._say(Level.WARNING, "untracked: no files")

    def _look_up(self, pattern: str) -> Iterator[tuple[str, str]]:
        """Names that a pattern without braces selects, and where they lie, with everything below directories."""
        static, rest = split_static(pattern)
        if not rest:
            yield from self._look_up_name(pattern) or self._look_up_name("/".join(static))
            return
        finder = walker(rest)
        name = "/".join(static)
        base = self._tree.resolve(name, last=True)
        about = None if base is None else self._tree.get(base)
        if base is None or about is None or about.kind != "dir":
            return
        if is_everything(rest):
            yield (name or ROOT, base or ROOT)
        below = self._tree.below(base)
        skip = len(base) + 1 if base else 0
        yield from self._expand(name, skip, self._matching(below, skip, finder))

    def _look_up_name(self, name: str) -> list[tuple[str, str]]:
        """A name without wildcards: it must be there when links are followed, and is taken as it is."""
        try:
            is_there = self._tree.resolve(name, last=True) is not None
        except LeadsOut:
            is_there = True
        place = self._tree.resolve(name, last=False) if is_there else None
        if place is None:
            return []
        if place == "":
            return [(ROOT, ROOT), *((path, path) for path in self._tree.below(""))] if name in ("", ROOT) else []
        return list(self._expand(name, len(place) + 1, [place]))

    def _matching(self, paths: Sequence[str], skip: int, finder: re.Pattern[str]) -> Iterator[str]:
        for path in paths:
            found = finder.fullmatch(path, skip)
            if found is None:
                continue
            entry = self._tree.get(path)
            # What stands before a slash is a directory, also where the ** behind it matched nothing.
            if found.lastindex is None and finder.groups and entry is not None and entry.kind != "dir":
                continue
            yield path

    def _expand(self, name: str, skip: int, places: Iterable[str]) -> Iterator[tuple[str, str]]:
        """``places`` and all below them, each once, under ``name``; ``skip`` characters of a place are in ``name``."""
        seen: set[str] = set()
        for place in places:
            if place in seen:
                continue
            for path in (place, *self._tree.below(place)):
                if path not in seen:
                    seen.add(path)
                    yield ("/".join(filter(None, (name, path[skip:]))), path)

    def _take(self, matches: Iterable[tuple[str, str]], special: list[str]) -> int:
        taken: set[str] = set()
        for name, place in matches:
            entry = self._tree.get(place)
            if entry is None or name in taken or self._is_excluded(name):
                continue
            if entry.kind == "other":
                if name not in special:
                    special.append(name)
                continue
            taken.add(name)
            if name not in self._members:
                self._members[name] = entry if name == place else entry._replace(path=name, source=place)
        return len(taken)

    def _is_excluded(self, name: str) -> bool:
        for number, exclude in enumerate(self._excludes):
            if exclude.is_outside:
                text = f"isExcluded: artifact path is not a subpath of project directory: {exclude.pattern}"
                self._say(Level.WARNING, text)
                self._excludes[number] = replace(exclude, is_outside=False)
            if exclude.matches is not None and exclude.matches.fullmatch(name):
                exclude.taken.add(name)
                return True
        return False


def _exclude(pattern: str, project_dir: str) -> _Exclude:
    """A malformed pattern excludes nothing, and nobody is told (as the reference)."""
    inside = relative(pattern, project_dir)
    try:
        matches = None if inside is None else matcher(inside)
    except BadPattern:
        matches = None
    return _Exclude(pattern, matches, inside is None, set())
