"""What fails under a job, and what the job says of it (``docker-executor.md`` 10.5)."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import docker
import docker.errors
import pytest

from tests.docker.conftest import state_filter
from tests.docker.meddling import Meddler, Meddling, meddler
from tests.docker.test_jobs import containers_of, ended
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

pytestmark = pytest.mark.docker

MakeDaemon = Callable[..., Daemon]
BUILD, HELPER, SERVICE = "build", "predefined", "service"
SYSTEM = ("failed", "runner_system_failure")
SCRIPT = ("failed", "script_failure")
ALWAYS = 99
ARTIFACTS = [{"paths": ["out"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}]


@pytest.fixture
async def meddled() -> AsyncIterator[Meddler]:
    async with meddler() as found:
        yield found


@pytest.fixture
def run(fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, meddled: Meddler) -> Callable[..., Any]:
    """Runs a job on the engine that is meddled with; afterwards nothing of it is there."""

    async def work(payload: dict[str, Any], *plans: Meddling, docker_keys: str = "") -> Job:
        meddled.plans += plans
        counts = [plan.count for plan in plans]
        daemon = make_daemon(docker=f'    host = "{meddled.host}"\n{docker_keys}')
        daemon.start()
        job = await ended(fake.add_job(payload))
        assert all(plan.count < count for plan, count in zip(plans, counts, strict=True)), job.log
        await until(lambda: not list((daemon.state / "jobs").iterdir()), 60)
        await daemon.stop()
        assert containers_of(client, daemon) == []
        assert client.networks(filters=state_filter(daemon)) == []
        return job

    return work


def own_id() -> int:
    """The id of a job with a network, whose name holds the id: tests beside each other must not share it."""
    return int(uuid.uuid4().hex[:7], 16)


def end_of(job: Job) -> tuple[str, str | None]:
    return job.state, job.failure_reason


def with_sources(fake: FakeCoordinator, script: list[str], **changes: Any) -> dict[str, Any]:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    variables = {"GIT_STRATEGY": "fetch", **changes.pop("variables", {})}
    payload = job_payload(1, script, variables=variables, **changes)
    payload["git_info"] |= fake.git_info(commit)
    return payload


def container_of(client: docker.APIClient, daemon: Daemon, kind: str) -> str:
    """The container of a kind that a daemon has on the engine."""
    labels = [*state_filter(daemon)["label"], f"com.gitlab.gitlab-runner.type={kind}"]
    (found,) = client.containers(all=True, filters={"label": labels})
    return str(found["Id"])


# The engine refuses


@pytest.mark.parametrize("what", ["volumes/create", "networks/create", r"containers/create\?name=[^&]*busybox"])
@pytest.mark.parametrize("count", [1, ALWAYS], ids=["once", "always"])
async def test_preparation_is_tried_three_times(run: Callable[..., Any], what: str, count: int) -> None:
    service = {"name": "busybox:local", "alias": "x", "command": ["sleep", "600"]}
    variables = {"FF_NETWORK_PER_BUILD": "true"}
    job = await run(
        job_payload(own_id(), ["echo ran"], services=[service], variables=variables),
        Meddling(pattern=f"POST /{what}", status=500, count=count),
        docker_keys="    wait_for_services_timeout = -1\n",
    )
    tries = len(re.findall("Preparation failed: .*Error response from daemon: meddled with: 500", job.log))
    if count == 1:
        assert tries == 1
        assert job.state == "success", job.log
    else:
        assert tries == 3, job.log
        assert end_of(job) == SYSTEM, job.log
        assert re.search(r"ERROR: Job failed \(system failure\): .*Error response from daemon: meddled with: 500", job.log)


@pytest.mark.parametrize("call", [r"containers/create\?name=[^&]*-build", "containers/[0-9a-f]+/start"])
async def test_build_container_that_is_refused_fails_the_stage(run: Callable[..., Any], call: str) -> None:
    job = await run(job_payload(1, ["echo ran"]), Meddling(pattern=f"POST /{call}", status=500, count=ALWAYS))
    assert end_of(job) == SYSTEM, job.log
    assert "ERROR: Job failed (system failure): Error response from daemon: meddled with: 500" in job.log
    assert "Preparation failed" not in job.log
    assert "\nran\n" not in job.log


@pytest.mark.parametrize("call", [r"containers/create\?name=[^&]*-predefined", "containers/[0-9a-f]+/start"])
async def test_helper_that_is_refused_fails_the_stage(run: Callable[..., Any], fake: FakeCoordinator, call: str) -> None:
    job = await run(with_sources(fake, ["echo ran"]), Meddling(pattern=f"POST /{call}", status=500, count=ALWAYS))
    assert end_of(job) == SYSTEM, job.log
    assert "prepare environment: Error response from daemon: meddled with: 500. Check https://" in job.log
    assert "\nran\n" not in job.log


@pytest.mark.parametrize("kind", ["build", "predefined"])
async def test_bad_request_is_the_jobs_own_fault(run: Callable[..., Any], fake: FakeCoordinator, kind: str) -> None:
    plan = Meddling(pattern=rf"POST /containers/create\?name=[^&]*-{kind}", status=400, count=ALWAYS)
    job = await run(with_sources(fake, ["echo ran"]), plan)
    assert end_of(job) == SCRIPT, job.log
    assert "Error response from daemon: meddled with: 400" in job.log


# Containers vanish


@pytest.mark.parametrize("sources", [False, True], ids=["direct", "sources"])
async def test_build_container_that_vanishes_before_its_script_is_made_again(
    run: Callable[..., Any], fake: FakeCoordinator, client: docker.APIClient, sources: bool
) -> None:
    """Whoever cleans up on the engine's host removes containers that were not started yet."""
    script = ["echo ran >>/cache/runs; cat /cache/runs", "pwd"]
    payload = with_sources(fake, script) if sources else job_payload(1, script)
    gone = Meddling(
        pattern="POST /containers/([0-9a-f]+)/attach.*stdin=1$",
        act=lambda found: client.remove_container(found[1], force=True),
    )
    job = await run(payload, gone)
    assert job.state == "success", job.log
    assert job.log.count("\nran\n") == 1
    assert job.log_is_whole()


