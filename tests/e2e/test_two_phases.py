"""A server with two-phase commit takes a job back that no runner confirmed (``runner-api.md`` 13.2)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.fakes.coordinator import FakeCoordinator, Recorded, job_payload
from tests.fakes.daemon import Daemon


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator(tmp_path / "server", trace_interval=1, two_phase=True) as coordinator:
        yield coordinator


def kill_at(fake: FakeCoordinator, daemon: Daemon, moment: str, ending: str) -> None:
    def watch(request: Recorded) -> None:
        if request.path.endswith(ending) and request.status in (None, 201):
            setattr(fake, moment, lambda request: None)
            daemon.kill()

    setattr(fake, moment, watch)


async def test_a_job_whose_answer_never_arrived_was_not_begun(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(1, ["echo never"]))
    kill_at(fake, daemon, "after", "/jobs/request")
    daemon.start()
    assert await daemon.wait(20) == -signal.SIGKILL
    assert (job.assigned, job.state) == (True, "pending"), "the server may give it to another runner"
    assert list((daemon.state / "jobs").iterdir()) == []


async def test_a_job_is_on_disk_before_it_is_confirmed(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(1, ["echo once"]))
    kill_at(fake, daemon, "before", "/jobs/1")
    daemon.start()
    assert await daemon.wait(20) == -signal.SIGKILL
    assert [path.name for path in (daemon.state / "jobs").iterdir()] == ["lab-1"]
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.states == ["pending", "running", "success"]
    assert job.log_is_whole()
