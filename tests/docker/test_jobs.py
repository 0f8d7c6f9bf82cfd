"""Whole jobs in containers: what the server sees of them, and what is left on the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import docker

from tests.docker.conftest import state_filter
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

MakeDaemon = Callable[..., Daemon]


async def ended(job: Job, timeout_s: float = 90.0) -> Job:
    async with asyncio.timeout(timeout_s):
        await job.ended.wait()
    return job


def containers_of(client: docker.APIClient, daemon: Daemon) -> list[Any]:
    found: Any = client.containers(all=True, filters=state_filter(daemon))
    return list(found)


async def test_a_script_runs_and_nothing_is_left(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    daemon = make_daemon()
    daemon.start()
    job = await ended(
        fake.add_job(job_payload(1001, ["echo hi", "pwd; id -u", "touch file; ls -ld . file"], after_script=["ls"]))
    )
    assert job.state == "success", job.log + daemon.log
    assert job.log_is_whole()
    assert "\nhi\n" in job.log
    assert "/builds/group/project\n0\n" in job.log
    await daemon.stop()
    assert containers_of(client, daemon) == []


async def test_sources_caches_and_artifacts_go_through_the_helper(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    sha = git_server.make_repository(fake.repositories, "app", {"README": "hi\n", "dir/a": "a\n"})
    daemon = make_daemon()
    daemon.start()
    repository = {"repo_url": f"{fake.url}/git/app.git", "ref": "main", "sha": sha, "depth": 20}
    repository["refspecs"] = [f"+{sha}:refs/pipelines/77"]
    cache = [{"key": "k", "paths": ["c/"], "policy": "pull-push", "when": "on_success"}]
    artifacts = [{"paths": ["out", "link"], "when": "on_success", "artifact_type": "archive", "artifact_format": "zip"}]
    logs = []
    for number in (1, 2):
        script = [
            "cat README dir/a",
            "ls c 2>/dev/null || mkdir -p c/empty",
            "dd if=/dev/urandom of=c/big bs=1M count=3 2>/dev/null",
        ]
        script += ["mkdir -p out/x; cp c/big out/x/big; echo small >out/small; ln -sf README link", "md5sum c/big"]
        payload = job_payload(
            1000 + number, script, git_info=repository, cache=cache, artifacts=artifacts, variables={"GIT_STRATEGY": "fetch"}
        )
        if number == 2:
            payload["dependencies"] = [
                {"id": 1001, "token": "glcbt-job-1001", "name": "test", "artifacts_file": {"filename": "a.zip", "size": 1}}
            ]
            payload["steps"][0]["script"] = ["ls -l out/x c; md5sum c/big out/x/big; cat out/small; readlink link"]
        logs.append(await ended(fake.add_job(payload)))
        assert logs[-1].state == "success", logs[-1].log + daemon.log
    first = next(line.split()[0] for line in logs[0].log.splitlines() if line.endswith("  c/big"))
    assert f"{first}  c/big" in logs[1].log
    assert f"{first}  out/x/big" in logs[1].log
    assert "\nsmall\nREADME\n" in logs[1].log
    await daemon.stop()
    assert containers_of(client, daemon) == []


async def test_a_failing_script_ends_with_its_exit_code(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    daemon.start()
    payload = job_payload(1001, ["echo before; exit 42", "echo never"], after_script=["echo status $CI_JOB_STATUS; false"])
    job = await ended(fake.add_job(payload))
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 42)
    assert "\nbefore\n" in job.log
    assert "never\n" not in job.log.replace("$ echo never", "")
    assert "status failed\n" in job.log
    assert "after_script failed, but job will continue unaffected: exit code 1" in job.log
    assert job.log.rstrip().endswith("ERROR: Job failed: exit code 42\x1b[0;m")


async def test_streams_long_lines_and_lines_without_end_arrive_whole(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    """The engine divides long lines, and writes both streams into one log."""
    daemon = make_daemon(extra="  output_limit = 8192")
    daemon.start()
    script = [
        "head -c 100000 /dev/zero | tr '\\0' x; echo",
        "sleep 0.3; echo to stderr >&2; sleep 0.3",
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done",
    ]
    job = await ended(fake.add_job(job_payload(1001, [*script, "printf unfinished"])))
    assert job.state == "success", job.log[-3000:] + daemon.log
    assert "\n" + "x" * 100000 + "\n" in job.log
    assert "to stderr\n" in job.log
    assert "".join(f"line {number}\n" for number in range(20000)) in job.log
    assert "unfinished" in job.log


async def test_cancel_ends_the_script_and_after_script_runs_in_a_fresh_container(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    daemon = make_daemon()
    daemon.start()
    script = ["touch /in-the-root here", "echo begun", "trap 'echo told' TERM; while :; do sleep 0.2 || :; done"]
    after = ["ls /in-the-root here || echo after $CI_JOB_STATUS"]
    job = fake.add_job(job_payload(1001, script, after_script=after))
    await fake.until(lambda: "begun\n" in job.log, 90)
    fake.cancel(job)
    await ended(job)
    assert job.state == "canceled"
    assert "told\n" in job.log
    assert "after canceled\n" in job.log
    assert "/in-the-root: No such file" in job.log
    assert "\nhere\n" in job.log
    await daemon.stop()
    assert containers_of(client, daemon) == []


async def test_a_script_timeout_ends_everything_in_the_container(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    daemon.start()
    payload = job_payload(1001, ["echo begun; sleep 1000 & wait"], variables={"RUNNER_SCRIPT_TIMEOUT": "2s"})
    job = await ended(fake.add_job(payload))
    assert (job.state, job.failure_reason) == ("failed", "job_execution_timeout"), job.log + daemon.log


async def test_no_engine_fails_the_job_after_three_tries(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(docker='    host = "unix:///nonexistent/docker.sock"')
    daemon.start()
    job = await ended(fake.add_job(job_payload(1001, ["true"])))
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert (
        job.log.count("Preparation failed: getting docker info: failed to connect to the docker API at unix:///nonexistent") == 3
    )


async def test_memory_that_runs_out_is_explained(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(docker='    memory = "16m"\n    memory_swap = "16m"')
    daemon.start()
    job = await ended(fake.add_job(job_payload(1001, ["head -c 100m /dev/zero | tail"])))
    assert (job.state, job.failure_reason) == ("failed", "script_failure"), job.log + daemon.log
    assert "WARNING: Container was out of memory (limit 16 MiB)" in job.log


async def test_a_record_that_cannot_be_read_leaves_no_container(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    daemon = make_daemon()
    daemon.start()
    job = fake.add_job(job_payload(1001, ["echo begun", "sleep 300"]))
    await fake.until(lambda: "begun\n" in job.log, 60)
    daemon.kill()
    (record,) = (daemon.state / "jobs").iterdir()
    (record / "accepted.json").write_text("{")
    assert containers_of(client, daemon)
    daemon.start()
    await ended(job)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    await until(lambda: not record.exists(), 60)
    assert not containers_of(client, daemon)
    assert "set aside" in daemon.log
