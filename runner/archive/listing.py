"""Listing what patterns may select, and no more of a big tree than that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from executors.glob import BadPattern, alternatives, relative, split_static
from executors.workspace import Entry, Workspace
from runner.archive.match import ROOT


async def list_for(workspace: Workspace, project_dir: str, paths: Sequence[str]) -> list[Entry]:
    """Entries that :func:`runner.archive.match.select` needs for ``paths``: directories on the way to the first wildcard
    with what stands beside them, everything behind it. Through a link, everything there is."""
    prefixes = list(dict.fromkeys(prefix for pattern in paths for prefix in _prefixes(pattern, project_dir)))
    if any(not prefix for prefix in prefixes):
        return await workspace.list(project_dir)
    found: dict[str, Entry] = {}
    listed: set[tuple[str, ...]] = set()
    for prefix in prefixes:
        for length in range(len(prefix)):
            above = prefix[:length]
            if above not in listed:
                listed.add(above)
                await _add(workspace, project_dir, above, found, max_depth=1)
            about = found.get("/".join(prefix[: length + 1]))
            if about is None or about.kind == "file":
                break
            if about.kind == "link":
                return await workspace.list(project_dir)
        else:
            await _add(workspace, project_dir, prefix, found, max_depth=None)
    return list(found.values())


async def _add(
    workspace: Workspace, project_dir: str, place: tuple[str, ...], found: dict[str, Entry], *, max_depth: int | None
) -> None:
    before = "".join(f"{part}/" for part in place)
    for entry in await workspace.list(f"{project_dir}/{before}".rstrip("/"), max_depth=max_depth):
        path = before + entry.path
        found[path] = Entry(path, *entry[1:]) if before else entry


def _prefixes(pattern: str, project_dir: str) -> Iterable[tuple[str, ...]]:
    """Components before the first wildcard, for each alternative; empty ones mean the project directory."""
    inside = relative(pattern, project_dir) if pattern else None
    if inside is None:
        return
    try:
        for text in alternatives(inside):
            static, rest = split_static(text)
            yield tuple(part for part in static if part != ROOT)
            if not rest:
                # A name without wildcards may also stand for itself, backslashes included.
                yield tuple(part for part in text.split("/") if part != ROOT)
    except BadPattern:
        return
