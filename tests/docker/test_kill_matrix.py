"""The daemon dies at every point of a Docker job's life: the result is true, the script ran once, the log is whole, and
nothing is left on the engine."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.docker.conftest import state_filter
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.killing import RESTART_LINE, start_to_die
from tests.waiting import until

RESULT = ("failed", "script_failure", 7)
DOCKER_FACTS = (
    "attempt",
    "prepared",
    "build",
    "early",
    "image lines 1",
    "ran",
    "due 1",
    "used",
    "delivered 1",
    "log end",
    "ended 1",
    "due 2",
    "delivered 2",
    "ended 2",
)
JOB_FACTS = (
    "acknowledged",
    "step_ended prepare_executor",
    "step_started get_sources 1",
    "step_ended get_sources 1",
    "step_started step_script 0",
    "step_ended step_script 0",
    "step_started after_script",
    "step_started upload_artifacts_on_failure",
    "step_ended cleanup_file_variables",
    "outcome",
)
POINTS = [
    *(f"{moment} docker {fact}" for fact in DOCKER_FACTS for moment in ("before", "torn", "after")),
    *(f"{moment} {fact}" for fact in JOB_FACTS for moment in ("before", "after")),
]
SCRIPT = [
    "echo one; echo run >>/shared/runs",
    "sleep 0.3; echo two; printf 'no en''d '; sleep 0.3",
    "mkdir -p out; echo result >out/file",
    "exit 7",
]


def payload(fake: FakeCoordinator) -> dict[str, Any]:
    sha = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    found = job_payload(
        1,
        SCRIPT,
        after_script=["cat README; echo after $CI_JOB_STATUS; echo run >>/shared/after"],
        variables={"GIT_STRATEGY": "fetch"},
        artifacts=[{"paths": ["out/"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}],
    )
    found["git_info"] = {
        "repo_url": f"{fake.url}/git/app.git",
        "ref": "main",
        "sha": sha,
        "depth": 20,
        "refspecs": [f"+{sha}:refs/pipelines/77"],
    }
    return found


def comparable(log: str) -> str:
    """What all runs of the job have in common."""
    log = re.sub(r"section_(start|end):\d+", r"section_\1:T", log.replace(RESTART_LINE, ""))
    log = re.sub(r"system ID: \S+", "system ID", log)
    log = re.sub(r"(Gitaly correlation ID:|correlation_id\x1b\[0;m=|token\x1b\[0;m=) ?\S+", r"\1", log)
    return re.sub(r"(Rein|In)itialized (existing|empty) Git", "Initialized Git", log)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", POINTS)
async def test_killed_at(
    point: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], client: docker.APIClient, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    daemon = make_daemon(volumes=f'["/cache", "{shared}:/shared"]')
    job = fake.add_job(payload(fake))
    start_to_die(daemon, point)
    await until(lambda: not daemon.running or job.ended.is_set(), 120)
    assert not daemon.running, f"the point was never reached: {point}\n{job.log}\n{daemon.log}"
    daemon.start()
    async with asyncio.timeout(120):
        await job.ended.wait()
    assert (job.state, job.failure_reason, job.exit_code) == RESULT, job.log + daemon.log
    assert job.log_is_whole()
    assert (shared / "runs").read_text() == "run\n"
    assert (shared / "after").read_text() == "run\n"
    assert [artifact.kind for artifact in job.artifacts] == ["archive"]
    for line in ("one\n", "two\n", "no end ", "hello\nafter failed\n", "Job failed: exit code 7"):
        assert comparable(job.log).count(line) == 1, (line, job.log)
    await until(lambda: not list((daemon.state / "jobs").iterdir()), 60)
    await daemon.stop()
    assert client.containers(all=True, filters=state_filter(daemon)) == []
