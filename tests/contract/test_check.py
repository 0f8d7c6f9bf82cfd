"""``pyrunner check``: findings with their places, and an exit status for scripts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.fakes.daemon import COMMAND

GOOD = '[[runners]]\n  name = "lab"\n  url = "http://127.0.0.1:9"\n  token = "glrt-lab"\n  executor = "shell"\n'
WARNED = GOOD + '  buids_dir = "/b"\n'
BROKEN = "concurrent = [\n"
DISABLED = GOOD.replace('"shell"', '"docker-windows"')


def check(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(path.parent)}
    return subprocess.run([COMMAND, "check", *words], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "config.toml"
    found.touch(0o600)
    return found


def test_a_good_file_is_left_alone(path: Path) -> None:
    path.write_text(GOOD)
    found = check(path, str(path))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout == f"{path}: 1 of 1 runners can be used: errors: 0, warnings: 0\n"
    assert os.listdir(path.parent) == ["config.toml"], "nothing is written, no system id either"


def test_a_warning_names_its_place_and_fails_when_it_is_to(path: Path) -> None:
    path.write_text(WARNED)
    found = check(path, "--config", str(path))
    assert found.returncode == 0
    assert found.stdout.startswith(f"{path}:6:3: warning[unknown-key]: ")
    assert 'did you mean "builds_dir"?' in found.stdout
    assert check(path, str(path), "--strict").returncode == 1


@pytest.mark.parametrize(("text", "last"), [(BROKEN, "cannot be used"), (DISABLED, "0 of 1 runners can be used")])
def test_errors_fail(text: str, last: str, path: Path) -> None:
    path.write_text(text)
    found = check(path, str(path))
    assert found.returncode == 1
    first, *_, end = found.stdout.splitlines()
    assert first.startswith(f"{path}:")
    assert "error[" in first
    assert last in end


def test_findings_as_json_are_in_the_order_of_the_file(path: Path) -> None:
    path.write_text("buids = 1\n" + WARNED)
    found = json.loads(check(path, str(path), "--json").stdout)
    assert [(one["line"], one["severity"], one["code"]) for one in found] == [
        (1, "warning", "unknown-key"),
        (7, "warning", "unknown-key"),
    ]


def test_a_file_that_is_not_there(path: Path) -> None:
    found = check(path, f"{path}.other")
    assert found.returncode == 1
    assert f"{path}.other: No such file or directory" in found.stderr
