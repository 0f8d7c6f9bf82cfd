"""The build container is started while the sources are fetched, and small contents of files need no program of their own."""

from __future__ import annotations

from typing import Any

import docker
import pytest

from tests.docker import images
from tests.docker.conftest import state_filter
from tests.docker.meddling import meddler
from tests.docker.test_failures import ARTIFACTS, BUILD, HELPER, MakeDaemon, container_of, with_sources
from tests.docker.test_jobs import containers_of, ended
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

WAITS = "while [ ! -e /cache/go ]; do sleep 0.1; done; rm /cache/go"
HOOK = f'  pre_get_sources_script = "{WAITS}"\n'
MEBIBYTE = 1024 * 1024


def states(client: docker.APIClient, daemon: Daemon) -> dict[str, str]:
    """What the containers of a daemon's job do, by their kind."""
    found = client.containers(all=True, filters=state_filter(daemon))
    return {one["Labels"]["com.gitlab.gitlab-runner.type"]: one["State"] for one in found}


def go_on(client: docker.APIClient, daemon: Daemon) -> None:
    """Let the sources be fetched."""
    helper = container_of(client, daemon, HELPER)
    client.exec_start(client.exec_create(helper, ["touch", "/cache/go"])["Id"])


async def both_run(client: docker.APIClient, daemon: Daemon, job: Job) -> None:
    await until(lambda: states(client, daemon) == {BUILD: "running", HELPER: "running"} or job.ended.is_set(), 90)
    assert not job.ended.is_set(), job.log


@pytest.mark.parametrize("end", ["", "remove", "kill", "daemon"])
async def test_a_shell_waits_for_the_sources(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, end: str
) -> None:
    """Whatever ends it before it was given the script, that runs once."""
    daemon = make_daemon(extra=HOOK)
    daemon.start()
    job = fake.add_job(with_sources(fake, ["cat README", "echo ran >>/cache/runs; cat /cache/runs"]))
    await both_run(client, daemon, job)
    build = container_of(client, daemon, BUILD)
    if end == "remove":
        client.remove_container(build, force=True)
    elif end == "kill":
        client.kill(build)
    elif end == "daemon":
        daemon.kill()
        client.wait(build)
        client.remove_container(container_of(client, daemon, HELPER), force=True)
        daemon.start()
        await until(lambda: states(client, daemon).get(HELPER) == "running", 90)
    go_on(client, daemon)
    await ended(job)
    assert job.state == "success", job.log + daemon.log
    assert "\nhello\n" in job.log
    assert job.log.count("\nran\n") == 1
    assert job.log_is_whole()
    await daemon.stop()
    assert containers_of(client, daemon) == []


async def test_an_entrypoint_finds_the_sources(fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient) -> None:
    """What an image does before its shell must not be done before they are there."""
    root = images.busybox()
    root.text("enter", '#!/bin/sh\nls /builds/git/app\nexec "$@"\n', 0o755)
    images.make(client, "enters:local", root, ['ENTRYPOINT ["/enter"]'])
    daemon = make_daemon(extra=HOOK)
    daemon.start()
    job = fake.add_job(with_sources(fake, ["echo ran"], image={"name": "enters:local"}))
    await until(lambda: states(client, daemon) == {BUILD: "created", HELPER: "running"} or job.ended.is_set(), 90)
    go_on(client, daemon)
    await ended(job)
    assert job.state == "success", job.log
    assert "\nREADME\n" in job.log
    assert "No such file" not in job.log


@pytest.mark.parametrize("what", ["directory", "variable", "library"])
async def test_a_shell_that_depends_on_the_sources_waits_for_them(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, what: str
) -> None:
    """It begins in a directory of theirs, or reads one of their files first."""
    project = "/builds/git/app"
    of_image = {"directory": [f"WORKDIR {project}"], "library": [f"ENV LD_PRELOAD={project}/none.so"]}.get(what, [])
    image = f"starts-late-{what}:local"
    images.make(client, image, images.busybox(), of_image)
    daemon = make_daemon(extra=HOOK)
    daemon.start()
    payload = with_sources(fake, [f"stat -c 'mode %a' {project}"], image={"name": image})
    if what == "variable":
        payload["variables"].append({"key": "BASH_ENV", "value": f"{project}/README", "public": True})
    job = fake.add_job(payload)
    await until(lambda: states(client, daemon) == {BUILD: "created", HELPER: "running"} or job.ended.is_set(), 90)
    go_on(client, daemon)
    await ended(job)
    assert job.state == "success", job.log
    assert "\nmode 777\n" in job.log, job.log


@pytest.mark.parametrize("size", [MEBIBYTE, 3 * MEBIBYTE], ids=["small", "large"])
async def test_files_go_out_and_in(fake: FakeCoordinator, make_daemon: MakeDaemon, size: int) -> None:
    """Artifacts and a cache, whatever is in them: it is no command to the shell that they pass."""
    async with meddler() as between:
        daemon = make_daemon(docker=f'    host = "{between.host}"\n')
        daemon.start()
        make = [
            "mkdir -p c out; printf 'exit 7\\n\\001\\000' >c/commands; seq 900 | sed 's|.*|exit 7|' >>c/commands",
            f"head -c {size} /dev/urandom >c/data; cp c/data out; sha256sum c/commands c/data >sums; cp sums /cache",
        ]
        cache = [{"key": "k", "paths": ["c/"], "policy": "pull-push", "when": "on_success"}]
        changes: dict[str, Any] = {"cache": cache, "variables": {"GIT_STRATEGY": "empty"}}
        first = await ended(fake.add_job(job_payload(1, make, artifacts=ARTIFACTS, **changes)))
        assert first.state == "success", first.log
        (artifact,) = first.artifacts
        assert len(artifact.content) > size
        second = await ended(fake.add_job(job_payload(2, ["sha256sum -c /cache/sums"], **changes)))
        assert second.state == "success", second.log
        assert "Successfully extracted cache" in second.log
        await daemon.stop()
        programs = [line for line in between.requests if line.endswith("/exec")]
        # Two caches and artifacts out, a cache in; the second job has nothing new to save.
        assert (len(programs) > 0) is (size > 2 * MEBIBYTE), programs
