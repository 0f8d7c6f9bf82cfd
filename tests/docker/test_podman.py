"""Jobs on Podman, through the API that it has in common with Docker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executors.docker.client import Engine
from executors.docker.connection import Connection
from executors.docker.images import find_image
from executors.docker.reference import familiar_name
from executors.docker.sweep import REUSABLE_LABEL, STATE_LABEL, sweep
from executors.docker.uses import name_of
from tests.docker import images
from tests.docker.conftest import keeping_job, state_filter
from tests.docker.own_podman import OwnPodman, podman_of_its_own
from tests.docker.test_disk import Kept
from tests.docker.test_jobs import ended
from tests.docker.test_service_jobs import WEB, lines
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

# One Podman is enough for all of them.
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("podman")]


@pytest.fixture(scope="module")
def podman() -> Iterator[OwnPodman]:
    with podman_of_its_own() as own:
        client = own.start()
        images.make(client, "busybox:local", images.busybox(), ['CMD ["sh"]'])
        images.make(client, "gold-exposed:local", images.busybox(), ["EXPOSE 8080", 'CMD ["sh"]'])
        yield own


@pytest.fixture
def on_podman(podman: OwnPodman, make_daemon: Callable[..., Daemon]) -> Callable[..., Daemon]:
    """Makes daemons whose jobs run there."""

    def make(*, docker: str = "", **settings: str) -> Daemon:
        daemon = make_daemon(docker=f'    host = "{podman.host}"\n{docker}', **settings)
        daemon.start()
        return daemon

    return make


async def nothing_left(podman: OwnPodman, daemon: Daemon) -> None:
    """Nothing of a daemon is on the engine but volumes that stay."""
    await daemon.stop()
    client = podman.client
    assert client.containers(all=True, filters=state_filter(daemon)) == [], daemon.log
    found: Any = client.volumes(filters=state_filter(daemon))
    labels = [volume["Labels"] or {} for volume in found["Volumes"] or ()]
    assert [one for one in labels if one.get("com.gitlab.gitlab-runner.reusable") == "false"] == []
    assert client.networks(filters=state_filter(daemon)) == []


async def test_podman_is_known(podman: OwnPodman) -> None:
    engine = Engine(Connection(host=podman.host))
    assert await engine.is_podman()
    await engine.close()


async def test_only_what_carries_all_labels_is_swept(podman: OwnPodman) -> None:
    """Podman lists volumes that carry any of several labels."""
    client = podman.client
    ours, others = {STATE_LABEL: "ours", REUSABLE_LABEL: "false"}, {STATE_LABEL: "others", REUSABLE_LABEL: "false"}
    kept = {STATE_LABEL: "ours", REUSABLE_LABEL: "true"}
    for name, labels in (("ours", ours), ("others", others), ("kept", kept)):
        client.create_volume(name, labels=labels)
    engine = Engine(Connection(host=podman.host))
    try:
        await sweep(engine, "ours", tuple)
    finally:
        await engine.close()
    found: Any = client.volumes()
    assert {"ours", "others", "kept"} & {volume["Name"] for volume in found["Volumes"]} == {"others", "kept"}


async def test_volumes_are_kept_within_a_budget(podman: OwnPodman, tmp_path: Path) -> None:
    """Measured, told from others, and removed unless a container uses them."""
    engine = Engine(Connection(host=podman.host))
    kept = Kept(tmp_path, engine, "of a budget")
    client = podman.client
    names = [f"budget-{word}" for word in ("used", "idle", "others", "temporary")]
    labels = [kept.labels, kept.labels, kept.labels | {STATE_LABEL: "others"}, kept.labels | {REUSABLE_LABEL: "false"}]
    for name, own in zip(names, labels, strict=True):
        client.create_volume(name, labels=own)
    used, idle, *others = names
    host = client.create_host_config(binds=[f"{idle}:/v"])
    filling = client.create_container("busybox:local", ["dd", "if=/dev/zero", "of=/v/data", "bs=1M", "count=3"], host_config=host)
    client.start(filling)
    client.wait(filling)
    client.remove_container(filling)
    container = client.create_container("busybox:local", ["true"], host_config=client.create_host_config(binds=[f"{used}:/v"]))
    items = await kept.volumes.items(0)
    assert set(items) == {used, idle}
    assert items[idle].size_bytes >= 3 * 1024 * 1024 > items[used].size_bytes
    kept.volumes.mark([used, idle])
    await kept.volumes.sweep()
    found: Any = client.volumes()
    assert set(names) & {volume["Name"] for volume in found["Volumes"]} == {used, *others}
    client.remove_container(container)
    await engine.close()


async def test_images_that_jobs_brought_go(podman: OwnPodman, tmp_path: Path) -> None:
    engine = Engine(Connection(host=podman.host))
    kept = Kept(tmp_path, engine, "of images")
    client = podman.client
    made = {}
    for number, tag in enumerate(("used", "idle", "shared")):
        images.make(client, f"budget:{tag}", images.busybox(), [f"ENV NUMBER={number}"])
        about: Any = client.inspect_image(f"budget:{tag}")  # type: ignore[no-untyped-call]
        made[tag] = name_of(about["Id"])
        (own,) = [name for name in about["RepoTags"] if "budget:" in name]
        kept.job().made_image(about["Id"], familiar_name(own), is_new=True)
        for name in about["RepoTags"]:
            if name != own and tag != "shared":
                client.remove_image(name)
    container = client.create_container("budget:used", ["true"])
    kept.records.clear()
    items = await kept.images.items(0)
    assert set(items) == {made["used"], made["idle"]}
    assert items[made["idle"]].size_bytes > 0
    kept.images.mark(list(items))
    await kept.images.sweep()
    assert await find_image(engine, "budget:used") is not None
    assert await find_image(engine, "budget:shared") is not None
    assert await find_image(engine, "budget:idle") is None
    client.remove_container(container)
    await engine.close()


async def test_output_of_a_script_that_fails_arrives_whole(
    fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman
) -> None:
    """Much of it at the end, when Podman's followers are left behind; long lines, both streams, a line without an end."""
    daemon = on_podman(extra="  output_limit = 8192\n")
    script = [
        "head -c 100000 /dev/zero | tr '\\0' x; echo",
        "sleep 0.3; echo to stderr >&2; sleep 0.3",
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; printf unfinished; exit 42",
    ]
    job = await ended(fake.add_job(job_payload(1001, script, after_script=["echo after $CI_JOB_STATUS"])))
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 42), job.log[-3000:] + daemon.log
    assert job.log_is_whole()
    assert "\n" + "x" * 100000 + "\n" in job.log
    assert "to stderr\n" in job.log
    assert "".join(f"line {number}\n" for number in range(20000)) + "unfinished" in job.log
    assert "\nafter failed\n" in job.log
    await nothing_left(podman, daemon)