@pytest.mark.parametrize("sources", [False, True], ids=["direct", "sources"])
async def test_script_that_was_lost_on_its_way_is_no_success(
    run: Callable[..., Any], fake: FakeCoordinator, sources: bool
) -> None:
    """A shell that sees nothing but the end of its input ends well."""
    payload = with_sources(fake, ["echo ran"]) if sources else job_payload(1, ["echo ran"])
    job = await run(payload, Meddling(pattern="POST /containers/[0-9a-f]+/attach.*stdin=1$", is_deaf=True))
    assert end_of(job) == SYSTEM, job.log
    assert "the connection to the container was lost before it had its script" in job.log
    assert "\nran\n" not in job.log


@pytest.mark.parametrize("end", ["remove", "kill", "stop"])
async def test_build_container_that_vanishes_under_its_script(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, end: str
) -> None:
    daemon = make_daemon()
    daemon.start()
    payload = job_payload(1, ["echo begun; echo run >>/cache/runs", "sleep 600"], after_script=["cat /cache/runs; echo after"])
    payload["variables"] += [{"key": "EXECUTOR_JOB_SECTION_ATTEMPTS", "value": "2"}]
    job = fake.add_job(payload)
    await until(lambda: "begun\n" in job.log, 90)
    build = container_of(client, daemon, BUILD)
    ends: dict[str, Callable[[], object]] = {
        "remove": lambda: client.remove_container(build, force=True),
        "kill": lambda: client.kill(build),
        "stop": lambda: client.stop(build, timeout=2),
    }
    ends[end]()
    await ended(job)
    assert end_of(job) == SCRIPT, job.log
    assert job.exit_code in ((137,) if end != "stop" else (137, 143, 1))
    assert "\nrun\nafter\n" in job.log, job.log + daemon.log
    assert job.log_is_whole()
    await daemon.stop()
    assert containers_of(client, daemon) == []


@pytest.mark.parametrize("attempts", [1, 2])
async def test_helper_that_vanishes_while_it_fetches(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, attempts: int
) -> None:
    fake.git_delay_s = 120
    daemon = make_daemon()
    daemon.start()
    job = fake.add_job(with_sources(fake, ["cat README"], variables={"EXECUTOR_JOB_SECTION_ATTEMPTS": str(attempts)}))

    def fetches() -> bool:
        try:
            found = client.top(container_of(client, daemon, HELPER))
        except (ValueError, docker.errors.APIError):
            return False
        return any("git-remote-http" in " ".join(process) for process in found["Processes"])

    await until(fetches, 90)
    fake.git_delay_s = 0
    client.remove_container(container_of(client, daemon, HELPER), force=True)
    await ended(job)
    if attempts == 1:
        assert end_of(job) == SYSTEM, job.log
        assert "the helper container ended while it was at work" in job.log
    else:
        assert job.state == "success", job.log
        assert job.log.count("Retrying get_sources") == 1
        assert "\nhello\n" in job.log
    await daemon.stop()
    assert containers_of(client, daemon) == []


