"""Room on the disk: no job is asked for without it, and what was not used for the longest time makes way."""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_artifacts import ended
from tests.contract.test_interventions import free_port
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.small_disk import small_tmpfs
from tests.waiting import until

Make = Callable[..., Daemon]
MIB = 1024 * 1024


def add_job(fake: FakeCoordinator, number: int, project: str, script: list[str], **changes: Any) -> Job:
    """A job of a project of its own, on what an earlier job left there."""
    payload = job_payload(number, script, variables={"FF_TIMESTAMPS": "false"}, **changes)
    payload["job_info"]["project_id"] = sum(project.encode())
    payload["git_info"]["repo_url"] = f"http://127.0.0.1/group/{project}.git"
    return fake.add_job(payload)


def workspace(daemon: Daemon, project: str) -> Path:
    return daemon.root / "builds" / "lab" / "0" / "group" / project


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "runner-0", "32m") as path:
        yield path


BUDGETS = "[pyrunner.disk]\n  {}\n[[runners]]"


def bounded(daemon: Daemon, keys: str) -> None:
    daemon.write_config(daemon.config.read_text().replace("[[runners]]", BUDGETS.format(keys)))


def metric(port: int, name: str) -> float:
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE)
    assert found is not None, name
    return float(found[1])


async def test_no_job_is_asked_for_without_room(fake: FakeCoordinator, make_daemon: Make, small_disk: Path) -> None:
    port = free_port()
    daemon = make_daemon(before=f'listen_address = "127.0.0.1:{port}"\n')
    bounded(daemon, 'min_free = "8MiB"')
    filling = small_disk / "filling"
    filling.write_bytes(b"x" * (26 * MIB))
    job = add_job(fake, 1, "app", ["echo hello"])
    daemon.start()
    await until(lambda: "no jobs are requested: the disk is full" in daemon.log)
    turns = metric(port, "gitlab_runner_worker_feeds_total")
    await until(lambda: metric(port, "gitlab_runner_worker_feeds_total") >= turns + 3)
    assert metric(port, "pyrunner_disk_low") == 1
    assert job.state == "pending"
    assert not fake.polled.is_set()
    assert daemon.log.count("no jobs are requested") == 1, "said once"
    filling.unlink()
    await ended(job)
    assert job.state == "success"
    assert "jobs are requested again: there is room on the disk" in daemon.log
    assert metric(port, "pyrunner_disk_low") == 0
    assert metric(port, "pyrunner_disk_free_bytes") > 8 * MIB


async def test_a_budget_is_kept_and_a_running_job_keeps_its_place(fake: FakeCoordinator, make_daemon: Make) -> None:
    port = free_port()
    daemon = make_daemon(before=f'listen_address = "127.0.0.1:{port}"\n')
    daemon.start()
    marks = daemon.root
    running = add_job(
        fake,
        1,
        "running",
        [f"head -c {2 * MIB} /dev/zero > data; touch {marks}/on; until test -e {marks}/go; do sleep 0.05; done", "wc -c data"],
    )
    await until((marks / "on").exists)
    for number, project in ((2, "old"), (3, "new")):
        await ended(add_job(fake, number, project, [f"head -c {2 * MIB} /dev/zero > data"]))
    daemon.kill()
    bounded(daemon, 'workspaces = "5MiB"')
    daemon.start()
    await until(lambda: not workspace(daemon, "old").exists())
    assert workspace(daemon, "new").exists()
    await until(lambda: metric(port, "pyrunner_disk_removed_total") == 1)
    assert metric(port, "pyrunner_disk_budget_bytes") == 5 * MIB
    assert 4 * MIB < metric(port, "pyrunner_disk_used_bytes") < 5 * MIB
    (marks / "go").touch()
    await ended(running)
    assert f"{2 * MIB} data" in running.log
    await until(lambda: not [name for name in os.listdir(daemon.root / "builds" / "lab") if name.startswith(".")])
    await until(lambda: "removed from the disk what was not used for the longest time" in daemon.log)


async def test_logs_that_are_kept_have_a_budget(fake: FakeCoordinator, make_daemon: Make) -> None:
    """The newest stay."""
    daemon = make_daemon()
    bounded(daemon, f"records = {3 * MIB}")
    daemon.start()
    for number in (1, 2, 3, 4):
        await ended(add_job(fake, number, "app", [f"head -c {MIB} /dev/zero | tr '\\0' x"]))

    def left() -> list[str]:
        return sorted(path.name.split("-")[1] for path in (daemon.state / "kept").iterdir() if path.name.startswith("lab-"))

    await until(lambda: "4" in left())
    await daemon.stop()
    daemon.start()
    await until(lambda: left() == ["3", "4"])
    for path in (daemon.state / "kept").glob("lab-*"):
        assert sorted(file.name for file in path.iterdir()) == ["report.json", "trace"]


async def test_a_workspace_that_is_gone_is_made_again(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    bounded(daemon, "workspaces = 0")
    daemon.start()
    await ended(add_job(fake, 1, "app", ["echo 1 > left"]))
    await daemon.stop()
    daemon.start()
    await until(lambda: not workspace(daemon, "app").exists())
    job = await ended(add_job(fake, 2, "app", ["ls -A | wc -l"]))
    assert job.state == "success"
    assert "\n0\n" in job.log
