"""Custom jobs of the reference, replayed with the recorded drivers: the same state, log and calls of the driver."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tests.contract.differences import CUSTOM_DIFFERS
from tests.contract.replay import replay

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)


def cases() -> list[Any]:
    found = []
    for name in golden.scenarios("files"):
        if name.startswith("custom-") and name != "custom-cancel":
            found.append(pytest.param(name, id=name))
    return found


def lines(log: str, places: dict[str, str]) -> list[str]:
    return [re.sub(r"(custom-executor|script)\d{9,}", r"\1N", line) for line in golden.normalised(log, places)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", cases())
async def test_custom_jobs_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    scenario = {**golden.read("files", name), "environment": {"DRIVER_LOG": "{ROOT}/driver.log"}}
    difference = CUSTOM_DIFFERS.get(name)
    ends = [(entry["state"], entry["failure_reason"], entry["exit_code"]) for entry in scenario["jobs"]]
    calls = tmp_path / "runner" / "driver.log"
    done = await replay(scenario, tmp_path, timeout_s=100)
    assert [(job.state, job.failure_reason, job.exit_code) for job in done.jobs] == ends, (done.jobs[-1].log, done.daemon_log)
    for entry, job in zip(scenario["jobs"], done.jobs, strict=True):
        expected, ours = lines(entry["trace"], {}), lines(job.log, done.places)
        if difference is None:
            assert golden.same(expected, ours), golden.difference(expected, ours)
    recorded = golden.text_of(scenario.get("files") or {}, "driver.log")
    assert (calls.read_text() if calls.exists() else "") == recorded


def test_the_list_of_differences_names_recordings_only() -> None:
    assert set(CUSTOM_DIFFERS) <= set(golden.scenarios("files"))