@pytest.mark.parametrize("how", ["remove", "kill"])
async def test_helper_that_vanishes_between_stages_is_made_again(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, how: str
) -> None:
    daemon = make_daemon()
    daemon.start()
    script = ["echo begun; while [ ! -e /cache/go ]; do sleep 0.1; done; rm /cache/go", "cp README out"]
    job = fake.add_job(with_sources(fake, script, artifacts=ARTIFACTS))
    await until(lambda: "begun\n" in job.log, 90)
    helper = container_of(client, daemon, HELPER)
    if how == "remove":
        client.remove_container(helper, force=True)
    else:
        client.kill(helper)
    build = container_of(client, daemon, BUILD)
    client.exec_start(client.exec_create(build, ["touch", "/cache/go"])["Id"])
    await ended(job)
    assert job.state == "success", job.log
    (artifact,) = job.artifacts
    assert artifact.content
    await daemon.stop()
    assert containers_of(client, daemon) == []


async def test_helper_that_vanishes_while_it_gives_artifacts(
    run: Callable[..., Any], fake: FakeCoordinator, client: docker.APIClient
) -> None:
    gone = Meddling(pattern="POST /containers/([0-9a-f]+)/exec", act=lambda found: client.remove_container(found[1], force=True))
    variables = {"EXECUTOR_JOB_SECTION_ATTEMPTS": "2"}
    script = ["head -c 4000000 /dev/urandom >out"]
    job = await run(with_sources(fake, script, artifacts=ARTIFACTS, variables=variables), gone)
    assert job.state == "success", job.log
    assert len(job.artifacts) == 1


async def test_service_that_vanishes_leaves_the_job_alone(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    daemon = make_daemon(docker="    wait_for_services_timeout = -1\n")
    daemon.start()
    service = {"name": "busybox:local", "alias": "x", "command": ["sleep", "600"]}
    script = ["echo begun; while [ ! -e /cache/go ]; do sleep 0.1; done; rm /cache/go", "exit 9"]
    job = fake.add_job(job_payload(1, script, services=[service], variables={"CI_DEBUG_SERVICES": "true"}))
    await until(lambda: "begun\n" in job.log, 90)
    client.remove_container(container_of(client, daemon, SERVICE), force=True)
    build = container_of(client, daemon, BUILD)
    client.exec_start(client.exec_create(build, ["touch", "/cache/go"])["Id"])
    await ended(job)
    assert (end_of(job), job.exit_code) == (SCRIPT, 9), job.log
    await daemon.stop()
    assert containers_of(client, daemon) == []


# Network and connections


async def test_network_that_vanishes_before_the_script(run: Callable[..., Any], client: docker.APIClient) -> None:
    def remove(found: re.Match[str]) -> None:
        (name,) = client.inspect_container(found[1])["NetworkSettings"]["Networks"]
        client.remove_network(name)

    plan = Meddling(pattern="POST /containers/([0-9a-f]+)/start", act=remove)
    job = await run(job_payload(own_id(), ["echo ran"], variables={"FF_NETWORK_PER_BUILD": "true"}), plan)
    assert end_of(job) == SYSTEM, job.log
    assert re.search(r"Job failed \(system failure\): Error response from daemon: network \S+ not found", job.log)


@pytest.mark.parametrize("cut_after", [0, 400, 2000, 50_000])
async def test_connection_that_breaks_while_the_log_is_read_costs_nothing(run: Callable[..., Any], cut_after: int) -> None:
    script = "i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done"
    cut = Meddling(pattern="GET /containers/[0-9a-f]+/logs", cut_after=cut_after)
    job = await run(job_payload(1, [script, "exit 4"]), cut)
    assert (end_of(job), job.exit_code) == (SCRIPT, 4), job.log[-2000:]
    assert "".join(f"line {number}\n" for number in range(5000)) in job.log


async def test_connection_that_breaks_at_the_end_costs_nothing(run: Callable[..., Any]) -> None:
    cut = Meddling(pattern="GET /containers/[0-9a-f]+/json", cut_after=0)
    job = await run(job_payload(1, ["echo ran; exit 5"]), cut)
    assert (end_of(job), job.exit_code) == (SCRIPT, 5), job.log
