"""Stages as shell: the same choice of files as the other executors make, under every shell that a place may have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from executors.base import ExitStatus, PlaceFacts
from executors.custom.config import CustomConfig
from executors.custom.exits import failure_of
from executors.custom.reply import BadReply, parse_reply
from executors.errors import ReportedFailure
from executors.workspace import Entry
from runner.archive.match import select
from runner.job.rendered import tools
from runner.job.rendered.sources import FILES
from runner.job.rendered.words import in_double_quotes, pattern_word
from runner.job.script import frame, quote
from runner.job.words import expand_word

SHELLS = [["bash"], ["dash"], *([["busybox", "sh"]] if shutil.which("busybox") else [])]
shells = pytest.mark.parametrize("shell", SHELLS, ids=" ".join)


def run(shell: list[str], text: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = cwd.parent / "script"
    path.write_bytes(frame("sh", text))
    found = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **environment}
    return subprocess.run([*shell, path], cwd=cwd, env=found, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name in (
        "a/1.txt",
        "a/b/2.txt",
        "a/b/c/3.log",
        "x.log",
        "y.log",
        ".h/4",
        "sp ace/5 .txt",
        "br[1].c",
        "st*r",
        "q?",
        "up/a+b.c",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / "empty").mkdir()
    (root / "link").symlink_to("x.log")
    (root / "dangling").symlink_to("nowhere")
    return root


def entries(root: Path) -> list[Entry]:
    found = []
    for path in sorted(root.rglob("*")):
        kind = "link" if path.is_symlink() else "dir" if path.is_dir() else "file"
        target = os.readlink(path) if kind == "link" else ""
        found.append(Entry(path=str(path.relative_to(root)), kind=kind, mode=0o644, size=1, mtime_ns=0, target=target))
    return [Entry(path=".", kind="dir", mode=0o755, size=0, mtime_ns=0), *found]


PATTERNS = [
    (["a"], []),
    (["a/"], []),
    (["a/*"], []),
    (["a/**"], []),
    (["a/**/*.txt"], []),
    (["**/*.log"], ["x.log"]),
    (["*"], [".h/**", "a/b"]),
    (["."], ["**/*.txt"]),
    (["**"], []),
    (["{x,y}.log"], []),
    (["[xy].log", "[!x].log"], []),
    ([".h", "sp ace"], []),
    (["br\\[1\\].c", "st\\*r", "q\\?"], []),
    (["up/a+b.c"], []),
    (["./a//1.txt", "a/../x.log"], []),
    (["?.log"], ["y*"]),
    (["link"], []),
    (["d*"], []),
    (["empty"], []),
    (["a/b/**/*"], ["a/b/c"]),
    (["***"], []),
    (["x**"], []),
]


@shells
@pytest.mark.parametrize(("paths", "exclude"), PATTERNS, ids=str)
def test_files_are_those_that_other_executors_choose(shell: list[str], paths: list[str], exclude: list[str], tree: Path) -> None:
    body = FILES + tools.SAY + tools.CHOOSE + f"pyrunner_dir={quote(str(tree.parent / 'own'))}\npyrunner_begin\n"
    body += "".join(f"pyrunner_pattern i {quote(path)}\n" for path in paths)
    body += "".join(f"pyrunner_pattern x {quote(path)}\n" for path in exclude)
    done = run(shell, body + 'if pyrunner_choose ""; then cat "$pyrunner_dir/list"; fi\n', tree)
    assert done.returncode == 0, done.stderr
    ours = {line.removeprefix("./") for line in done.stdout.splitlines()}
    selection = select(entries(tree), str(tree), paths=paths, exclude=exclude, untracked=None)
    assert ours == {member.path for member in selection.members} - {"."}
    for line in selection.lines:
        assert line.text.partition(":")[0] in done.stderr


@shells
@pytest.mark.parametrize(
    ("paths", "complaint"),
    [
        ([""], "No matching files. Path is empty."),
        (["nope"], "nope: no matching files. Ensure that the artifact path is relative to the working directory"),
        (["dangling"], "dangling: no matching files."),
        (["../*"], "processPath: artifact path is not a subpath of project directory: ../*"),
        (["/etc/passwd"], "processPath: artifact path is not a subpath of project directory: /etc/passwd"),
        (["[z"], "[z: syntax error in pattern"),
        (["{a,b"], "{a,b: syntax error in pattern"),
    ],
    ids=str,
)
def test_what_selects_nothing_is_named(shell: list[str], paths: list[str], complaint: str, tree: Path) -> None:
    body = FILES + tools.SAY + tools.CHOOSE + f"pyrunner_dir={quote(str(tree.parent / 'own'))}\npyrunner_begin\n"
    body += "".join(f"pyrunner_pattern i {quote(path)}\n" for path in paths)
    done = run(shell, body + 'pyrunner_choose "" || echo nothing\n', tree)
    assert done.stdout == "nothing\n"
    assert f"WARNING: {complaint}" in done.stderr


TEXTS = [
    "plain",
    "$A",
    "${A}/x",
    "${A:-d}",
    "${B:-d}",
    'q"uote',
    "it's",
    "back\\slash",
    "\\$A",
    "$",
    "a$",
    "$$",
    "tail\\",
    "${A}$B!",
    "x\\\\y",
]


@shells
@pytest.mark.parametrize("text", TEXTS)
def test_words_are_expanded_as_everywhere(shell: list[str], text: str, tmp_path: Path) -> None:
    if text == "$$":
        pytest.skip("a shell has another idea of it, which is as good as nothing")
    body = "".join(pattern_word("found", text, "path")) + 'printf "%s." "$found"\n'
    (tmp_path / "in").mkdir()
    done = run(shell, body, tmp_path / "in", A="value")
    assert done.stdout == expand_word(text, {"A": "value"}.get) + ".", done.stderr


@shells
@pytest.mark.parametrize("text", ["$(touch pwned)", "`touch pwned`", "${A:-$(touch pwned)}", '"; touch pwned; "', "$(("])
def test_words_run_no_commands(shell: list[str], text: str, tmp_path: Path) -> None:
    place = tmp_path / "in"
    place.mkdir()
    body = tools.SAY + "".join(pattern_word("found", text, "path")) + 'printf "%s" "$found"\n'
    done = run(shell, body, place)
    assert done.stdout == text
    assert list(place.iterdir()) == []


def test_what_only_bash_expands_stays_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    body = "".join(pattern_word("found", "${A:0:2}x", "path")) + 'printf "%s" "$found"\n'
    assert run(["bash"], body, tmp_path / "in", A="value").stdout == "vax"
    assert run(["dash"], body, tmp_path / "in", A="value").stdout == "${A:0:2}x"


def test_a_word_in_quotes_ends_where_it_ends() -> None:
    assert in_double_quotes('a"b\\') == '"a\\"b\\\\"'


@shells
@pytest.mark.parametrize("form", ["zip", "tarzstd"])
def test_what_is_packed_comes_back(shell: list[str], form: str, tree: Path) -> None:
    if shell[0] == "busybox" and form == "tarzstd":
        pytest.skip("its tar takes no list of files")
    (tree / "a" / "1.txt").chmod(0o755)
    own = quote(str(tree.parent / "own"))
    body = FILES + tools.SAY + tools.CHOOSE + tools.PACK + tools.UNPACK + f"pyrunner_dir={own}\npyrunner_begin\n"
    body += "pyrunner_pattern i .\npyrunner_choose silently\n"
    body += f"pyrunner_pack {form} {own}/it.zip fastest || exit 9\nmkdir ../back; cd ../back\n"
    body += f"pyrunner_unpack {own}/it.zip || exit 8\n"
    done = run(shell, body, tree)
    assert done.returncode == 0, done.stderr
    back = tree.parent / "back"
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*")) == names
    assert (back / "a" / "1.txt").read_text() == "a/1.txt"
    assert (back / "a" / "1.txt").stat().st_mode & 0o777 == 0o755
    assert os.readlink(back / "link") == "x.log"


@shells
def test_archives_do_not_lead_out(shell: list[str], tree: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tree.parent / "evil.zip", "w") as archive:
        archive.writestr("../evil", "x")
    own = quote(str(tree.parent / "own"))
    body = FILES + tools.SAY + tools.CHOOSE + tools.UNPACK + f"pyrunner_dir={own}\npyrunner_begin\n"
    done = run(shell, body + "pyrunner_unpack ../evil.zip || exit 8\n", tree)
    assert not (tree.parent / "evil").exists()
    if shell[0] != "busybox":  # its unzip takes such names for ones below the directory
        assert done.returncode == 8
        assert f"FATAL: {tree.parent}/evil cannot be extracted outside of chroot ({tree})" in done.stderr


# What a driver says, and how it ends


def test_a_reply_says_what_the_place_is_like() -> None:
    said = {
        "driver": {"name": "my driver", "version": "v1"},
        "hostname": "h",
        "builds_dir": "/b",
        "cache_dir": "/c",
        "builds_dir_is_shared": True,
        "job_env": {"A": "1"},
        "shell": "sh",
        "unknown": [1],
    }
    assert parse_reply(json.dumps(said).encode()) == PlaceFacts(
        driver="my driver v1",
        hostname="h",
        builds_dir="/b",
        cache_dir="/c",
        is_shared=True,
        shell="sh",
        environment={"A": "1"},
    )
    assert parse_reply(b" \n") == PlaceFacts()
    assert parse_reply(b'{"builds_dir": null, "driver": null}') == PlaceFacts()


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        (b"nope", "invalid character 'o' in literal null (expecting 'u')"),
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b"{", "unexpected end of JSON input"),
        (b"{} x", "invalid character 'x' after top-level value"),
        (b"[1]", "an object was expected"),
        (b'{"shell": 1}', "shell is no text"),
    ],
)
def test_a_bad_reply_is_named(printed: bytes, complaint: str) -> None:
    with pytest.raises(BadReply, match="error while parsing JSON output: ") as caught:
        parse_reply(printed)
    assert complaint in str(caught.value)


def test_exit_codes_of_a_driver(tmp_path: Path) -> None:
    file = tmp_path / "code"
    assert failure_of(ExitStatus(exit_code=0), file) is None
    found = failure_of(ExitStatus(exit_code=1), file)
    assert isinstance(found, ReportedFailure)
    assert found.exit_code == 1
    file.write_text("42\nmore\n")
    found = failure_of(ExitStatus(exit_code=1), file)
    assert isinstance(found, ReportedFailure)
    assert found.exit_code == 42
    file.write_text("forty")
    unknown = "unknown Custom executor executable exit code"
    assert str(failure_of(ExitStatus(exit_code=1), file)) == f"{unknown} 2; executable execution terminated with: exit status 1"
    assert str(failure_of(ExitStatus(exit_code=2), file)) == "exit status 2"
    assert str(failure_of(ExitStatus(exit_code=7), file)) == f"{unknown} 7; executable execution terminated with: exit status 7"
    assert str(failure_of(ExitStatus(signal=9), file)) == f"{unknown} -1; executable execution terminated with: signal: killed"


def test_times_that_are_no_limits_count_as_absent() -> None:
    config = CustomConfig.from_values({"run_exec": "/r", "config_exec_timeout": -1, "graceful_kill_timeout": 5})
    assert config.config.timeout_s == 3600
    assert config.graceful_kill_s == 5
    assert [problem.place for problem in config.problems()] == [("config_exec_timeout",)]
    assert [problem.text for problem in CustomConfig().problems()] == ['"run_exec" is missing: every job will fail']
