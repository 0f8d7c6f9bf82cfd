"""What the reference recorded with its shell executor, replayed in the place of a driver: the same sources, caches,
artifacts and lines, although everything there is done by scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tests.contract.differences import ARTIFACT_NOT_REPLAYED, PLACES_DIFFER, SOURCES_DIFFER
from tests.contract.replay import replay
from tests.contract.test_golden_artifacts import check_uploads
from tests.contract.test_golden_sources import lines as source_lines

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
DRIVER = """#!/bin/bash
env -u GIT_CONFIG_NOSYSTEM bash "$1"
status=$?
[ $status = 0 ] || { echo $status > "$BUILD_EXIT_CODE_FILE"; exit $BUILD_FAILURE_EXIT_CODE; }
"""
TABLE = """
  [runners.custom]
    config_exec = "/bin/echo"
    config_args = ['{"builds_dir_is_shared": true}']
    run_exec = "{ROOT}/driver.sh"
"""
FAMILIES = ("git-", "submodules-", "cache-", "artifact-")
# All of them take minutes: these are enough to see that a change of the scripts broke something.
SOONER = re.compile(
    "git-(strat|depth|lfs|hooks)|submodules-(normal|rec)|cache-(fall|save|s3-save|untr)|artifact-(excl|formats|download$|upload$)"
)
# What differs between any two executors.
OTHERWISE = re.compile(
    "Using (Shell|Custom)|WARNING: Starting with version 17.0 the 'build_script'|Selecting primary cache URL|"
    # The retry layer between a try and the next is the runner's own.
    "Waiting before making the next call"
)
NAME = re.compile(r'Preparing the "(shell|custom)" executor')


def cases() -> list[Any]:
    found = []
    for area in ("files", "wire"):
        for name in golden.scenarios(area):
            if name in ARTIFACT_NOT_REPLAYED or not name.startswith(FAMILIES):
                continue
            if golden.read(area, name)["executor"] == "shell":
                marks = [] if SOONER.match(name) else [pytest.mark.thorough]
                found.append(pytest.param(area, name, id=name, marks=marks))
    return found


def lines(log: str, places: dict[str, str]) -> list[str]:
    return [NAME.sub("Preparing the executor", line) for line in source_lines(log, places) if not OTHERWISE.search(line)]


@pytest.mark.timeout(150)
@pytest.mark.parametrize(("area", "name"), cases())
async def test_scripts_do_what_other_executors_do(area: str, name: str, tmp_path: Path) -> None:
    scenario = golden.read(area, name)
    config = scenario["config_toml"].replace('executor = "shell"', 'executor = "custom"') + TABLE
    scenario = {**scenario, "config_toml": config, "helper_files": {**(scenario.get("helper_files") or {}), "driver.sh": DRIVER}}
    difference = PLACES_DIFFER.get(name) or SOURCES_DIFFER.get(name)
    ends = [(entry["state"], entry["failure_reason"], entry["exit_code"]) for entry in scenario["jobs"]]
    expected_ends = list((difference and difference.ends) or ends)
    done = await replay(scenario, tmp_path, timeout_s=120, ends=expected_ends)
    got = [(job.state, job.failure_reason, job.exit_code) for job in done.jobs]
    assert got == expected_ends, (done.jobs[-1].log, done.daemon_log)
    if difference is not None:
        return
    for entry, job in zip(scenario["jobs"], done.jobs, strict=True):
        expected, ours = lines(entry["trace"], {}), lines(job.log, done.places)
        assert golden.same(expected, ours), golden.difference(expected, ours)
    check_uploads(scenario, done)


def test_the_list_of_differences_names_recordings_only() -> None:
    assert set(PLACES_DIFFER) <= {name for area in ("files", "wire") for name in golden.scenarios(area)}
