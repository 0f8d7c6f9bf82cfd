"""Thousands of jobs on a disk of a few megabytes: none meets its end, and what is used often stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.small_disk import small_tmpfs

JOBS = 2000
PROJECTS = 60
HOT = 2
DISK = """[pyrunner.disk]
  min_free = "16MiB"
  workspaces = "1GiB"
  caches = "1GiB"
[[runners]]"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "runner-0", "64m") as path:
        yield path


def payload(number: int) -> dict[str, Any]:
    """Every fourth job is of a project that is built all the time; each leaves a workspace and a cache behind."""
    is_hot = number % 4 == 0
    project = f"hot{number // 4 % HOT}" if is_hot else f"cold{number % PROJECTS}"
    fill = "mkdir -p c; head -c 400000 /dev/urandom > c/data; head -c 1200000 /dev/zero > out"
    found = job_payload(
        number,
        ["test ! -e c/data && echo cold || echo warm", f"test -e c/data || {{ {fill}; }}"],
        variables={"FF_TIMESTAMPS": "false"},
        cache=[{"key": "hot" if is_hot else f"k{number}", "paths": ["c/"], "policy": "pull-push", "when": "always"}],
    )
    found["job_info"]["project_id"] = sum(project.encode())
    found["git_info"]["repo_url"] = f"http://127.0.0.1/group/{project}.git"
    if not is_hot:
        found["steps"][0]["script"].insert(0, "rm -rf c out")
    return found


@pytest.mark.thorough
@pytest.mark.timeout(3000)
async def test_a_small_disk_is_enough_for_thousands_of_jobs(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], small_disk: Path
) -> None:
    daemon = make_daemon()
    text = daemon.config.read_text().replace("concurrent = 4", "concurrent = 3").replace("[[runners]]", DISK)
    daemon.write_config(text + "  request_concurrency = 3\n")
    jobs = [fake.add_job(payload(number)) for number in range(1, JOBS + 1)]
    daemon.start()
    for job in jobs:
        await asyncio.wait_for(job.ended.wait(), 120)
    assert [job.id for job in jobs if job.state != "success"] == []
    assert [job.id for job in jobs if "space left on device" in job.log] == []
    assert "space left on device" not in daemon.log.lower()
    later = [job for job in jobs if job.id % 4 == 0][2 * HOT :]
    assert [job.id for job in later if "Successfully extracted cache" not in job.log] == [], "hot caches stay"
    assert "removed from the disk" in daemon.log
