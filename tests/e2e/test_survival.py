"""A job survives its daemon: killed at any point, its result and its log are those of a job that was left alone."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import processes_below, until

SCRIPT = [
    "for i in 1 2 3 4 5 6 7 8; do echo line-$i; sleep 0.15; done",
    "echo secret-word >/dev/stdout",
    "echo run >> ../runs",
    "exit 7",
]
RESTART_LINE = "The runner was restarted, this stage is run again from its beginning"


def payload(fake: FakeCoordinator, job_id: int, commit: str) -> dict[str, object]:
    found = job_payload(
        job_id,
        SCRIPT,
        after_script=["echo status=$CI_JOB_STATUS; sleep 0.3; echo bye"],
        variables={"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false"},
    )
    found["variables"].append({"key": "S", "value": "secret-word", "masked": True})
    found["git_info"] |= fake.git_info(commit)
    return found


def comparable(job: Job) -> str:
    log = re.sub(r"section_(start|end):\d+:", r"section_\1:T:", job.log)
    log = re.sub(r"runner-\d+/", "runner/", log)
    # A repository that was begun before the kill is found again.
    log = log.replace("Reinitialized existing Git", "Initialized empty Git").replace(
        "\x1b[32;1mCreated fresh repository.\x1b[0;m\n", ""
    )
    log = re.sub(r"(?<=\x1b\[0K)(Time|CPU|Memory|Moved): .*", r"\1: COST", log)
    return re.sub(r"Gitaly correlation ID: \S+", "Gitaly correlation ID: ID\x1b[0;m", log)


async def undisturbed(fake: FakeCoordinator, daemon: Daemon, commit: str) -> str:
    job = fake.add_job(payload(fake, 1, commit))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 30)
    await daemon.stop()
    return comparable(job)


@pytest.mark.parametrize("delay_ms", [0, 15, 40, 80, 130, 200, 350, 600, 1100, 1500, 1750])
async def test_a_killed_daemon_loses_nothing(delay_ms: int, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    expected = await undisturbed(fake, make_daemon(), commit)
    daemon = make_daemon()
    job = fake.add_job(payload(fake, 2, commit))
    daemon.start()
    await fake.until(lambda: job.updates)  # before that, no server of today can know whether the answer arrived
    await asyncio.sleep(delay_ms / 1000)
    daemon.kill()
    await asyncio.sleep(0.4)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 40)
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 7)
    assert job.log_is_whole()
    runs = daemon.root / "builds" / "lab" / "0" / "git" / "runs"
    assert runs.read_text() == "run\n", "a user script runs once"
    if RESTART_LINE not in job.log:
        assert comparable(job) == expected
    else:
        assert "line-8" in job.log
        assert job.log.index(RESTART_LINE) < job.log.index("line-1")
    await fake.until(lambda: not list((daemon.state / "jobs").iterdir()), 10)


async def test_the_log_is_the_same_to_the_byte_with_timestamps(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    """What the server had before the kill is never sent differently: it would refuse or the checksum would not fit."""
    daemon = make_daemon()
    script = ["for i in $(seq 40); do echo out-$i; sleep 0.05; done"]
    job = fake.add_job(job_payload(3, script))
    daemon.start()
    await fake.until(lambda: b"out-2" in job.trace)
    before = bytes(job.trace)
    for _ in range(3):
        daemon.kill()
        daemon.start()
        await asyncio.sleep(0.5)
    await asyncio.wait_for(job.ended.wait(), 30)
    assert job.state == "success"
    assert job.log_is_whole()
    assert job.trace.startswith(before)
    assert re.findall(r"O out-(\d+)\n", job.log) == [str(number) for number in range(1, 41)]


async def test_reexecution_in_place_keeps_process_and_job(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(4, ["echo begin; sleep 2; echo end"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    pid = daemon.pid
    daemon.send(signal.SIGUSR2)
    await asyncio.wait_for(job.ended.wait(), 30)
    assert job.state == "success"
    assert "end" in job.log
    os.kill(pid, 0)
    assert daemon.log.count("Starting multi-runner") == 2


async def test_reexecution_is_refused_while_the_new_code_is_broken(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    launcher = tmp_path / "pyrunner"
    launcher.write_text("from runner.cli.main import main\nmain()\n")
    daemon = make_daemon()
    daemon.command = [sys.executable, str(launcher)]
    daemon.start()
    await asyncio.wait_for(fake.polled.wait(), 10)
    launcher.write_text("this is no python\n")
    daemon.send(signal.SIGUSR2)
    async with asyncio.timeout(10):
        while "restart refused" not in daemon.log:
            await asyncio.sleep(0.05)
    job = fake.add_job(job_payload(9, ["echo still here"]))
    await asyncio.wait_for(job.ended.wait(), 15)
    assert job.state == "success"


async def test_detached_jobs_are_adopted_by_the_next_daemon(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    config = daemon.config.read_text().replace("[pyrunner]", '[pyrunner]\nshutdown_mode = "detach"')
    daemon.config.write_text(config)
    job = fake.add_job(job_payload(5, ["echo begin; sleep 2; echo end"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    daemon.send(signal.SIGTERM)
    assert await daemon.wait(5) == 0
    assert job.state == "running"
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 30)
    assert job.state == "success"


async def test_a_job_whose_host_was_restarted_ends_as_system_failure(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(6, ["echo $$ > ../../pid; echo begin; sleep 60"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    daemon.kill()
    kill_everything_of(daemon.root)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 30)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert job.log_is_whole()


async def test_two_daemons_never_own_one_state_directory(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    first = make_daemon()
    first.start()
    await asyncio.wait_for(fake.polled.wait(), 10)
    second = make_daemon()
    second.config.write_text(first.config.read_text())
    second.start()
    assert await second.wait(10) == 1
    assert "another daemon uses the state directory" in second.log


async def test_a_broken_record_does_not_stop_the_daemon(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    broken = daemon.state / "jobs" / "lab-99"
    broken.mkdir(parents=True)
    (broken / "payload.json").write_text("{}")
    job = fake.add_job(job_payload(7, ["echo fine"]))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success"
    assert "set aside" in daemon.log


def kill_everything_of(root: Path) -> None:
    """Kill supervisors and scripts, as the end of the host would."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            links = [os.readlink(link) for link in (entry / "fd").iterdir()]
        except OSError:
            continue
        if any(link.startswith(str(root / "state" / "jobs")) for link in links):
            os.kill(int(entry.name), signal.SIGKILL)


