"""When the reference asks for jobs, and with which token: recorded schedules without jobs, replayed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tests.contract.differences import SCHEDULE_DIFFERS
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
TOLERANCE_S = 0.45
LONGEST_S = 30


def is_plain(scenario: dict[str, Any]) -> bool:
    """Nothing is done but watching; the server answers by rule."""
    server = scenario.get("server") or {}
    return (
        "config_toml" in scenario
        and not scenario.get("jobs")
        and set(server) <= {"long_poll", "faults"}
        and all("end of the recording" in step.get("do", "") for step in scenario.get("steps") or [])
        and scenario.get("seconds", 0) <= LONGEST_S
        and bool(scenario["requests"])
    )


def cases() -> list[object]:
    found: list[object] = []
    for name in golden.scenarios("cli"):
        if not name.startswith("sched-") or not is_plain(golden.read("cli", name)):
            continue
        marks = [pytest.mark.skip(reason=SCHEDULE_DIFFERS[name])] if name in SCHEDULE_DIFFERS else []
        found.append(pytest.param(name, id=name, marks=marks))
    return found


@pytest.mark.parametrize("name", cases())
async def test_requests_follow_the_schedule(name: str, tmp_path: Path) -> None:
    scenario = golden.read("cli", name)
    server = scenario.get("server") or {}
    faults = [[fault["match"], fault["kind"], fault.get("count", 1), fault] for fault in server.get("faults") or []]
    async with FakeCoordinator(tmp_path / "server", long_poll_s=server.get("long_poll", 0), faults=faults) as fake:
        fake.holds_always = True
        places = {"ROOT": str(tmp_path), "URL": fake.url, "HOST": fake.places["HOST"]}
        daemon = Daemon(tmp_path / "runner", golden.fill(scenario["config_toml"], places))
        daemon.start()
        try:
            await fake.until(lambda: fake.requests)
            expected = shape(scenario["requests"])
            await asyncio.sleep(expected[-1][0] + TOLERANCE_S)
            got = shape([vars(request) for request in fake.requests])
        finally:
            await daemon.stop()
    assert [entry[1:] for entry in got[: len(expected)]] == [entry[1:] for entry in expected], daemon.log
    for (when, *_), (then, *_) in zip(expected, got, strict=False):
        assert abs(when - then) < TOLERANCE_S, (expected, got)


def shape(requests: list[dict[str, Any]]) -> list[tuple[float, str, str]]:
    """Seconds since the first request, token and path; repetitions within one call count once."""
    found: list[tuple[float, str, str]] = []
    start = requests[0]["t"]
    for request in requests:
        body = request["body"] if isinstance(request["body"], dict) else {}
        entry = (request["t"] - start, str(body.get("token", "")), str(request["path"]))
        repeated = found and found[-1][1:] == entry[1:] and request.get("status") in (429, 500, 502, 503)
        if not repeated or entry[0] - found[-1][0] > 2:
            found.append(entry)
    return found