async def test_sources_cache_and_artifacts(fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman) -> None:
    sha = git_server.make_repository(fake.repositories, "app", {"README": "hi\n", "dir/a": "a\n"})
    daemon = on_podman(docker="  [runners.go]\n")
    logs = []
    for number in (1, 2):
        payload = keeping_job(number, fake.git_info(sha), "fetch")
        payload["steps"][0]["script"].insert(0, "cat README dir/a")
        job = await ended(fake.add_job(payload))
        assert job.state == "success", job.log + daemon.log
        assert "\nhi\na\n" in job.log
        assert "Go cache: " in job.log
        assert [artifact.kind for artifact in job.artifacts] == ["archive"]
        logs.append(job.log)
        # Only then the next job gets the same slot.
        await until(lambda: not any((daemon.state / "jobs").iterdir()))
    sums = [next(line for line in log.splitlines() if line.endswith("  c/big")) for log in logs]
    assert sums[0] == sums[1]
    assert "\n1\n2\n" in logs[1]
    assert "Reinitialized existing Git repository" in logs[1]
    await nothing_left(podman, daemon)


@pytest.mark.parametrize("per_build", ["false", "true"])
async def test_a_service_is_found_by_its_names(
    per_build: str, fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman
) -> None:
    daemon = on_podman()
    variables = {"FF_NETWORK_PER_BUILD": per_build}
    script = ["wget -qO- http://web:8080/ http://gold-exposed:8080/"]
    job = await ended(fake.add_job(job_payload(7, script, services=[WEB], variables=variables)))
    assert job.state == "success", job.log + daemon.log
    assert lines(job).count("svc-hey 7") == 2
    await nothing_left(podman, daemon)


