"""However a job is ended from outside, nothing of it lives on: other sessions, orphans, what ignores SIGTERM, what hops
from process to process, what has no name."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import processes_below, until

Make = Callable[..., Daemon]
STUBBORN = [
    "trap '' TERM HUP INT",
    "setsid sleep 7001 &",
    "(setsid bash -c 'trap \"\" TERM; sleep 7002 & sleep 7003' &)",
    "(nohup sleep 7004 >/dev/null 2>&1 &)",
    "hop() { sleep 0.01; hop & }; for number in $(seq 20); do (hop &); done",
    "python3 -c 'import ctypes, time; ctypes.CDLL(None).prctl(15, b\"\", 0, 0, 0); time.sleep(7006)' &",
    "bash -c 'kill -STOP $$' & ",
    "echo ready; sleep 7005",
]


async def begun(fake: FakeCoordinator, daemon: Daemon, **changes: object) -> Job:
    variables = {"FF_TIMESTAMPS": "false", **(changes.pop("variables", None) or {})}  # type: ignore[dict-item]
    job = fake.add_job(job_payload(1, STUBBORN, variables=variables, **changes))
    daemon.start()
    await fake.until(lambda: b"\nready" in job.trace or b"\rready" in job.trace)
    assert len(processes_below(daemon.root / "builds")) > 5
    return job


async def end_it(way: str, fake: FakeCoordinator, daemon: Daemon, job: Job) -> None:
    match way:
        case "cancel":
            fake.cancel(job)
            await asyncio.wait_for(job.ended.wait(), 20)
        case "abort":
            job.end("canceled")
        case "interrupt":
            daemon.send(signal.SIGINT)
            assert await daemon.wait(20) == 0
        case "lost daemon":
            daemon.kill()
            job.end("canceled")
            daemon.start()
        case _:
            await asyncio.wait_for(job.ended.wait(), 20)


@pytest.mark.parametrize(
    ("way", "changes"),
    [
        ("cancel", {}),
        ("abort", {}),
        ("interrupt", {}),
        ("lost daemon", {}),
        ("script timeout", {"variables": {"RUNNER_SCRIPT_TIMEOUT": "2s"}}),
        ("job timeout", {"runner_info": {"timeout": 3}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_nothing_survives(way: str, changes: dict[str, object], fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra='  [runners.pyrunner]\n    term_grace = "1s"\n')
    job = await begun(fake, daemon, **changes)
    await end_it(way, fake, daemon, job)
    await until(lambda: not processes_below(daemon.root / "builds"))
    assert job.ended.is_set()
