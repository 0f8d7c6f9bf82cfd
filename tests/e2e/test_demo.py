"""The demonstration that the README promises, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def demonstrate(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.demo"],
        cwd=PROJECT,
        env={**os.environ, "DEMO_DIR": str(root / "demo"), **environment},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.timeout(300)
def test_a_job_of_the_go_service_survives_its_daemon(tmp_path: Path) -> None:
    shown = demonstrate(tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "killed with SIGKILL" in shown.stdout
    assert "its log of" in shown.stdout
    assert "is whole" in shown.stdout
    assert "Go is not installed here" not in shown.stdout


@pytest.mark.timeout(300)
def test_a_machine_without_go_sees_the_shell_example(tmp_path: Path) -> None:
    places = os.environ["PATH"].split(":")
    path = ":".join(place for place in places if not (Path(place) / "go").exists())
    shown = demonstrate(tmp_path, PATH=path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "Go is not installed here: a shell example runs instead" in shown.stdout
    assert "soak test 6 of 6" in shown.stdout
