"""Patterns against a second reading of the rules, written for clearness alone."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from executors.glob import BadPattern, matcher
from executors.workspace import Entry
from runner.archive.match import select

PARTS = ["a", "b", "ab", "*", "?", "[ab]", "[!a]", "{a,b}", "{a,b/a}", "**", "a*", "*b", "\\a", "a**", "?b", "[a-b]*"]
PATTERNS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join)
NAMES = st.lists(st.sampled_from(["a", "b", "ab", "ba", "c", ".a"]), min_size=1, max_size=4)


def without_braces(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    before, _, rest = pattern.partition("{")
    inside, _, behind = rest.partition("}")
    return [text for choice in inside.split(",") for text in without_braces(before + choice + behind)]


def fits(pattern: str, name: str) -> bool:
    """Whether one component matches."""
    if not pattern:
        return not name
    if pattern[0] == "*":
        return fits(pattern[1:], name) or (bool(name) and fits(pattern, name[1:]))
    if not name:
        return False
    if pattern[0] == "[":
        inside, _, behind = pattern[1:].partition("]")
        negated = inside.startswith("!")
        letters = {"a-b": "ab"}.get(inside.lstrip("!"), inside.lstrip("!"))
        return (name[0] in letters) != negated and fits(behind, name[1:])
    if pattern[0] == "\\":
        return name[0] == pattern[1] and fits(pattern[2:], name[1:])
    return pattern[0] in ("?", name[0]) and fits(pattern[1:], name[1:])


def leads_to(parts: list[str], names: list[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == "**":
        return any(leads_to(parts[1:], names[taken:]) for taken in range(len(names) + 1))
    return bool(names) and fits(parts[0], names[0]) and leads_to(parts[1:], names[1:])


@given(PATTERNS, NAMES)
def test_exclusion_is_that_of_a_plain_reading(pattern: str, names: list[str]) -> None:
    texts = without_braces(pattern)
    # Of what comes before a ** at the end the reference has its own reading: see test_match.py.
    assume(not any(text.endswith("/**") and text[-4] in "*" for text in texts))
    want = any(leads_to(text.split("/"), names) for text in texts)
    assert bool(matcher(pattern).fullmatch("/".join(names))) == want


@given(PATTERNS, st.lists(NAMES, max_size=8))
def test_a_choice_is_that_of_a_plain_reading(pattern: str, files: list[list[str]]) -> None:
    tree: dict[str, str] = {}
    for names in files:
        path = "/".join(names)
        if path in tree or any(tree.get("/".join(names[:length])) == "file" for length in range(1, len(names))):
            continue
        tree |= {"/".join(names[:length]): "dir" for length in range(1, len(names))}
        tree[path] = "file"
    entries = [Entry(path=path, kind=kind, mode=0o644, size=0, mtime_ns=0) for path, kind in tree.items()]
    roots = [path for path in tree if any(chosen(text.split("/"), path, tree[path]) for text in without_braces(pattern))]
    want = {path for path in tree if any(path == root or path.startswith(f"{root}/") for root in roots)}
    found = {member.path for member in select(entries, "/p", paths=[pattern]).members} - {"."}
    assert found == want | (set(tree) if set(without_braces(pattern)) & {"**", "**/**", "**/**/**", "**/**/**/**"} else set())


def chosen(parts: list[str], path: str, kind: str) -> bool:
    """What stands before a ** that matches nothing is a directory."""
    names = path.split("/")
    if parts[-1] != "**":
        return leads_to(parts, names)
    if kind == "dir" and leads_to(parts[:-1], names):
        return True
    return any(leads_to(parts[:-1], names[:length]) for length in range(len(names)))


@given(st.text("ab*?[]{},!^-\\/", max_size=30), st.text("ab/-", max_size=20))
def test_any_pattern_is_read_or_refused(pattern: str, name: str) -> None:
    try:
        matcher(pattern).fullmatch(name)
    except BadPattern:
        pass


@given(st.text("ab*?[]{},!^-\\/.", max_size=30))
def test_any_pattern_chooses_only_what_is_there(pattern: str) -> None:
    tree = [Entry(path=path, kind="file", mode=0, size=0, mtime_ns=0) for path in ("a", "b", "ab")]
    selection = select(tree, "/p", paths=[pattern], exclude=[pattern])
    assert {member.path for member in selection.members} <= {"a", "b", "ab", "."}


@pytest.mark.parametrize("pattern", ["{a,b}" * 40, "*" * 5000 + "x", "**/" * 300 + "x", "[" * 3000, "{" * 3000, "a*" * 200 + "z"])
def test_patterns_that_grow_are_bounded(pattern: str) -> None:
    tree = [Entry(path="a" * 200, kind="file", mode=0, size=0, mtime_ns=0)]
    assert select(tree, "/p", paths=[pattern], exclude=[posixpath.join("x", pattern)]).members == ()
