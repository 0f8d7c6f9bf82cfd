"""Attempts of stages (``job-lifecycle.md`` 3), and what is counted of stages."""

from __future__ import annotations

import asyncio
import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_interventions import free_port
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import processes_below, until

Make = Callable[..., Daemon]


def payload(fake: FakeCoordinator, commit: str, script: list[str], **variables: str) -> dict[str, Any]:
    settings = {"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false", "EXECUTOR_JOB_SECTION_ATTEMPTS": "2", **variables}
    found = job_payload(1, script, variables=settings)
    found["git_info"] |= fake.git_info(commit)
    return found


def kill_supervisor(daemon: Daemon) -> None:
    """Kill what holds the lock of the only record, and what it has started."""
    for entry in Path("/proc").iterdir():
        try:
            links = [os.readlink(link) for link in (entry / "fd").iterdir()] if entry.name.isdigit() else []
        except OSError:
            continue
        below = [link for link in links if link.startswith(str(daemon.state / "jobs"))]
        if below and int(entry.name) != daemon.pid:
            os.kill(int(entry.name), signal.SIGKILL)


@pytest.mark.parametrize("attempts", ["1", "2"])
async def test_sources_are_fetched_again_in_a_new_place(attempts: str, fake: FakeCoordinator, make_daemon: Make) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon()
    fake.git_delay_s = 60
    job = fake.add_job(payload(fake, commit, ["cat README"], EXECUTOR_JOB_SECTION_ATTEMPTS=attempts))
    daemon.start()
    await until(lambda: any("git-remote-http" in command for command in processes_below(daemon.root)), 60)
    fake.git_delay_s = 0
    kill_supervisor(daemon)
    await asyncio.wait_for(job.ended.wait(), 40)
    if attempts == "1":
        assert (job.state, job.failure_reason) == ("failed", "runner_system_failure"), job.log
        return
    assert job.state == "success", job.log
    assert job.log.count("Retrying get_sources") == 1
    assert "\nhello\n" in job.log


@pytest.mark.parametrize("place", ["script", "hook"])
async def test_no_script_is_run_twice(place: str, fake: FakeCoordinator, make_daemon: Make) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon()
    count = daemon.root / "count"
    lines = [f"echo once >> {count}; echo begun", "sleep 60"]
    found = payload(fake, commit, lines if place == "script" else ["true"], GET_SOURCES_ATTEMPTS="1")
    if place == "hook":
        found["hooks"] = [{"name": "pre_get_sources_script", "script": lines}]
    job = fake.add_job(found)
    daemon.start()
    await fake.until(lambda: b"\nbegun" in job.trace)
    kill_supervisor(daemon)
    await asyncio.wait_for(job.ended.wait(), 40)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure"), job.log
    assert count.read_text() == "once\n"
    assert "Retrying" not in job.log


@pytest.mark.parametrize("flag", ["true", "false"])
async def test_durations_of_stages_are_counted_where_that_is_wanted(flag: str, fake: FakeCoordinator, make_daemon: Make) -> None:
    port = free_port()
    daemon = make_daemon(before=f'listen_address = "127.0.0.1:{port}"\n')
    found = job_payload(1, ["true"], after_script=["true"], image={"name": "ruby:$CI_JOB_ID"}, services=[{"name": "redis:7"}])
    flags = {"FF_EXPORT_HIGH_CARDINALITY_METRICS": flag, "FF_LOG_IMAGES_CONFIGURED_FOR_JOB": flag}
    found["variables"] += [{"key": key, "value": value} for key, value in flags.items()]
    job = fake.add_job(found)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    page = (await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/metrics")).read().decode()
    stages = ["prepare_executor", "prepare_script", "get_sources", "step_script", "after_script", "cleanup_file_variables"]
    for stage in stages:
        counted = f'gitlab_runner_job_stage_duration_seconds_count{{runner="lab",runner_name="lab",stage="{stage}"'
        assert (counted in page) == (flag == "true"), stage
    assert ("Image configured for job" in daemon.log) == (flag == "true")
    if flag == "true":
        assert "image_name=ruby:1" in daemon.log
        assert "image_name=redis:7" in daemon.log
