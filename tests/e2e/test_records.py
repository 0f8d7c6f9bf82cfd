"""What is known of a job on disk: it is reported although the daemon died, the disk is full, or the record is broken."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.small_disk import small_tmpfs
from tests.waiting import until

Make = Callable[..., Daemon]


def journal(daemon: Daemon) -> str:
    return "".join(path.read_text() for path in daemon.state.glob("jobs/*/journal.jsonl"))


async def test_a_result_that_waited_for_the_server_keeps_its_last_line(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    fake.faults.add("PUT /api", "status", 10_000, status=502, where="success")
    fake.faults.add("PATCH /api", "status", 10_000, status=502)
    job = fake.add_job(job_payload(1, ["echo fine"]))
    daemon.start()
    await until(lambda: '"fact":"outcome"' in journal(daemon))
    daemon.kill()
    fake.faults.all.clear()
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success"
    assert job.log_is_whole()
    assert job.log.count("Job succeeded") == 1


async def test_a_stage_that_was_cut_off_behind_its_hook_is_shown_once(fake: FakeCoordinator, make_daemon: Make) -> None:
    """The server holds back its answers, so nothing was sent that could not be cut back."""
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon()
    found = job_payload(1, ["cat README"], variables={"GIT_STRATEGY": "fetch"})
    found["hooks"] = [
        {"name": "pre_get_sources_script", "script": [f"echo first hook; touch {daemon.root}/hooked"]},
        {
            "name": "post_get_sources_script",
            "script": [f"touch {daemon.root}/second; while test ! -e {daemon.root}/go; do sleep 0.05; done"],
        },
    ]
    found["git_info"] |= fake.git_info(commit)
    fake.faults.add("PATCH /api", "status", 10_000, status=500)
    job = fake.add_job(found)
    daemon.start()
    await until((daemon.root / "second").exists)
    daemon.kill()
    fake.faults.all.clear()
    (daemon.root / "go").touch()
    # As if nothing had been sent at all: without what was offered, the stage can be cut back.
    record = next(daemon.state.glob("jobs/*/journal.jsonl"))
    lines = [line for line in record.read_text().splitlines(keepends=True) if '"fact":"patch"' not in line]
    record.write_text("".join(lines))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success"
    assert job.log_is_whole()
    assert len(re.findall(r"section_start:\d+:get_sources", job.log)) == 1
    assert job.log.count("first hook\n") == 1


async def test_a_supervisor_that_is_just_ending_costs_nothing(fake: FakeCoordinator, make_daemon: Make) -> None:
    """It holds its lock and takes connections, but answers nobody any more."""
    daemon = make_daemon()
    found = job_payload(
        1,
        ["echo content > file", "exit 7"],
        variables={"GIT_STRATEGY": "none"},
        artifacts=[{"paths": ["file"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}],
    )
    fake.faults.add("POST .*/artifacts", "status", 1, status=503)
    job = fake.add_job(found)
    daemon.start()
    await fake.until(lambda: any(request.path.endswith("/artifacts") for request in fake.requests))
    daemon.kill()
    record = next(daemon.state.glob("jobs/*/journal.jsonl")).parent
    with (record / "supervisor.lock").open("rb") as lock:
        async with asyncio.timeout(10):
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        connections: list[None] = []

        def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(None)
            writer.close()

        (record / "control.sock").unlink()
        place = os.open(record, os.O_RDONLY)
        server = await asyncio.start_unix_server(hang_up, f"/proc/self/fd/{place}/control.sock")
        os.close(place)
        daemon.start()
        # More than a daemon tries at once.
        await until(lambda: len(connections) >= 15)
        server.close()
    await asyncio.wait_for(job.ended.wait(), 30)
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 7)
    assert [artifact.kind for artifact in job.artifacts] == ["archive"], job.log


async def test_a_restart_in_place_lets_a_stage_end(fake: FakeCoordinator, make_daemon: Make) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon()
    found = job_payload(1, ["cat README"], variables={"GIT_STRATEGY": "fetch"})
    found["hooks"] = [{"name": "pre_get_sources_script", "script": [f"echo hook >> {daemon.root}/hooks; sleep 2"]}]
    found["git_info"] |= fake.git_info(commit)
    job = fake.add_job(found)
    daemon.start()
    await until((daemon.root / "hooks").exists)
    for _ in range(3):
        daemon.send(signal.SIGUSR2)
        await asyncio.sleep(0.1)
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success"
    assert (daemon.root / "hooks").read_text() == "hook\n"
    assert daemon.log.count("Starting multi-runner") >= 2
    os.kill(daemon.pid, 0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "small", "1m") as path:
        yield path


async def test_a_full_disk_costs_the_log_not_the_job(fake: FakeCoordinator, make_daemon: Make, small_disk: Path) -> None:
    daemon = make_daemon()
    daemon.config.write_text(daemon.config.read_text().replace(str(daemon.state), str(small_disk)))
    daemon.state = small_disk
    script = ["echo begin", f"while test ! -e {daemon.root}/go; do sleep 0.05; done", "seq 20000", "exit 3"]
    job = fake.add_job(job_payload(1, script))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    fill(small_disk)
    (daemon.root / "go").touch()
    await asyncio.wait_for(job.ended.wait(), 30)
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 3)
    assert job.log_is_whole()
    assert "The runner could not keep all output of the script" in job.log or "cannot store more of this job's log" in job.log
    (small_disk / "filling").unlink()
    await fake.until(lambda: not list((daemon.state / "jobs").iterdir()), 10)
    job = fake.add_job(job_payload(2, ["echo again"]))
    await asyncio.wait_for(job.ended.wait(), 30)
    assert job.state == "success"


async def test_a_job_that_cannot_be_recorded_is_refused(fake: FakeCoordinator, make_daemon: Make, small_disk: Path) -> None:
    daemon = make_daemon()
    daemon.config.write_text(daemon.config.read_text().replace(str(daemon.state), str(small_disk)))
    daemon.state = small_disk
    daemon.start()
    await asyncio.wait_for(fake.polled.wait(), 10)
    fill(small_disk)
    job = fake.add_job(job_payload(1, ["echo never"]))
    await asyncio.wait_for(job.ended.wait(), 30)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert "the job cannot be recorded: No space left on device" in job.log
    assert job.log_is_whole()


def processes_with_word(word: str) -> list[str]:
    found = subprocess.run(["pgrep", "-f", f"^{word}$"], capture_output=True, text=True, check=False)
    return found.stdout.split()


def fill(directory: Path) -> None:
    """Leave no byte."""
    with (directory / "filling").open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                file.write(b"x" * size)
            except OSError:
                size //= 2


async def test_a_record_that_cannot_be_read_is_reported(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(1, ["echo begin; sleep 61"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    daemon.kill()
    record = next(daemon.state.glob("jobs/*/journal.jsonl"))
    record.write_text("this is no fact\n" + record.read_text())
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert "the record of the job cannot be used: journal line 1" in job.log
    assert job.log_is_whole()
    await until(lambda: list(daemon.state.glob("set-aside/*")) and not list(daemon.state.glob("set-aside/*/run-1")))
    aside = next((daemon.state / "set-aside").iterdir())
    kept = "".join(path.read_text(errors="replace") for path in aside.rglob("*") if path.is_file())
    assert job.token not in kept
    assert "glrt-lab" not in kept
    await until(lambda: not processes_with_word("sleep 61"))


async def test_half_removed_records_are_forgotten(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    removed = daemon.state / "jobs" / ".removed-0123"
    removed.mkdir(parents=True)
    (removed / "payload.json").write_text(json.dumps(job_payload(9, ["echo never"])))
    daemon.start()
    await asyncio.wait_for(fake.polled.wait(), 10)
    assert not removed.exists()


async def test_jobs_that_had_not_begun_share_no_directory(fake: FakeCoordinator, make_daemon: Make) -> None:
    """Two bodies that were on disk, but not yet records, when the daemon died: each gets a place of its own."""
    daemon = make_daemon()
    places = daemon.root / "places"
    jobs = [fake.add_job(job_payload(number, [f"pwd >> {places}; sleep 1"])) for number in (1, 2)]
    daemon.start()
    await until(lambda: places.exists() and len(places.read_text().splitlines()) == 2)
    daemon.kill()
    places.unlink()
    for record in sorted(daemon.state.glob("jobs/*-[12]")):
        accepted = json.loads((record / "accepted.json").read_text())
        (record / "runner.json").write_text(json.dumps(accepted["runner"]))
        for name in ("accepted.json", "journal.jsonl", "trace"):
            (record / name).unlink()
        record.rename(record.with_name(f".incoming-{record.name}"))
    for process in daemon.state.glob("jobs/.incoming-*/supervisor.lock"):
        process.unlink()
    for run in daemon.state.glob("jobs/.incoming-*/run-1"):
        subprocess.run(["rm", "-r", str(run)], check=True)
    daemon.start()
    for job in jobs:
        await asyncio.wait_for(job.ended.wait(), 20)
    assert len(set(places.read_text().splitlines())) == 2
