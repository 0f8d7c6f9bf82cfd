"""A real engine and images of our own. Without an engine the tests fail: they are not skipped."""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import docker
import docker.errors
import pytest

from executors.docker.client import Engine
from executors.docker.connection import Connection
from tests.docker import images

HOST = "unix:///var/run/docker.sock"
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
