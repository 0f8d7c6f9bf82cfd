"""The image of the project itself: a daemon in a container, without root, on the engine of its host."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.docker import images
from tests.docker.conftest import CONFIG
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.job import job_payload
from tests.waiting import until

PROJECT = Path(__file__).resolve().parents[2]
SOCKET = Path("/var/run/docker.sock")
BUILD_S = 400
PARTS = ("runner", "executors", "deploy", "pyproject.toml", "README.md")


@pytest.fixture(scope="session")
def own_image(client: docker.APIClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image that ``deploy/Dockerfile`` makes, on a base of this machine and without a package index."""
    base = images.make(client, "python-base:local", images.python(), ['CMD ["bash"]'])
    context = tmp_path_factory.mktemp("context")
    for name in PARTS:
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
        copy(PROJECT / name, context / name)
    wheels = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--wheel-dir"]
    subprocess.run([*wheels, str(context / "wheels"), "hatchling", ".[cache]"], cwd=PROJECT, check=True, timeout=BUILD_S)
    tag = "pyrunner-own:local"
    said: list[dict[str, Any]] = list(
        client.build(
            path=str(context),
            dockerfile="deploy/Dockerfile",
            tag=tag,
            rm=True,
            decode=True,
            buildargs={"BASE": base, "PIP_OPTIONS": "--no-index --find-links=/src/wheels"},
        )
    )
    assert not any("error" in line for line in said), said[-5:]
    return tag


class DaemonContainer:
    """Daemons in containers that share one volume for their state."""

    def __init__(self, client: docker.APIClient, image: str, config: Path) -> None:
        self._client = client
        self._image = image
        self._config = config
        self._volume = f"pyrunner-test-{uuid.uuid4().hex[:12]}"
        self._made: list[str] = []
        client.create_volume(self._volume)

    def start(self) -> str:
        client = self._client
        settings = client.create_host_config(
            binds=[f"{SOCKET}:{SOCKET}", f"{self._config}:/etc/pyrunner:ro", f"{self._volume}:/var/lib/pyrunner"],
            group_add=[str(SOCKET.stat().st_gid)],
            read_only=True,
            tmpfs={"/tmp": ""},
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
        )
        found = client.create_container(self._image, host_config=settings)
        self._made.append(found["Id"])
        client.start(found["Id"])
        return str(found["Id"])

    def log(self, container: str) -> str:
        said: bytes = self._client.logs(container)
        return said.decode(errors="replace")

    def remove(self) -> None:
        for container in self._made:
            print(self.log(container))  # shown where the test fails
            self._client.remove_container(container, force=True, v=True)
        self._client.remove_volume(self._volume, force=True)


@pytest.fixture
def daemons(
    client: docker.APIClient, own_image: str, busybox: str, debian: str, fake: FakeCoordinator, tmp_path: Path
) -> Iterator[DaemonContainer]:
    folder = tmp_path / "config"
    folder.mkdir()
    config = folder / "config.toml"
    config.write_text(CONFIG.format(url=fake.url, extra="", docker="  [runners.go]\n", volumes='["/cache"]'))
    for path in (folder, config):
        path.chmod(0o755 if path.is_dir() else 0o644)
    found = DaemonContainer(client, own_image, folder)
    yield found
    found.remove()


@pytest.mark.timeout(600)
def test_the_image_is_that_of_a_service_without_root(client: docker.APIClient, own_image: str) -> None:
    settings = client.inspect_image(own_image)["Config"]  # type: ignore[no-untyped-call]
    assert settings["User"] == "10001:10001"
    assert settings["StopSignal"] == "SIGTERM"
    assert settings["Entrypoint"] == ["tini", "--", "pyrunner"]
    assert not any("token" in entry.lower() for entry in settings["Env"])


@pytest.mark.timeout(600)
async def test_jobs_outlive_the_container_of_their_daemon(
    fake: FakeCoordinator, daemons: DaemonContainer, client: docker.APIClient, container: Callable[..., str]
) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    found = job_payload(1, ["cat README; echo begin; sleep 8; echo end"], variables={"GIT_STRATEGY": "fetch"})
    found["git_info"] |= fake.git_info(commit)
    job = fake.add_job(found)
    first = daemons.start()
    await until(lambda: b"begin" in job.trace or job.ended.is_set(), 120)
    assert not job.ended.is_set(), job.log + daemons.log(first)
    client.kill(first)
    second = daemons.start()
    async with asyncio.timeout(120):
        await job.ended.wait()
    assert job.state == "success", job.log + daemons.log(second)
    assert job.log_is_whole()
    assert job.log.count("begin\n") == 1
    assert "end\n" in job.log
    assert "the Docker engine does not see the directories of the runner, which is in a container" in job.log
    await asyncio.to_thread(client.stop, second, timeout=60)
    about: Any = client.inspect_container(second)
    assert about["State"]["ExitCode"] == 0, daemons.log(second)
    assert "Can exit now" in daemons.log(second)
