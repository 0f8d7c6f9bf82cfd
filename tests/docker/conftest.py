"""A real engine and images of our own. Without an engine the tests fail: they are not skipped."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from executors.docker.client import Engine
from executors.docker.connection import DEFAULT_HOST, Connection
from tests.docker import images
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload

# Another engine may be chosen (DOCKER_HOST): not every test is meant for every engine.
HOST = os.environ.get("DOCKER_HOST") or DEFAULT_HOST
START_S = 60.0


@pytest.fixture(scope="session")
def client() -> Iterator[docker.APIClient]:
    """The engine of this machine; started, and left running, when there is none."""
    with images.locked():
        found = _answering() or _started()
    yield found
    found.close()


def _answering() -> docker.APIClient | None:
    try:
        return docker.APIClient(base_url=HOST, version="auto", timeout=120)
    except docker.errors.DockerException:
        return None


def _started() -> docker.APIClient:
    assert HOST == DEFAULT_HOST, f"no engine answers at {HOST}"
    program = shutil.which("dockerd")
    assert program is not None, "there is no Docker engine: apt-get install docker.io"
    subprocess.Popen(
        [program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = _answering()
        if found is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(f"dockerd does not answer at {HOST}")


@pytest.fixture(scope="session")
def busybox(client: docker.APIClient) -> str:
    """The image ``busybox:local``."""
    return images.make(client, "busybox:local", images.busybox(), ['CMD ["sh"]'])


@pytest.fixture(scope="session")
def debian(client: docker.APIClient) -> str:
    """The image ``debian-git:local``: bash, git and curl."""
    return images.make(client, "debian-git:local", images.debian(), ['CMD ["bash"]'])


@pytest.fixture(scope="session")
def golang(client: docker.APIClient) -> str:
    """The image ``golang:local``: the same with Go."""
    return images.make(client, "golang:local", images.golang(), ['CMD ["bash"]'])


@pytest.fixture(scope="session")
def golang_with_c(client: docker.APIClient) -> str:
    """The image ``golang-c:local``: the same with a compiler of C."""
    return images.make(client, "golang-c:local", images.golang_with_c(), ['CMD ["bash"]'])


@pytest.fixture
async def engine(client: docker.APIClient) -> AsyncIterator[Engine]:
    """The engine as the executor sees it."""
    found = Engine(Connection(host=HOST))
    yield found
    await found.close()


@pytest.fixture
def container(client: docker.APIClient) -> Iterator[Callable[..., str]]:
    """Makes containers that are gone after the test: ``container(image, command, **settings)`` gives the id."""
    made: list[str] = []

    def make(image: str, command: list[str], **settings: object) -> str:
        name = f"pyrunner-test-{uuid.uuid4().hex[:12]}"
        found = client.create_container(image, command, name=name, **settings)  # type: ignore[arg-type]
        made.append(str(found["Id"]))
        return made[-1]

    yield make
    for one in made:
        try:
            client.remove_container(one, force=True, v=True)
        except docker.errors.NotFound:
            pass


CONFIG = """concurrent = 4
check_interval = 1
shutdown_timeout = 10

[[runners]]
  name = "lab"
  url = "{url}"
  token = "glrt-lab"
  executor = "docker"
{extra}
  [runners.feature_flags]
    FF_TIMESTAMPS = false
  [runners.docker]
    image = "busybox:local"
    pull_policy = "if-not-present"
    volumes = {volumes}
{docker}
"""


@pytest.fixture(scope="session")
def gateway(client: docker.APIClient, busybox: str) -> Iterator[str]:
    """This machine's address as containers see it. Podman has it only while a container runs."""
    network: Any = client.inspect_network("bridge")
    address = str(network["IPAM"]["Config"][0].get("Gateway") or "172.17.0.1")
    keeper = None if _is_own(address) else client.create_container(busybox, ["sleep", "86400"])
    if keeper is not None:
        client.start(keeper)
    yield address
    if keeper is not None:
        client.remove_container(keeper, force=True, v=True)


