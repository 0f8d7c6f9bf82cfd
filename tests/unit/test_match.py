"""Which files a pattern selects: the recorded tables of the reference, looked up in a real tree."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from executors.file_operations import Roots, list_tree
from executors.glob import matcher, relative
from executors.workspace import Entry, Workspace
from runner.archive.listing import list_for
from runner.archive.match import Level, Selection, select
from tests.contract import golden

TABLES = ("artifact-patterns-table-1", "artifact-patterns-table-2", "artifact-excludes-table", "cache-patterns-table")
PROJECT = "project-empty"


def rows() -> Iterator[Any]:
    for table in TABLES:
        if table not in golden.scenarios("files"):
            continue
        for row in golden.read("files", table)["table"]:
            texts = [*row["paths"], *row.get("exclude", ())]
            # Expanding variables is not what is tried here.
            if not re.search(r"[$`]|\\\\", "".join(texts)):
                yield pytest.param(row, id=f"{table}-{row['number']}-{'|'.join(texts)}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("tree") / PROJECT
    project.mkdir()
    if TABLES[0] in golden.scenarios("files"):
        (step,) = golden.read("files", TABLES[0])["jobs"][0]["payload"]["steps"]
        subprocess.run(["bash", "-c", "\n".join(step["script"])], cwd=project, check=True)
    return project


def to_entries(found: list[Any]) -> list[Entry]:
    names = ("path", "kind", "mode", "size", "mtime_ns", "target")
    return [Entry(**dict(zip(names, values, strict=False))) for values in found]


def listing(project: Path) -> list[Entry]:
    return to_entries(list_tree(Roots([str(project)]), str(project), None))


def choose(project: Path, *paths: str, exclude: tuple[str, ...] = (), untracked: list[str] | None = None) -> Selection:
    return select(listing(project), str(project), paths=paths, exclude=exclude, untracked=untracked)


def entries(selection: Selection) -> list[str]:
    return ["./" if m.path == "." else f"{m.path}/" if m.kind == "dir" else m.path for m in selection.members]


def text(selection: Selection) -> list[str]:
    prefix = {Level.INFO: "", Level.WARNING: "WARNING: ", Level.ERROR: "ERROR: "}
    return [(prefix[line.level] + line.text).partition(" Ensure that")[0] for line in selection.lines]


@pytest.mark.parametrize("row", [*rows()])
def test_selects_what_the_reference_selects(row: dict[str, Any], tree: Path) -> None:
    selection = choose(tree, *row["paths"], exclude=tuple(row.get("exclude", ())))
    assert sorted(entries(selection)) == sorted(row["entries"] or [])
    found = re.compile(r": (found|excluded) \d+ ")
    shown = [found.sub(r": \1 N ", line) for line in text(selection) if "FIFO" not in line]
    wanted = [found.sub(r": \1 N ", line) for line in row["log"] if not line.endswith((" to upload", " to cache."))]
    wanted = [line for number, line in enumerate(wanted) if "isExcluded" not in line or line not in wanted[:number]]
    if row["entries"] == []:
        wanted = []
    if row["paths"] == [" "]:
        wanted = ["WARNING:  : no matching files."]
    assert sorted(shown) == sorted(wanted)


def test_found_counts_what_is_packed(tree: Path) -> None:
    everything = choose(tree, "**")
    assert f"**: found {len(everything.members)} matching artifact files and directories" in text(everything)


def test_order_is_by_path_with_directories_first(tree: Path) -> None:
    found = entries(choose(tree, "a/b", "**"))
    assert found[0] == "./"
    for path in found[1:]:
        parent = path.rstrip("/").rpartition("/")[0]
        assert not parent or found.index(f"{parent}/") < found.index(path)


def test_special_files_are_named_and_left_out(tree: Path) -> None:
    assert text(choose(tree, "fifo")) == ["WARNING: fifo: fifo: sockets, FIFOs and devices are not archived"]


@pytest.mark.parametrize("target", ["..", "/etc", "../..", "loop/../../x"])
@pytest.mark.parametrize("pattern", ["out/*", "out/hostname", "out/**", "in/out/*"])
def test_nothing_behind_a_link_out_is_selected(tmp_path: Path, target: str, pattern: str) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "out").symlink_to(target)
    (tmp_path / "in").symlink_to(".")
    selection = choose(tmp_path, pattern)
    assert not selection.members
    assert "is a link out of the project directory" in text(selection)[0]


def test_a_name_with_a_backslash_is_looked_up_as_it_stands(tmp_path: Path) -> None:
    for name in ("a\\b", "ab", "c*d", "c-d", "ef"):
        (tmp_path / name).touch()
    assert entries(choose(tmp_path, "a\\b")) == ["a\\b"]
    assert entries(choose(tmp_path, "c\\*d")) == ["c*d"]
    assert entries(choose(tmp_path, "e\\f")) == ["ef"]


def test_a_link_to_nothing_is_selected_by_patterns_only(tmp_path: Path) -> None:
    (tmp_path / "link-gone").symlink_to("nowhere")
    assert entries(choose(tmp_path, "link-*")) == ["link-gone"]
    assert not choose(tmp_path, "link-gone").members


def test_an_exclude_outside_is_named_once(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).touch()
    selection = choose(tmp_path, "a", "*", exclude=("/etc/x", "../y", "b"))
    assert entries(selection) == ["a", "c"]
    assert [line for line in text(selection) if "isExcluded" in line] == [
        "WARNING: isExcluded: artifact path is not a subpath of project directory: /etc/x",
        "WARNING: isExcluded: artifact path is not a subpath of project directory: ../y",
    ]


def test_a_link_out_is_archived_as_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/etc")
    assert entries(choose(tmp_path, "out")) == ["out"]
    assert entries(choose(tmp_path, "*")) == ["out"]


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert not choose(tmp_path, "a/x", "a", "b/*").members


def test_a_member_behind_a_link_knows_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (member,) = choose(tmp_path, "link/x").members
    assert (member.path, member.source) == ("link/x", "real/x")


def test_untracked_files_meet_exclude(tmp_path: Path) -> None:
    for name in ("a", "b.log"):
        (tmp_path / name).touch()
    selection = choose(tmp_path, exclude=("*.log",), untracked=["a", "b.log", "gone"])
    assert entries(selection) == ["a"]
    assert text(selection) == ["untracked: found 1 files", "*.log: excluded 1 files"]


def test_names_cannot_write_lines_of_log(tmp_path: Path) -> None:
    (tmp_path / "x\nsection_start:1:y\r\x1b[0K").symlink_to("/etc")
    for line in choose(tmp_path, "x\nsection_start:1:y\r\x1b[0K/*").lines:
        assert "section_start:1:y\r" not in line.text.partition(": ")[2]


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("a*/**", "a", False),
        ("a*/**", "ab", True),
        ("a*/**", "a/x", True),
        ("a/**/**", "a", False),
        ("a/**/**", "a/x", True),
        ("**/.*/**", ".", False),
        ("**/.*", ".", True),
        ("a[!b]c", "a/c", False),
        ("[z-a]", "m", False),
        ("[a-]", "-", True),
        ("[\\]]", "]", True),
        ("{a,b{c,d}}", "bd", True),
        ("{a\\,b}", "a,b", True),
        ("[{]", "{", True),
    ],
)
def test_excludes_match_whole_paths(pattern: str, path: str, matches: bool) -> None:
    assert bool(matcher(pattern).fullmatch(path)) is matches


def test_many_alternatives_are_refused(tmp_path: Path) -> None:
    assert "syntax error in pattern" in text(choose(tmp_path, "{a,b}" * 20))[0]


def test_patterns_are_relative_to_the_project() -> None:
    assert relative("../p/x", "/r/p") == "x"
    assert relative("/r/p2/x", "/r/p") is None
    assert relative("//r/p/x", "/r/p/") == "x"


class Files:
    """The part of a workspace that lists, on this host's files."""

    def __init__(self) -> None:
        self.listed: list[str] = []

    async def list(self, root: str, *, max_depth: int | None = None) -> list[Entry]:
        self.listed.append(root)
        return to_entries(list_tree(Roots([root]), root, max_depth))


@pytest.mark.parametrize("row", [*rows()])
async def test_a_partial_listing_selects_the_same(row: dict[str, Any], tree: Path) -> None:
    found = await list_for(cast("Workspace", Files()), str(tree), row["paths"])
    partial = select(found, str(tree), paths=row["paths"], exclude=row.get("exclude", ()))
    whole = choose(tree, *row["paths"], exclude=tuple(row.get("exclude", ())))
    # Of a listing that is not whole the newest entry is another one.
    assert [m for m in partial.members if m.path != "."] == [m for m in whole.members if m.path != "."]
    assert partial.lines == whole.lines


async def test_only_what_a_pattern_needs_is_listed(tree: Path) -> None:
    files = Files()
    await list_for(cast("Workspace", files), str(tree), ["a/b/*.txt", "top.txt", "nope/x"])
    assert files.listed == [str(tree), f"{tree}/a", f"{tree}/a/b"]
