"""Jobs of the reference, replayed: the same state, reason, exit code and log."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden, wire
from tests.contract.differences import CALLS_DIFFER, DIFFERS, NOT_YET
from tests.contract.replay import Replay, replay

SLOW = ("keepalive-dynamic", "keepalive-silent", "final-409-for-good", "trace-409-final-for-good")
pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)


def cases() -> list[object]:
    found: list[object] = []
    for area in ("lifecycle", "wire"):
        for name in golden.scenarios(area):
            if name.startswith("artifact-"):
                continue  # in test_golden_artifacts.py, with everything that they send
            server = golden.read(area, name).get("server") or {}
            marks = []
            late = next((reason for pattern, reason in NOT_YET.items() if fnmatch.fnmatch(name, pattern)), None)
            if late:
                marks.append(pytest.mark.skip(reason=late))
            elif server.get("acted"):
                marks.append(pytest.mark.skip(reason="somebody acts while it runs: see test_interventions.py"))
            elif server.get("slow"):
                marks.append(pytest.mark.skip(reason="takes minutes of the reference's own grace times"))
            elif name in SLOW:
                marks.append(pytest.mark.slow)
            found.append(pytest.param(area, name, id=f"{area}/{name}", marks=marks))
    return found


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("area", "name"), cases())
async def test_ends_and_logs_as_the_reference(area: str, name: str, tmp_path: Path) -> None:
    scenario = golden.read(area, name)
    difference = DIFFERS.get(name)
    done = await replay(scenario, tmp_path, timeout_s=150, ends=difference.ends if difference else ())
    for number, (entry, job) in enumerate(zip(scenario["jobs"], done.jobs, strict=True)):
        ends = (entry["state"], entry["failure_reason"], entry["exit_code"])
        if difference is not None and difference.ends:
            ends = difference.ends[number]
        assert (job.state, job.failure_reason, job.exit_code) == ends, done.daemon_log
        if difference is None:
            expected = golden.normalised(entry["trace"], {})
            got = golden.normalised(job.log, done.places)
            assert golden.same(expected, got), golden.difference(expected, got)
    if difference is None or not difference.ends:
        _compare_requests(scenario, done, name)


def _compare_requests(scenario: dict[str, Any], done: Replay, name: str) -> None:
    """The same calls in the same order with the same answers, bodies of updates and headers."""
    if name in CALLS_DIFFER:
        return
    ours = [vars(request) for request in done.fake.requests]
    assert wire.polls(ours) == wire.polls(scenario["requests"])
    for entry, job in zip(scenario["jobs"], done.jobs, strict=True):
        job_id = entry["payload"]["id"]
        assert wire.calls(ours, job.id) == wire.calls(scenario["requests"], job_id)
        assert wire.updates(ours, job.id) == wire.updates(scenario["requests"], job_id)
    assert wire.headers(ours) == wire.headers(scenario["requests"])


def test_the_list_of_differences_names_recordings_only() -> None:
    known = {name for area in ("lifecycle", "wire", "files") for name in golden.scenarios(area)}
    assert set(DIFFERS) <= known
    assert {name for name in NOT_YET if "*" not in name} <= known
