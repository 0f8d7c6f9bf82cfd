"""What servers, files and jobs may get wrong: said clearly, where it happened, and no other job pays for it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import files_below, until

Make = Callable[..., Daemon]
SHORT = {"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false"}


async def other_job_runs(fake: FakeCoordinator) -> None:
    job = fake.add_job(job_payload(99, ["echo fine"]))
    await asyncio.wait_for(job.ended.wait(), 30)
    assert job.state == "success"
    assert job.log_is_whole()


def resident_mib(daemon: Daemon) -> float:
    return int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"id": 5, "token": "glcbt-job-5", "steps": [{"name"', "truncated"),
        ("[]", "Expected `object`"),
        ('{"id": "five", "token": "glcbt-job-5"}', "$.id"),
        ('{"id": 5, "token": "glcbt-job-5", "steps": {"a": 1}}', "$.steps"),
        ("<html>Bad gateway</html>", "malformed"),
        ("", "truncated"),
    ],
    ids=["cut off", "list", "id is text", "steps is an object", "html", "empty"],
)
async def test_a_payload_that_cannot_be_read(body: str, text: str, fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    headers = {"Content-Type": "application/json"}
    fake.faults.add("POST /api/v4/jobs/request", "status", 1, status=201, body=body, headers=headers)
    daemon.start()
    await until(lambda: "Checking for jobs... failed" in daemon.log)
    assert text in daemon.log
    assert "Traceback" not in daemon.log
    await other_job_runs(fake)
    await until(lambda: not list((daemon.state / "jobs").iterdir()))


async def test_a_payload_of_many_mebibytes_is_run(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    payload = job_payload(
        1, ["echo ran\n# " + "x" * (8 << 20)], variables={"BIG": "v" * (300 << 10), **SHORT, "GIT_STRATEGY": "none"}
    )
    payload["artifacts"] = []
    job = fake.add_job(payload)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 60)
    assert job.state == "success", job.log[-2000:]
    assert "BIG" in job.log
    assert job.log.rstrip().endswith("Job succeeded\x1b[0;m")
    assert job.log_is_whole()


@pytest.mark.parametrize("status", [400, 409, 410, 422, 429, 500, 502, 503])
@pytest.mark.parametrize("call", ["POST /api/v4/jobs/request", "PUT /api", "PATCH /api"])
async def test_a_call_that_fails_twice(call: str, status: int, fake: FakeCoordinator, make_daemon: Make) -> None:
    """403 and 404, by which a server disowns a job, are in the recordings."""
    daemon = make_daemon()
    fake.faults.add(call, "status", 2, status=status, body={"message": f"{status} for a test"})
    job = fake.add_job(job_payload(1, ["echo begin; sleep 0.3; echo end"]))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 40)
    assert job.state == "success", daemon.log
    assert job.log_is_whole()
    assert "Traceback" not in daemon.log
    await other_job_runs(fake)


async def test_certificates_that_cannot_be_read_cost_their_own_runner_only(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    bad = daemon.root / "bad.pem"
    bad.write_text("this is no certificate\n")
    second = [
        "[[runners]]",
        'name = "tls"',
        'url = "https://localhost:1"',
        'token = "glrt-tls"',
        'executor = "shell"',
        f'tls-ca-file = "{bad}"',
    ]
    daemon.config.write_text(daemon.config.read_text() + "\n".join(["", *second, ""]))
    daemon.start()
    await other_job_runs(fake)
    await until(lambda: str(bad) in daemon.log)
    assert f"cannot use the CA file {bad}" in daemon.log
    assert "Traceback" not in daemon.log


async def test_a_branch_name_with_shell_characters_is_a_name(fake: FakeCoordinator, make_daemon: Make) -> None:
    branch = "$(touch${IFS}pwned);`touch${IFS}pwned`&|'\"<>!"
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    bare = fake.repositories / "app.git"
    subprocess.run(["git", "--git-dir", str(bare), "update-ref", f"refs/heads/{branch}", commit], check=True)
    daemon = make_daemon()
    payload = job_payload(1, ["cat README; printf '%s\\n' \"$CI_COMMIT_REF_NAME\""], variables=SHORT)
    payload["variables"].append({"key": "CI_COMMIT_REF_NAME", "value": branch, "raw": True})
    payload["git_info"] |= fake.git_info(commit, branch=branch)
    job = fake.add_job(payload)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success", job.log
    assert f"(ref is {branch})" in job.log
    assert f"\n{branch}\n" in job.log
    assert files_below(daemon.root, "pwned") == []


async def run_long(fake: FakeCoordinator, daemon: Daemon, script: str) -> tuple[Job, float]:
    """The job, and how much the daemon grew while it ran, MiB."""
    daemon.start()
    await asyncio.wait_for(fake.polled.wait(), 10)
    before = most = resident_mib(daemon)
    job = fake.add_job(job_payload(1, [script]))
    deadline = time.monotonic() + 90
    while not job.ended.is_set():
        assert time.monotonic() < deadline, daemon.log[-2000:]
        most = max(most, resident_mib(daemon))
        await asyncio.sleep(0.05)
    return job, most - before


@pytest.mark.timeout(150)
async def test_a_gibibyte_without_a_newline(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    job, grown = await run_long(fake, daemon, "head -c 1073741824 /dev/zero | tr '\\0' x; echo; echo end")
    assert job.state == "success"
    assert "Job's log exceeded limit of 4194304 bytes." in job.log
    assert job.log_is_whole()
    assert grown < 64
    await other_job_runs(fake)


@pytest.mark.timeout(150)
async def test_a_log_of_64_mebibytes_arrives_whole(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra="  output_limit = 262144\n")
    lines = (64 << 20) // 64
    script = f'awk \'BEGIN {{ for (i = 0; i < {lines}; i++) printf "%08d %s\\n", i, "{"y" * 54}" }}\''
    job, grown = await run_long(fake, daemon, script)
    assert job.state == "success"
    assert job.log_is_whole()
    numbers = [line[32:40] for line in job.log.split("\n") if line.endswith("y" * 54)]
    assert numbers == [f"{number:08d}" for number in range(lines)]
    assert grown < 64


async def test_answers_that_are_not_what_they_say(fake: FakeCoordinator, make_daemon: Make) -> None:
    """Headers that no server should send: nothing of them is believed, and the job ends as it should."""
    daemon = make_daemon()
    odd = {"Range": "bytes", "X-GitLab-Trace-Update-Interval": "soon", "Job-Status": "", "Retry-After": "never"}
    fake.faults.add("PATCH /api", "headers", 5, headers=odd)
    fake.faults.add("PATCH /api", "status", 1, status=416, headers={"Range": "0-999999999999999999999999"}, skip=1)
    job = fake.add_job(job_payload(1, ["echo begin; sleep 1.5; echo end"]))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 40)
    assert job.state == "success", json.dumps([vars(request) for request in fake.requests][-5:], default=str)
    assert "Traceback" not in daemon.log