async def test_cancel_ends_the_script_and_after_script_runs_in_a_fresh_container(
    fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman
) -> None:
    daemon = on_podman()
    script = ["touch /in-the-root here", "echo begun", "sleep 1000"]
    job = fake.add_job(job_payload(1, script, after_script=["ls /in-the-root here || echo after $CI_JOB_STATUS"]))
    await fake.until(lambda: "begun\n" in job.log, 120)
    fake.cancel(job)
    await ended(job)
    assert job.state == "canceled"
    assert "after canceled\n" in job.log
    assert "/in-the-root: No such file" in job.log
    assert "\nhere\n" in job.log
    await nothing_left(podman, daemon)


async def test_a_killed_daemon_loses_nothing(fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman) -> None:
    daemon = on_podman()
    script = ["echo begun", "sleep 5; echo done; exit 3"]
    job = fake.add_job(job_payload(1, script, after_script=["echo after $CI_JOB_STATUS"]))
    await fake.until(lambda: "begun\n" in job.log, 120)
    daemon.kill()
    daemon.start()
    await ended(job)
    assert (job.state, job.exit_code) == ("failed", 3), job.log + daemon.log
    assert job.log_is_whole()
    assert [job.log.count(line) for line in ("\nbegun\n", "\ndone\n", "\nafter failed\n")] == [1, 1, 1]
    await nothing_left(podman, daemon)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("tail /dev/zero", "Container was out of memory (limit 16 MiB)"),
        ("x=a; while :; do x=$x$x; done", "Container was out of memory (limit 16 MiB)"),
        ("exit 137", ""),
    ],
    ids=["a program", "the shell", "neither"],
)
async def test_memory_that_runs_out_is_explained(
    script: str, said: str, fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman
) -> None:
    daemon = on_podman(docker='    memory = "16m"\n')
    job = await ended(fake.add_job(job_payload(1, ["echo begun", script])))
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 137), job.log + daemon.log
    assert said in job.log, job.log
    assert ("out of memory" in job.log) is bool(said)
    await nothing_left(podman, daemon)


@pytest.mark.parametrize("dies", [False, True], ids=["one daemon", "another daemon"])
async def test_log_of_a_script_that_floods_it_is_full(
    fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman, dies: bool
) -> None:
    """Also where the daemon that reads it again ends the script before it has read as much as the first one."""
    daemon = on_podman()
    job = fake.add_job(job_payload(1, ["echo begun; tr '\\0' x </dev/zero"], after_script=["true"]))
    await until(lambda: len(job.trace) > 1_000_000 or job.ended.is_set(), 90)
    assert not job.ended.is_set(), job.log[-2000:]
    if dies:
        daemon.kill()
        daemon.start()
    await ended(job)
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 137), job.log[-2000:]
    assert "script wrote too much and is ended" in daemon.log
    assert "Job's log exceeded limit of 4194304 bytes" in job.log
    assert job.log_is_whole()
    await nothing_left(podman, daemon)


async def test_jobs_beside_each_other(fake: FakeCoordinator, on_podman: Callable[..., Daemon], podman: OwnPodman) -> None:
    """Their containers are made at once, two with the same volumes for each job. The network is the host's:
    connections through a bridge of netavark 1.4 may hang when containers come and go."""
    sha = git_server.make_repository(fake.repositories, "app", {"README": "hi\n"})
    daemon = on_podman(docker='    network_mode = "host"\n')
    jobs = []
    for number in range(1, 7):
        payload = job_payload(number, ["cat README"], variables={"GIT_STRATEGY": "fetch"})
        payload["git_info"] |= fake.git_info(sha)
        jobs.append(fake.add_job(payload))
    for job in jobs:
        await ended(job)
        assert job.state == "success", job.log + daemon.log
        assert "\nhi\n" in job.log
    await nothing_left(podman, daemon)


async def test_an_image_that_is_missing_is_named(fake: FakeCoordinator, on_podman: Callable[..., Daemon]) -> None:
    on_podman(docker='    allowed_pull_policies = ["never"]\n')
    job = await ended(fake.add_job(job_payload(2, ["true"], image={"name": "nosuch:image", "pull_policy": ["never"]})))
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert 'failed to pull image "nosuch:image" with specified policies [never]' in job.log
