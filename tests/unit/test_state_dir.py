"""Whose state directory a daemon takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog

from runner.errors import RunnerError
from runner.job.record import RecordStore


def test_records_behind_a_link_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "jobs").symlink_to("elsewhere")
    with pytest.raises(RunnerError, match="jobs is not a directory of this daemon's account"):
        RecordStore(tmp_path).open()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_records_of_somebody_else_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    os.chown(tmp_path / "jobs", 65534, 65534)
    with pytest.raises(RunnerError, match="remove it, or change its owner"):
        RecordStore(tmp_path).open()


@pytest.mark.parametrize(("mode", "warnings"), [(0o755, 0), (0o777, 1), (0o1777, 0)])
def test_a_directory_that_anybody_can_change_is_warned_of(mode: int, warnings: int, tmp_path: Path) -> None:
    tmp_path.chmod(mode)
    store = RecordStore(tmp_path)
    with structlog.testing.capture_logs() as said:
        store.open()
    store.close()
    assert [one["event"] for one in said] == ["the state directory can be changed by others, and with it the jobs"] * warnings
