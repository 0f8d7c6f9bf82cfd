"""Artifacts where no recording helps: restarts, stores of other names, hostile trees, what must not be sent."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon

UPLOAD = "POST .*/artifacts"


def entry(*paths: str, **changes: Any) -> dict[str, Any]:
    return {"name": "", "paths": list(paths), "artifact_type": "archive", "artifact_format": "zip", "when": "always", **changes}


def add_job(fake: FakeCoordinator, job_id: int, script: list[str], **changes: Any) -> Job:
    variables = {"FF_TIMESTAMPS": "false", "GIT_STRATEGY": "empty", **changes.pop("variables", {})}
    return fake.add_job(job_payload(job_id, script, variables=variables, **changes))


async def ended(job: Job, timeout_s: float = 40) -> Job:
    await asyncio.wait_for(job.ended.wait(), timeout_s)
    return job


def names(content: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return sorted(archive.namelist())


def count(fake: FakeCoordinator, method: str) -> int:
    return sum(1 for request in fake.requests if request.method == method and request.path.endswith("/artifacts"))


async def test_artifacts_reach_a_later_job(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    first = add_job(fake, 1, ["mkdir d; echo x > d/x; ln -s x d/l; chmod 750 d/x"], artifacts=[entry("d")])
    daemon.start()
    await ended(first)
    dependency = {"id": 1, "token": first.token, "name": "build", "artifacts_file": {"filename": "artifacts.zip", "size": 9}}
    second = add_job(fake, 2, ["cat d/l; stat -c %a d/x"], dependencies=[dependency])
    await ended(second)
    assert (first.state, second.state) == ("success", "success")
    assert "x\n750\n" in second.log


DEPENDENCY = {"id": 1, "name": "build", "artifacts_file": {"filename": "artifacts.zip", "size": 9}}


async def test_downloads_are_staged_where_the_job_wants(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """The archive has no name there; it is gone when it is unpacked."""
    daemon = make_daemon()
    staging = tmp_path / "staging"
    staging.mkdir()
    first = add_job(fake, 1, ["head -c 3000000 /dev/urandom >big"], artifacts=[entry("big")])
    daemon.start()
    await ended(first)
    assert first.state == "success", first.log
    fake.faults.add("GET .*/artifacts", "delay", seconds=5)
    dependency = {**DEPENDENCY, "token": first.token}
    variables = {"ARCHIVER_STAGING_DIR": str(staging)}
    second = add_job(fake, 2, ["stat -c %s big"], dependencies=[dependency], variables=variables)
    await fake.until(lambda: count(fake, "GET"))
    assert [place for place in open_files(daemon) if place.startswith(f"{staging}/")]
    await ended(second)
    assert second.state == "success", second.log
    assert "\n3000000\n" in second.log
    assert not [place for place in open_files(daemon) if place.startswith(f"{staging}/")]
    assert not list(staging.iterdir())


@pytest.mark.parametrize("directory", ["/no/such/directory", "relative"])
async def test_a_directory_that_cannot_be_used_for_staging_is_named(
    directory: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    first = add_job(fake, 1, ["echo x >x"], artifacts=[entry("x")], variables={"ARCHIVER_STAGING_DIR": directory})
    daemon.start()
    await ended(first)
    assert first.state == "success", "nothing is staged for an upload"
    dependency = {**DEPENDENCY, "token": first.token}
    second = add_job(fake, 2, ["echo never"], dependencies=[dependency], variables={"ARCHIVER_STAGING_DIR": directory})
    await ended(second)
    assert (second.state, second.failure_reason) == ("failed", "script_failure")
    assert f"FATAL: open {directory}/artifacts: no such file or directory" in second.log
    assert count(fake, "GET") == 0


def open_files(daemon: Daemon) -> list[str]:
    """What the daemon has open."""
    found = []
    for entry in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(entry))
    return found


@pytest.mark.parametrize("fault", ["delay", "lost"])
async def test_an_upload_survives_its_daemon(fault: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    fake.faults.add(UPLOAD, fault, seconds=20)
    job = add_job(fake, 1, ["echo x > x"], artifacts=[entry("x")])
    daemon.start()
    await fake.until(lambda: count(fake, "POST"))
    daemon.kill()
    daemon.start()
    await ended(job)
    assert job.state == "success"
    assert [names(artifact.content) for artifact in job.artifacts] == [["x"]]
    assert job.log_is_whole()


async def test_stored_already_is_success_after_a_restart(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    """The archive arrived, its answer did not; meanwhile a background process changed the file."""
    daemon = make_daemon()
    fake.faults.add(UPLOAD, "lost")
    fake.faults.add(UPLOAD, "delay", seconds=1)
    job = add_job(fake, 1, ["echo x > x; (sleep 2; echo y > x) >/dev/null 2>&1 &"], artifacts=[entry("x")])
    daemon.start()
    await fake.until(lambda: job.artifacts)
    daemon.kill()
    x = daemon.root / "builds" / "lab" / "0" / "group" / "project-empty" / "x"
    async with asyncio.timeout(10):
        while x.read_text() != "y\n":
            await asyncio.sleep(0.05)
    daemon.start()
    await ended(job)
    assert job.state == "success"
    assert "stored before the runner was restarted" in job.log


async def test_another_refusal_after_a_restart_is_none(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    fake.faults.add(UPLOAD, "delay", seconds=20)
    headers = {"Content-Type": "application/json"}
    fake.faults.add(UPLOAD, "status", 9, status=400, body={"message": "400 Bad request - invalid dotenv"}, headers=headers)
    job = add_job(fake, 1, ["echo x > x"], artifacts=[entry("x")])
    daemon.start()
    await fake.until(lambda: count(fake, "POST"))
    daemon.kill()
    daemon.start()
    await ended(job)
    assert (job.state, job.failure_reason) == ("failed", "script_failure")


async def test_stored_already_is_a_failure_otherwise(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    job = add_job(fake, 1, ["echo x > x; echo y > y"], artifacts=[entry("x"), entry("y")])
    daemon.start()
    await ended(job)
    assert (job.state, job.failure_reason) == ("failed", "script_failure")
    assert "another artifact of the same type already exists" in job.log


async def test_entries_that_were_stored_are_not_sent_again(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    fake.faults.add(UPLOAD, "delay", skip=1, seconds=20)
    report = entry("r.xml", artifact_type="junit", artifact_format="gzip", name="junit.xml")
    job = add_job(fake, 1, ["echo x > x; echo '<x/>' > r.xml"], artifacts=[entry("x"), report])
    daemon.start()
    await fake.until(lambda: count(fake, "POST") == 2)
    daemon.kill()
    daemon.start()
    await ended(job)
    assert job.state == "success"
    assert [artifact.kind for artifact in job.artifacts] == ["archive", "junit"]
    assert count(fake, "POST") == 3


async def test_a_name_that_cannot_be_expanded_is_said_first(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    make_daemon().start()
    job = await ended(add_job(fake, 1, ["touch x"], artifacts=[entry("x", name="$(id)"), entry("none", name="`id`")]))
    starts = ("WARNING: invalid", "x: found", "WARNING: none", "ERROR:")
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in job.log.splitlines()]
    assert [start for line in lines for start in starts if line.startswith(start)] == [
        "WARNING: invalid",
        "x: found",
        "WARNING: invalid",
        "WARNING: none",
        "ERROR:",
    ]


async def test_the_token_goes_to_no_other_host(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    fake.artifacts.base = fake.places["ALT"]
    first = add_job(fake, 1, ["echo x > x"], artifacts=[entry("x")])
    daemon.start()
    await ended(first)
    fake.faults.add("GET .*/artifacts", "status", 2, status=302, headers={"Location": "{ALT}/objects/1-0-artifacts.zip"})
    dependency = {"id": 1, "token": first.token, "name": "build", "artifacts_file": {"filename": "artifacts.zip", "size": 9}}
    second = add_job(fake, 2, ["cat x"], dependencies=[dependency])
    await ended(second)
    assert second.state == "success"
    assert f"Direct download from {fake.places['ALT'].partition('//')[2]}" in second.log
    (asked,) = [request for request in fake.requests if request.path.startswith("/objects/")]
    assert not {name.upper() for name in asked.headers} & {"JOB-TOKEN", "RUNNER-TOKEN", "PRIVATE-TOKEN"}
    assert first.token not in str(asked.headers)


async def test_special_files_alone_are_nothing_to_upload(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    job = add_job(fake, 1, ["mkfifo f"], artifacts=[entry("f")])
    daemon.start()
    await ended(job)
    assert job.state == "success"
    assert not job.artifacts
    assert "f: f: sockets, FIFOs and devices are not archived" in job.log
    assert "No files to upload" in job.log


@pytest.mark.parametrize("link", ["ln -s /etc out", "ln -s ../../../../../../../../../etc out", "ln -s . in; ln -s /etc out"])
async def test_nothing_outside_of_the_project_is_sent(
    link: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    patterns = [entry(path) for path in ("out/hostname", "out/**", "in/out/*", "out/../out/hostname")]
    job = add_job(fake, 1, [link], artifacts=patterns)
    daemon.start()
    await ended(job)
    assert job.state == "success"
    assert not job.artifacts


async def test_a_tree_that_changes_while_it_is_packed_is_no_failure(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    change = "date > d/new; rm -f d/new d/x1; echo x > d/x1"
    churn = f"(end=$((SECONDS+6)); while [ $SECONDS -lt $end ]; do {change}; done) >/dev/null 2>&1 &"
    job = add_job(fake, 1, ["mkdir d; for i in $(seq 500); do echo $i > d/f$i; done", churn], artifacts=[entry("d")])
    daemon.start()
    await ended(job)
    assert job.state == "success"
    assert {f"d/f{number}" for number in range(1, 501)} <= set(names(job.artifacts[0].content))


async def test_a_big_archive_arrives_whole(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    script = ["head -c 30000000 /dev/urandom > a; head -c 30000000 /dev/zero > b; sha256sum a"]
    job = add_job(fake, 1, script, artifacts=[entry("a", "b")])
    daemon.start()
    await ended(job)
    assert job.state == "success"
    with zipfile.ZipFile(io.BytesIO(job.artifacts[0].content)) as archive:
        assert hashlib.sha256(archive.read("a")).hexdigest() in job.log
        assert archive.read("b") == bytes(30_000_000)


@pytest.mark.parametrize("status", [403, 413])
async def test_a_refusal_in_the_middle_of_an_upload_is_understood(
    status: int, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    """A proxy may answer, and close, long before the last byte."""
    daemon = make_daemon()
    fake.faults.add(UPLOAD, "status", 9, status=status)
    job = add_job(fake, 1, ["head -c 20000000 /dev/urandom > a"], artifacts=[entry("a")])
    daemon.start()
    await ended(job)
    assert (job.state, job.failure_reason) == ("failed", "script_failure")
    assert count(fake, "POST") == 1


async def test_masked_values_stay_masked_in_lines_about_artifacts(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    job = add_job(fake, 1, ["true"], artifacts=[entry("s3cret-value/x")])
    job.payload["variables"].append({"key": "S", "value": "s3cret-value", "masked": True})
    daemon.start()
    await ended(job)
    assert "s3cret-value" not in job.log
    assert "[MASKED]/x: no matching files" in job.log


async def test_files_are_touched_with_the_job_users_rights(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can change to another account")
    user = "pyrunner-test"
    subprocess.run(["useradd", "--system", "--create-home", "--shell", "/bin/bash", user], check=False)
    Path(f"/home/{user}/.bash_logout").unlink(missing_ok=True)
    daemon = make_daemon()
    for directory in (daemon.root, *daemon.root.parents):
        if str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o055)
    project = daemon.root / "builds" / "lab" / "0" / "group" / "project"
    project.mkdir(parents=True)
    (project / "secret").write_text("of root\n")
    (project / "secret").chmod(0o600)
    (project / "closed").mkdir(mode=0o700)
    for directory in (project, *project.parents[:4]):
        shutil.chown(directory, user)
    variables = {"GIT_STRATEGY": "none"}
    first = add_job(fake, 1, ["echo x > own"], artifacts=[entry("own", "secret", "closed")], variables=variables)
    daemon.start("--user", user)
    await ended(first)
    assert first.state == "success", first.log
    assert "account of the runner itself" not in daemon.log
    assert names(first.artifacts[0].content) == ["closed/", "own"]
    assert "secret: Permission denied" in first.log
    dependency = {"id": 1, "token": first.token, "name": "build", "artifacts_file": {"filename": "artifacts.zip", "size": 9}}
    script = ["stat -c owner=%U own"]
    second = add_job(fake, 2, script, dependencies=[dependency], variables={"GIT_STRATEGY": "empty"})
    await ended(second)
    assert f"owner={user}" in second.log
