"""Sources, submodules and directories of the reference, replayed: the same state and log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tests.contract.differences import SOURCES_DIFFER, SOURCES_NOT_REPLAYED
from tests.contract.replay import replay

FAMILIES = ("git-", "submodules-", "directories-", "shell-")
pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)


def cases() -> list[Any]:
    found = []
    for name in golden.scenarios("files"):
        if name.startswith(FAMILIES):
            late = SOURCES_NOT_REPLAYED.get(name)
            found.append(pytest.param(name, id=name, marks=[pytest.mark.skip(reason=late)] if late else []))
    return found


# Commits are made anew for each replay; git says the same in other words from version to version.
COMMIT = re.compile(r"\b[0-9a-f]{7,64}\b")


def lines(log: str, places: dict[str, str]) -> list[str]:
    return [COMMIT.sub("SHA", line) for line in golden.normalised(log, places)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", cases())
async def test_sources_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    scenario = golden.read("files", name)
    difference = SOURCES_DIFFER.get(name)
    ends = [(entry["state"], entry["failure_reason"], entry["exit_code"]) for entry in scenario["jobs"]]
    expected_ends = list((difference and difference.ends) or ends)
    done = await replay(scenario, tmp_path, timeout_s=100, ends=expected_ends)
    got = [(job.state, job.failure_reason, job.exit_code) for job in done.jobs]
    assert got == expected_ends, (done.jobs[-1].log, done.daemon_log)
    if difference is None:
        for entry, job in zip(scenario["jobs"], done.jobs, strict=True):
            expected, ours = lines(entry["trace"], {}), lines(job.log, done.places)
            assert golden.same(expected, ours), golden.difference(expected, ours)


def test_the_list_of_differences_names_recordings_only() -> None:
    assert set(SOURCES_DIFFER) | set(SOURCES_NOT_REPLAYED) <= set(golden.scenarios("files"))
