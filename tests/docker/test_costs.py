"""What a Docker job cost: the figures of its report are those of the cgroups of its containers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import docker
import pytest

from tests.docker.conftest import state_filter
from tests.docker.test_jobs import ended
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

MakeDaemon = Callable[..., Daemon]
RECORDS = '\n[pyrunner.disk]\n  records = "10MiB"\n'
# Fills memory of a file system in memory, which counts like any other, or burns processor time for a while.
FILL = "dd if=/dev/zero of=/dev/shm/block bs=1M count={} 2>/dev/null"
BURN = "i=0; while [ $i -lt {} ]; do i=$((i+1)); done"
WORK = [FILL.format(40), BURN.format(1500000)]
ROOT = "/sys/fs/cgroup"
# What the container's own cgroup says, by either version: nanoseconds and bytes.
LOOK = (
    f"if [ -e {ROOT}/cpuacct/cpuacct.usage ]; then"
    f" echo used $(cat {ROOT}/cpuacct/cpuacct.usage) $(cat {ROOT}/memory/memory.max_usage_in_bytes);"
    f" else echo used $(sed -n 's/usage_usec \\(.*\\)/\\1000/p' {ROOT}/cpu.stat) $(cat {ROOT}/memory.peak); fi"
)


@pytest.fixture
def measured(make_daemon: MakeDaemon) -> Daemon:
    daemon = make_daemon(docker="    shm_size = 100000000\n")
    daemon.write_config(daemon.config.read_text() + RECORDS)
    return daemon


async def costs(daemon: Daemon, job_id: int) -> Any:
    """The figures in the report of a job."""
    pattern = f"lab-{job_id}-*/report.json"
    await until(lambda: list((daemon.state / "kept").glob(pattern)), 60)
    (path,) = (daemon.state / "kept").glob(pattern)
    return json.loads(path.read_text())["costs"]


def looks(job: Job) -> list[tuple[float, int]]:
    """Seconds and bytes that the job has seen in its containers."""
    return [(int(cpu) / 1e9, int(size)) for cpu, size in re.findall(r"^used (\d+) (\d+)$", job.log, re.MULTILINE)]


def total_s(found: Any) -> float:
    return float(found["cpu_user_s"] + found["cpu_system_s"])


@pytest.mark.parametrize("image", ["busybox:local", "debian-git:local"])
@pytest.mark.parametrize(("memory_mib", "turns"), [(1, 4000000), (90, 1000000)], ids=["processor", "memory"])
async def test_figures_are_those_of_the_containers_cgroup(
    memory_mib: int, turns: int, fake: FakeCoordinator, measured: Daemon, image: str
) -> None:
    measured.start()
    script = [FILL.format(memory_mib), BURN.format(turns), LOOK]
    payload = job_payload(1, script, variables={"GIT_STRATEGY": "none"}, image={"name": image})
    job = await ended(fake.add_job(payload))
    assert job.state == "success", job.log
    ((cpu_s, peak),) = looks(job)
    found = await costs(measured, 1)
    assert total_s(found) == pytest.approx(cpu_s, rel=0.05)
    assert found["max_rss_bytes"] == pytest.approx(peak, rel=0.05)
    assert found["peak_of"] == "container"
    assert peak > memory_mib * 2**20
    assert f"Memory:  {found['max_rss_bytes'] / 2**20:.1f} MiB in the largest container" in job.log


async def test_figures_survive_the_daemon_the_containers_and_a_failure(
    fake: FakeCoordinator, measured: Daemon, client: docker.APIClient
) -> None:
    """All scripts count, also one that ended while no daemon was there, and one that failed."""
    measured.start()
    wait = "echo begun; while [ ! -e /cache/go ]; do sleep 0.1; done"
    payload = job_payload(1, [wait, *WORK, LOOK, "printf 'no end'; exit 3"], after_script=[WORK[1], LOOK])
    job = fake.add_job(payload)
    await until(lambda: "begun\n" in job.log, 90)
    measured.kill()
    (build,) = client.containers(filters={"label": [*state_filter(measured)["label"], "com.gitlab.gitlab-runner.type=build"]})
    client.exec_start(client.exec_create(build["Id"], ["touch", "/cache/go"])["Id"])
    client.wait(build["Id"], timeout=120)
    measured.start()
    await ended(job)
    assert (job.state, job.exit_code) == ("failed", 3), job.log
    assert "no end" in job.log
    (first, second), found = looks(job), await costs(measured, 1)
    assert total_s(found) == pytest.approx(first[0] + second[0], rel=0.05)
    assert found["max_rss_bytes"] == pytest.approx(first[1], rel=0.05)


@pytest.mark.parametrize("script", ["trap '' TERM; while :; do :; done", "while :; do :; done"], ids=["killed", "told"])
async def test_a_script_that_is_stopped_counts(fake: FakeCoordinator, measured: Daemon, script: str) -> None:
    grace = '  [runners.pyrunner]\n    term_grace = "1s"\n  [runners.docker]'
    measured.write_config(measured.config.read_text().replace("  [runners.docker]", grace))
    measured.start()
    payload = job_payload(1, [LOOK, script], variables={"RUNNER_SCRIPT_TIMEOUT": "4s"})
    job = await ended(fake.add_job(payload), 120)
    assert job.failure_reason == "job_execution_timeout"
    ((cpu_s, _),) = looks(job)
    assert total_s(await costs(measured, 1)) > 2 * cpu_s


async def test_helper_and_services_count(fake: FakeCoordinator, measured: Daemon) -> None:
    """Also the helper that an earlier daemon had."""
    sha = git_server.make_repository(fake.repositories, "app", {"README": "hi\n"})
    measured.start()
    service: dict[str, Any] = {"name": "busybox:local", "alias": "x", "entrypoint": ["sh", "-c"]}
    service["command"] = [f"{BURN.format(1500000)}; touch /cache/ready; exec sleep 600"]
    wait = "until [ -e /cache/ready ]; do sleep 0.1; done; sleep 0.3"
    payload = job_payload(1, [wait, LOOK], services=[service], variables={"GIT_STRATEGY": "fetch"})
    payload["git_info"] |= fake.git_info(sha)
    job = await ended(fake.add_job(payload))
    assert job.state == "success", job.log
    ((cpu_s, _),) = looks(job)
    assert total_s(await costs(measured, 1)) > cpu_s + 0.5


@pytest.mark.parametrize("dies", [False, True], ids=["one daemon", "another daemon"])
async def test_a_service_that_has_ended_counts(
    fake: FakeCoordinator, measured: Daemon, client: docker.APIClient, dies: bool
) -> None:
    """With what it had used when it was looked at last, before it ended."""
    measured.start()
    service: dict[str, Any] = {"name": "busybox:local", "alias": "x", "entrypoint": ["sh", "-c"]}
    service["command"] = [f"{BURN.format(1500000)}; until [ -e /cache/end ]; do sleep 0.1; done"]
    payload = job_payload(1, ["until [ -e /cache/go ]; do sleep 0.1; done", LOOK], services=[service])
    job = fake.add_job(payload)

    def noted_s() -> float:
        lines = [line for path in (measured.state / "jobs").glob("*/docker.jsonl") for line in path.read_text().splitlines(True)]
        noted = [json.loads(line) for line in lines if "used by service" in line and line.endswith("\n")]
        return total_s(noted[-1]) if noted else 0.0

    def of_kind(kind: str) -> str:
        label = f"com.gitlab.gitlab-runner.type={kind}"
        (found,) = client.containers(filters={"label": [*state_filter(measured)["label"], label]})
        return str(found["Id"])

    await until(lambda: noted_s() > 0.5 or job.ended.is_set(), 120)
    assert not job.ended.is_set(), job.log
    before_s = noted_s()
    build, ends = of_kind("build"), of_kind("service")
    if dies:
        measured.kill()
    client.exec_start(client.exec_create(build, ["touch", "/cache/end"])["Id"])
    client.wait(ends, timeout=60)
    if dies:
        measured.start()
    client.exec_start(client.exec_create(build, ["touch", "/cache/go"])["Id"])
    await ended(job)
    assert job.state == "success", job.log
    ((cpu_s, _),) = looks(job)
    assert total_s(await costs(measured, 1)) >= cpu_s + before_s * 0.95


async def test_nothing_is_said_where_it_is_lost(fake: FakeCoordinator, measured: Daemon, client: docker.APIClient) -> None:
    measured.start()
    job = fake.add_job(job_payload(1, ["echo begun", "sleep 600"]))
    await until(lambda: "begun\n" in job.log, 90)
    (build,) = client.containers(filters={"label": [*state_filter(measured)["label"], "com.gitlab.gitlab-runner.type=build"]})
    client.kill(build["Id"])
    await ended(job)
    found = await costs(measured, 1)
    assert (found["cpu_user_s"], found["cpu_system_s"], found["max_rss_bytes"]) == (None, None, None)
    assert "CPU:" not in job.log
    assert "Memory:" not in job.log
