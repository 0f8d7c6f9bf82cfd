"""What happens to a job from outside: cancel, abort, limits, signals to the daemon."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import files_below, processes_below, until

Make = Callable[..., Daemon]
LOOP = ["echo begin", "for i in $(seq 200); do echo n$i; sleep 0.1; done"]


async def test_cancel_ends_the_script_and_runs_after_script(fake: FakeCoordinator, make_daemon: Make) -> None:
    job = fake.add_job(job_payload(1, LOOP, after_script=["echo status=$CI_JOB_STATUS"]))
    make_daemon().start()
    await fake.until(lambda: b"begin" in job.trace)
    fake.cancel(job)
    await asyncio.wait_for(job.ended.wait(), 15)
    assert (job.state, job.failure_reason) == ("canceled", "unknown_failure")
    assert "script canceled externally (UI, API)" in job.log
    assert "status=canceled" in job.log
    assert job.log_is_whole()


async def test_a_quiet_job_notices_a_cancel_soon(fake: FakeCoordinator, make_daemon: Make) -> None:
    job = fake.add_job(job_payload(1, ["sleep 120"]))
    make_daemon().start()
    await fake.until(lambda: b"sleep" in job.trace)
    fake.cancel(job)
    began = time.monotonic()
    await asyncio.wait_for(job.ended.wait(), 15)
    assert time.monotonic() - began < 8
    assert job.state == "canceled"


async def test_an_ended_job_is_killed_and_nothing_else_runs(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    script = ["echo begin", "setsid sleep 77 & trap '' TERM; while true; do echo tick; sleep 0.2; done"]
    job = fake.add_job(job_payload(1, script, after_script=["echo never"]))
    daemon.start()
    await fake.until(lambda: b"tick" in job.trace)
    job.end("canceled")
    await fake.until(lambda: fake.requests[-1].status == 403 and fake.requests[-1].method == "PUT", 20)
    assert "never" not in job.log
    await until(lambda: not [line for line in processes_below(daemon.root) if "sleep" in line])


async def test_term_ignored_ends_after_a_short_grace(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra='  [runners.pyrunner]\n    term_grace = "1s"\n')
    script = ["trap '' TERM; echo begin; for i in $(seq 300); do sleep 0.2; done"]
    job = fake.add_job(job_payload(1, script, variables={"RUNNER_SCRIPT_TIMEOUT": "1s"}))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 15)
    assert (job.state, job.failure_reason) == ("failed", "job_execution_timeout")
    assert "script timeout: context deadline exceeded" in job.log


async def test_job_timeout_removes_file_variables(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    payload = job_payload(1, ["cat $SECRET_FILE; sleep 60"], runner_info={"timeout": 2})
    payload["variables"].append({"key": "SECRET_FILE", "value": "content-of-file", "file": True})
    job = fake.add_job(payload)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.failure_reason == "job_execution_timeout"
    assert "content-of-file" in job.log
    assert files_below(daemon.root / "builds", "SECRET_FILE") == []


async def test_sigterm_lets_jobs_end_and_asks_for_no_more(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(1, ["echo begin; sleep 1.5; echo end"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    daemon.send(signal.SIGTERM)
    later = fake.add_job(job_payload(2, ["echo no"]))
    assert await daemon.wait(20) == 0
    assert job.state == "success"
    assert later.state == "pending"


async def test_sigint_stops_and_reports_every_job(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    stubborn = ["trap '' TERM; echo begin; for i in $(seq 300); do sleep 0.2; done"]
    jobs = [fake.add_job(job_payload(number, stubborn)) for number in (1, 2)]
    daemon.start()
    await fake.until(lambda: all(b"begin" in job.trace for job in jobs))
    daemon.send(signal.SIGINT)
    assert await daemon.wait(15) == 0
    for job in jobs:
        assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
        assert "Job failed (system failure): aborted: interrupt" in job.log
        assert job.log_is_whole()
    assert not [line for line in processes_below(daemon.root) if "sleep" in line]


async def test_second_sigterm_aborts(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    job = fake.add_job(job_payload(1, ["echo begin; sleep 60"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    daemon.send(signal.SIGTERM)
    await until(lambda: "graceful shutdown" in daemon.log)
    daemon.send(signal.SIGTERM)
    assert await daemon.wait(15) == 0
    assert "aborted: terminated" in job.log


async def test_a_server_that_is_down_at_the_end_is_told_by_the_next_daemon(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    config = daemon.config.read_text().replace("shutdown_timeout = 10", "shutdown_timeout = 3")
    daemon.config.write_text(config)
    job = fake.add_job(job_payload(1, ["echo begin; sleep 60"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    fake.faults.add("PUT /api", "status", 10_000, status=503)
    fake.faults.add("PATCH /api", "status", 10_000, status=503)
    daemon.send(signal.SIGINT)
    assert await daemon.wait(10) == 1
    fake.faults.all.clear()
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 15)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert job.log_is_whole()


async def test_undecodable_payload_is_reported(fake: FakeCoordinator, make_daemon: Make) -> None:
    job = fake.add_job({**job_payload(1, ["true"]), "steps": "nonsense"})
    make_daemon().start()
    await asyncio.wait_for(job.ended.wait(), 15)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")


async def test_jobs_see_little_of_the_daemons_environment(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.environment |= {"DAEMON_SECRET": "hush-hush", "NOTIFY_SOCKET": "/run/x", "LC_ALL": "C.UTF-8"}
    job = fake.add_job(job_payload(1, ["env"]))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 15)
    assert "hush-hush" not in job.log
    assert "NOTIFY_SOCKET" not in job.log
    assert "LC_ALL=C.UTF-8" in job.log


async def test_limit_and_concurrent_hold_and_freed_places_are_used(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra="  limit = 2\n  request_concurrency = 2\n")
    jobs = [fake.add_job(job_payload(number, ["sleep 1"])) for number in range(1, 7)]
    daemon.start()
    most = 0
    async with asyncio.timeout(30):
        while not all(job.ended.is_set() for job in jobs):
            most = max(most, sum(job.state == "running" for job in jobs))
            await asyncio.sleep(0.05)
    assert most == 2
    assert all(job.state == "success" for job in jobs)


async def test_concurrent_ids_are_the_lowest_free_ones(fake: FakeCoordinator, make_daemon: Make) -> None:
    show = ["echo id=$CI_CONCURRENT_ID project=$CI_CONCURRENT_PROJECT_ID; sleep 1"]
    jobs = [fake.add_job(job_payload(number, show)) for number in range(1, 4)]
    make_daemon().start()
    for job in jobs:
        await asyncio.wait_for(job.ended.wait(), 20)
    found = sorted(re.findall(r"O (id=\d project=\d)", "".join(job.log for job in jobs)))
    assert found == [f"id={number} project={number}" for number in range(3)]


async def test_reload_takes_a_new_runner_and_keeps_the_old_on_errors(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.start()
    await asyncio.wait_for(fake.polled.wait(), 10)
    good = daemon.config.read_text()
    daemon.config.write_text(good + "\nbroken = = 1\n")
    daemon.send(signal.SIGHUP)
    await until(lambda: "Failed to load config" in daemon.log)
    daemon.config.write_text(good.replace("concurrent = 4", "concurrent = 0"))
    daemon.send(signal.SIGHUP)
    await until(lambda: '"concurrent" must be at least 1' in daemon.log)
    second = good[good.index("[[runners]]") :].replace("glrt-lab", "glrt-second")
    daemon.config.write_text(good + "\n" + second)
    job = fake.add_job(job_payload(1, ["echo x"]), runner_token="glrt-second")
    await asyncio.wait_for(job.ended.wait(), 15)
    assert job.state == "success"


async def test_a_missing_configuration_is_waited_for(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    content = daemon.config.read_text()
    daemon.config.write_text(content[: content.index("[[runners]]")])
    daemon.start()
    await until(lambda: "Configuration loaded" in daemon.log)
    daemon.config.write_text(content)
    await asyncio.wait_for(fake.polled.wait(), 10)


async def test_refused_runner_rests_and_an_edit_wakes_it(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.config.write_text(daemon.config.read_text().replace("glrt-lab", "glrt-bad"))
    daemon.start()
    await until(lambda: "is unhealthy and will be disabled for 1h0m0s seconds!" in daemon.log, 15)
    count = len(fake.requests)
    await asyncio.sleep(2.5)
    assert len(fake.requests) == count
    daemon.send(signal.SIGHUP)
    await fake.until(lambda: len(fake.requests) > count, 10)


async def test_invalid_configuration_at_start_exits_78(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.config.write_text("concurrent = 0\n")
    daemon.start()
    assert await daemon.wait(10) == 78
    assert 'error[bad-value]: "concurrent" must be at least 1' in daemon.log


async def test_health_and_metrics(fake: FakeCoordinator, make_daemon: Make) -> None:
    import aiohttp

    daemon = make_daemon(before='listen_address = "127.0.0.1:0"\n')
    port = free_port()
    daemon.config.write_text(daemon.config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
    job = fake.add_job(job_payload(1, ["echo begin; sleep 2"]))
    daemon.start()
    await fake.until(lambda: b"begin" in job.trace)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:

        async def get(path: str) -> tuple[int, str]:
            async with session.get(path) as answer:
                return answer.status, await answer.text()

        assert await get("/health/ready") == (200, "ready\n")
        assert (await get("/health/live"))[0] == 200
        assert (await get("/nothing"))[0] == 404
        status, text = await get("/metrics")
        assert status == 200
        assert 'state="running"' in text
        assert "gitlab_runner_jobs{" in text
        assert 'gitlab_runner_api_request_statuses_total{endpoint="request_job"' in text
        assert "state=running stage=step_script" in (await get("/debug/jobs/list"))[1]
        daemon.send(signal.SIGTERM)
        await until(lambda: "graceful shutdown" in daemon.log)
        assert (await get("/health/ready"))[0] == 503
    assert await daemon.wait(20) == 0


@pytest.mark.parametrize(("flag", "limit"), [("true", 1), ("false", 3)])
async def test_metrics_name_the_limit_of_requests_that_counts(
    flag: str, limit: int, fake: FakeCoordinator, make_daemon: Make
) -> None:
    import aiohttp

    port = free_port()
    flags = f"  [runners.feature_flags]\n    FF_USE_ADAPTIVE_REQUEST_CONCURRENCY = {flag}\n"
    daemon = make_daemon(before=f'listen_address = "127.0.0.1:{port}"\n', extra="  request_concurrency = 3\n" + flags)
    daemon.start()
    await asyncio.wait_for(fake.polled.wait(), 20)
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        text = await answer.text()
    assert re.findall(r"gitlab_runner_request_concurrency_used_limit{.*} (.*)", text) == [f"{limit}.0"]


@pytest.mark.parametrize("user", [pytest.param("pyrunner-test", id="another-account")])
async def test_jobs_run_as_the_job_user(user: str, fake: FakeCoordinator, make_daemon: Make) -> None:
    import subprocess

    if os.geteuid() != 0:
        pytest.skip("only root can change to another account")
    subprocess.run(["useradd", "--system", "--create-home", "--shell", "/bin/bash", user], check=False)
    # What a distribution puts into a new home fails without a terminal, and with it every login shell.
    Path(f"/home/{user}/.bash_logout").unlink(missing_ok=True)
    daemon = make_daemon()
    for directory in (daemon.root.parent, daemon.root):
        directory.chmod(0o755)
    for directory in daemon.root.parents:
        if str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    builds = daemon.root / "builds"
    builds.mkdir()
    builds.chmod(0o777)
    payload = job_payload(1, ["id -un; echo $HOME; cat $F; stat -c %U:%a $F; ls /proc/$PPID/fd 2>&1 || true"])
    payload["variables"].append({"key": "F", "value": "file-content\n", "file": True})
    job = fake.add_job(payload)
    daemon.start("--user", user)
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success", job.log
    lines = [line[32:] for line in job.log.splitlines()]
    assert user in lines
    assert f"/home/{user}" in lines
    assert "file-content" in lines
    assert f"{user}:600" in lines
    assert "Permission denied" in job.log, "the job's user must not see into the supervisor"


async def test_what_another_account_has_left_is_named(fake: FakeCoordinator, make_daemon: Make) -> None:
    """The usual way to get there: the first jobs ran as root, then somebody set --user."""
    if os.geteuid() != 0:
        pytest.skip("only root can change to another account")
    daemon = make_daemon()
    for directory in (*daemon.root.parents, daemon.root):
        if str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o011)
    first = fake.add_job(job_payload(1, ["pwd"]))
    daemon.start()
    await asyncio.wait_for(first.ended.wait(), 30)
    assert first.state == "success", first.log
    await daemon.stop()
    second = fake.add_job(job_payload(2, ["pwd"]))
    daemon.start("--user", "nobody")
    await asyncio.wait_for(second.ended.wait(), 30)
    (project,) = (daemon.root / "builds").glob("*/0/*/*.tmp")
    own = str(project).removesuffix(".tmp")
    assert second.state == "failed"
    assert f"jobs run as 'nobody' and cannot write {own}, which belongs to 'root': change its owner, or remove it" in second.log
    await daemon.stop()
    shutil.rmtree(daemon.root / "builds")
    third = fake.add_job(job_payload(3, ["pwd"]))
    daemon.start("--user", "nobody")
    await asyncio.wait_for(third.ended.wait(), 30)
    assert f"cannot write {daemon.root}, which belongs to 'root': give jobs a builds_dir that they can write" in third.log


async def test_more_runners_than_files_may_usually_be_open(fake: FakeCoordinator, make_daemon: Make) -> None:
    entry = f'\n[[runners]]\n  name = "r%d"\n  url = "{fake.url}"\n  token = "glrt-r%d"\n  executor = "shell"\n'
    daemon = make_daemon(extra="".join(entry % (number, number) for number in range(60)))
    daemon.command = ["/bin/sh", "-c", 'ulimit -S -n 64; exec "$0" "$@"', *daemon.command]
    daemon.start()
    polls = "/api/v4/jobs/request"
    await until(lambda: len({one.headers["RUNNER-TOKEN"] for one in fake.requests if one.path == polls}) == 61, 60)
    job = fake.add_job(job_payload(1, ["echo limit $(ulimit -S -n)"]))
    await asyncio.wait_for(job.ended.wait(), 30)
    assert "limit 64\n" in job.log
    daemon.send(signal.SIGUSR2)
    await until(lambda: daemon.log.count("Configuration loaded") == 2)
    second = fake.add_job(job_payload(2, ["echo limit $(ulimit -S -n)"]))
    await asyncio.wait_for(second.ended.wait(), 30)
    assert "limit 64\n" in second.log
    assert "Too many open files" not in daemon.log


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_job_whose_answer_was_on_its_way_is_not_lost(
    number: signal.Signals, fake: FakeCoordinator, make_daemon: Make
) -> None:
    """A drain runs it, an abort reports it."""
    fake.faults.add("POST /api/v4/jobs/request", "delay", 1, seconds=1.0)
    job = fake.add_job(job_payload(1, ["echo ran"]))
    daemon = make_daemon()
    daemon.start()
    await fake.until(lambda: job.assigned or fake.requests)
    daemon.send(number)
    assert await daemon.wait(20) == 0
    if number is signal.SIGTERM:
        assert job.state == "success"
    else:
        assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert job.log_is_whole()