async def test_a_hook_that_was_cut_off_is_stopped_before_it_is_repeated(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon()
    found = payload(fake, 8, commit)
    first, done = daemon.root / "first", daemon.root / "hooks"
    script = f"echo hook; if mkdir {first}; then sleep 300; fi; echo done >> {done}"
    found["hooks"] = [{"name": "pre_get_sources_script", "script": [script]}]
    job = fake.add_job(found)
    daemon.start()
    await until(first.exists)
    daemon.kill()
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 40)
    assert (job.state, job.exit_code) == ("failed", 7)
    assert job.log_is_whole()
    assert done.read_text() == "done\n"
    await until(lambda: not processes_below(daemon.root / "builds"))


async def test_relative_names_mean_the_same_after_a_restart_in_place(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    """The configuration is named from where the command was given, not from the directory that the daemon works in."""
    daemon = make_daemon()
    with daemon.log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *daemon.command,
            *("run", "--config", "conf/config.toml", "--working-directory", str(daemon.home)),
            cwd=daemon.root,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(daemon.home)},
        )
    try:
        await fake.until(lambda: fake.requests)
        process.send_signal(signal.SIGUSR2)
        async with asyncio.timeout(20):
            while daemon.log.count("Configuration loaded") < 2:
                await asyncio.sleep(0.05)
        job = fake.add_job(job_payload(1, ["pwd"], variables={"GIT_STRATEGY": "none"}))
        await asyncio.wait_for(job.ended.wait(), 20)
        assert job.state == "success"
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()
