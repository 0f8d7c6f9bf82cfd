"""A signal that comes while the daemon is only just starting."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from tests.contract.test_rotation import RESET, resets, times
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import until

Make = Callable[..., Daemon]
ASK = "/api/v4/jobs/request"
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
RESET_S = 1.5


def asked(fake: FakeCoordinator) -> int:
    return sum(request.path == ASK for request in fake.requests)


async def in_start(fake: FakeCoordinator, daemon: Daemon) -> None:
    """Start, up to where a token that is due is being renewed: nothing else happens until the answer comes."""
    count = len(resets(fake))
    fake.faults.add(f"POST {RESET}", "delay", seconds=RESET_S)
    daemon.start()
    await until(lambda: len(resets(fake)) > count)


async def said(daemon: Daemon, line: str) -> None:
    await until(lambda: line in daemon.log)


def make_late(daemon: Daemon) -> None:
    """Let the token of a stopped daemon be due at its next start."""
    lines = [line for line in daemon.config.read_text().splitlines() if "token_obtained_at" not in line]
    lines = [line for line in lines if "token_expires_at" not in line]
    daemon.config.write_text("\n".join(lines) + "\n" + times(-100, 10))


@pytest.mark.parametrize("line", ["Runtime platform", "Starting multi-runner", "Configuration loaded"])
@pytest.mark.parametrize("number", STOPS)
async def test_a_stop_ends_the_daemon_well_from_its_first_line_on(
    number: signal.Signals, line: str, fake: FakeCoordinator, make_daemon: Make
) -> None:
    daemon = make_daemon()
    daemon.start()
    await said(daemon, line)
    daemon.send(number)
    assert await daemon.wait() == 0
    assert daemon.log.count("[runWait] received stop signal") == 1
    assert daemon.log.rstrip().endswith("Can exit now!")
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("number", STOPS)
async def test_a_token_that_is_being_renewed_is_not_lost(
    number: signal.Signals, fake: FakeCoordinator, make_daemon: Make
) -> None:
    daemon = make_daemon(extra=times(-100, 10))
    await in_start(fake, daemon)
    daemon.send(number)
    assert await daemon.wait() == 0
    assert "glrt-new-token-0001" in daemon.config.read_text()
    assert daemon.log.rstrip().endswith("Can exit now!")
    assert asked(fake) == 0, "a daemon that is stopping asks for nothing"


async def test_a_restart_waits_until_there_is_something_to_restart(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra=times(-100, 10))
    await in_start(fake, daemon)
    daemon.send(signal.SIGUSR2)
    await until(lambda: daemon.log.count("Configuration loaded") >= 2)
    assert daemon.log.count("Starting multi-runner") == 2
    os.kill(daemon.pid, 0)
    job = fake.add_job(job_payload(1, ["echo up"]), runner_token="glrt-new-token-0001")
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success"


async def test_a_reload_is_made_up_for(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra=times(-100, 10))
    await in_start(fake, daemon)
    daemon.config.write_text(daemon.config.read_text().replace("concurrent = 4", "concurrent = 7"))
    daemon.send(signal.SIGHUP)
    await until(lambda: "max_builds=7" in daemon.log)


async def test_starts_that_are_broken_off_cost_a_job_nothing(fake: FakeCoordinator, make_daemon: Make) -> None:
    """More often than a job may break a daemon."""
    daemon = make_daemon()
    daemon.config.write_text(daemon.config.read_text().replace("[pyrunner]", '[pyrunner]\nshutdown_mode = "detach"'))
    job = fake.add_job(job_payload(1, [f"echo up; while [ ! -e {daemon.root}/go ]; do sleep 0.05; done; echo down"]))
    daemon.start()
    await fake.until(lambda: b"up" in job.trace)
    for line in ("Configuration loaded", "job adopted", "Starting multi-runner", "job adopted", "job adopted"):
        daemon.send(signal.SIGTERM)
        assert await daemon.wait() == 0
        daemon.log_path.unlink()
        daemon.start()
        await said(daemon, line)
    (daemon.root / "go").touch()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success", job.log
    assert job.log_is_whole()


async def test_an_interrupt_reports_the_jobs_that_were_found(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(1, ["echo up; sleep 600"]))
    daemon.start()
    await fake.until(lambda: b"up" in job.trace)
    daemon.kill()
    make_late(daemon)
    await in_start(fake, daemon)
    daemon.send(signal.SIGINT)
    assert await daemon.wait() == 0
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert "interrupt" in job.log
    assert not list((daemon.state / "jobs").iterdir())
