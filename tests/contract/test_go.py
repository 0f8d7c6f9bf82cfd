"""Shared stores of the Go tool, with the Go tool: what is warm, what is whose, and what nobody can plant."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "examples" / "go-service"
USER = "pyrunner-go-test"
GO = "\n  [runners.go]\n"
# A program that is built in a second, and one package of its own.
SMALL = {
    "go.mod": "module example.com/small\n\ngo 1.20\n",
    "main.go": 'package main\n\nimport "example.com/small/inner"\n\nfunc main() { println(inner.Text) }\n',
    "inner/inner.go": 'package inner\n\nconst Text = "built"\n',
}
Make = Callable[..., Daemon]


@pytest.fixture
def go_daemon(make_daemon: Make) -> Make:
    """A daemon whose jobs find the Go tool, and none of the stores of who runs the tests."""

    def make(table: str = "", *, extra: str = "") -> Daemon:
        path = f"{Path(shutil.which('go') or 'go').parent}:/usr/local/bin:/usr/bin:/bin"
        daemon = make_daemon(extra=f'  environment = ["PATH={path}"]\n{extra}{GO}{table}')
        daemon.home.chmod(0o755)
        return daemon

    return make


@pytest.fixture
def user() -> str:
    """An account for jobs."""
    if os.geteuid() != 0:
        pytest.skip("only root can change to another account")
    subprocess.run(["useradd", "--system", "--create-home", "--shell", "/bin/bash", USER], check=False)
    Path(f"/home/{USER}/.bash_logout").unlink(missing_ok=True)
    return USER


def open_to(user: str, daemon: Daemon) -> None:
    """The account works below the daemon's directory."""
    for directory in (daemon.root, *daemon.root.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    builds = daemon.root / "builds"
    builds.mkdir()
    shutil.chown(builds, user)


def sources(fake: FakeCoordinator, files: dict[str, str] | Path) -> str:
    """A repository; its commit."""
    if isinstance(files, Path):
        files = {path.name: path.read_text() for path in files.iterdir() if path.is_file()}
    return git_server.make_repository(fake.repositories, "app", files)


def add(
    fake: FakeCoordinator, job_id: int, script: list[str], *, commit: str = "", protected: bool | None = False, **changes: Any
) -> Job:
    variables = {"GIT_STRATEGY": "fetch" if commit else "empty", **changes.pop("variables", {})}
    project = changes.pop("project", 9)
    payload = job_payload(job_id, script, variables=variables, **changes)
    if commit:
        payload["git_info"] |= fake.git_info(commit)
    payload["git_info"]["protected"] = protected
    payload["job_info"]["project_id"] = project
    return fake.add_job(payload)


async def ended(job: Job, timeout_s: float = 600) -> Job:
    await asyncio.wait_for(job.ended.wait(), timeout_s)
    return job


async def run(fake: FakeCoordinator, job_id: int, script: list[str], **changes: Any) -> Job:
    job = await ended(add(fake, job_id, script, **changes))
    assert job.state == "success", job.log
    return job


def store_line(job: Job) -> str:
    return next(re.sub(r"^\S+Z \w+ ", "", line) for line in job.log.splitlines() if "Go cache: " in line)


async def test_what_one_job_built_the_next_one_has(fake: FakeCoordinator, go_daemon: Make) -> None:
    """Another slot of the project has another directory: what does not depend on that is there."""
    commit = sources(fake, SMALL)
    daemon = go_daemon()
    daemon.start()
    script = ["go build -x -o small . 2>&1 | grep -c 'compile -o' || true", "./small", "go env GOCACHE GOMODCACHE GOPATH GOFLAGS"]
    first = await run(fake, 1, script, commit=commit)
    assert "scope project/unprotected, cold (project-9)" in store_line(first)
    assert "\n0\n" not in plain(first)
    second = await run(fake, 2, script, commit=commit)
    assert re.search(r"Go cache: [\d.]+ MiB, scope project/unprotected, warm \(project-9\)", store_line(second))
    assert "\n0\n" in plain(second), second.log
    assert "-modcacherw" in second.log
    assert "cache" not in [section for section in re.findall(r"section_start:\d+:(\w+)", second.log) if "cache" in section]


def plain(job: Job) -> str:
    """The log without times and sections."""
    return "".join(re.sub(r"^\S+Z \w+ ", "", line) + "\n" for line in job.log.splitlines())