def _is_own(address: str) -> bool:
    with socket.socket() as attempt, contextlib.suppress(OSError):
        attempt.bind((address, 0))
        return True
    return False


@pytest.fixture
async def fake(tmp_path: Path, gateway: str) -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator(tmp_path / "server", trace_interval=1, address=gateway) as coordinator:
        yield coordinator


@pytest.fixture
async def make_daemon(
    tmp_path: Path, fake: FakeCoordinator, client: docker.APIClient, busybox: str, debian: str
) -> AsyncIterator[Callable[..., Daemon]]:
    """Daemons with a Docker runner. After the test nothing of theirs is on the engine."""
    made: list[Daemon] = []

    def make(*, extra: str = "", docker: str = "", volumes: str = '["/cache"]') -> Daemon:
        root = tmp_path / f"runner-{len(made)}"
        # Volumes that stay are named after the system: tests beside each other must not share them.
        own = f'system_id = "s_{uuid.uuid4().hex[:12]}"\n'
        config = CONFIG.format(url=fake.url, extra=extra, docker=docker, volumes=volumes)
        daemon = Daemon(root, config, environment={"DOCKER_HOST": HOST}, own_keys=own)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        await daemon.stop()
        remove_leftovers(client, daemon)


@pytest.fixture
def replayed(client: docker.APIClient, tmp_path: Path) -> Iterator[None]:
    """After a replayed recording nothing that it made is on the engine."""
    yield
    remove_made(client, tmp_path / "runner" / "state")
    with contextlib.suppress(docker.errors.APIError):  # another test may use it
        client.remove_volume("gold-named")


def keeping_job(job_id: int, git_info: dict[str, Any], strategy: str, **changes: Any) -> dict[str, Any]:
    """A job that shows README, keeps a large file and the numbers of all such jobs in a cache, says the sum of that file and
    uploads both."""
    payload = job_payload(
        job_id,
        [
            "cat README; ls c 2>/dev/null || { mkdir c; head -c 3000000 /dev/urandom >c/big; }",
            "echo $CI_JOB_ID >>c/ids; cat c/ids; md5sum c/big; mkdir out; cp c/* out/",
        ],
        variables={"GIT_STRATEGY": strategy},
        cache=[{"key": "k", "paths": ["c/"], "policy": "pull-push", "when": "on_success"}],
        artifacts=[{"paths": ["out"], "when": "on_success", "artifact_type": "archive", "artifact_format": "zip"}],
        **changes,
    )
    payload["git_info"] |= git_info
    return payload


def state_filter(daemon: Daemon) -> dict[str, list[str]]:
    """What finds everything that a daemon has made."""
    return filter_of(daemon.state)


def filter_of(state: Path) -> dict[str, list[str]]:
    """The same by the directory of its state."""
    path = state / "docker-id"
    return {"label": [f"com.gitlab.pyrunner.state={path.read_text() if path.exists() else 'none'}"]}


def remove_leftovers(client: docker.APIClient, daemon: Daemon) -> None:
    """Remove what a daemon has made."""
    remove_made(client, daemon.state)


def _remove_volume(client: docker.APIClient, name: str) -> None:
    """Remove a volume, which a container may hold that the engine is still removing."""
    deadline = time.monotonic() + 60
    while True:
        try:
            client.remove_volume(name, force=True)
        except docker.errors.APIError as error:
            if error.status_code != 409 or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def remove_made(client: docker.APIClient, state: Path) -> None:
    """The same by the directory of its state."""
    filters = filter_of(state)
    found: Any = client.containers(all=True, filters=filters)
    for container in found:
        client.remove_container(container["Id"], force=True, v=True)
    volumes: Any = client.volumes(filters=filters)
    for volume in volumes["Volumes"] or ():
        _remove_volume(client, volume["Name"])
    networks: Any = client.networks(filters=filters)
    for network in networks:
        client.remove_network(network["Id"])
