"""A Podman of a test's own that speaks Docker's API, apart from this machine's in storage and networks."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import docker

from tests.docker.own_engine import STOP_S, answering, claimed_network

# Podman gives more than an account may have whose limits nothing can raise; its networks must not meet those of others.
CONTAINERS_CONF = """[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={tasks}:{tasks}"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{root}/networks"
default_subnet_pools = [{{base = "10.215.{number}.0/24", size = 28}}]
"""
ENOUGH = 16384


class OwnPodman:
    """``podman system service``. Containers outlive it, as they do where it is started by a connection."""

    def __init__(self, root: Path, number: int) -> None:
        self.socket = root / "podman.sock"
        self.host = f"unix://{self.socket}"
        self._root = root
        self._process: subprocess.Popen[bytes] | None = None
        self._client: docker.APIClient | None = None
        (root / "networks").mkdir()
        (root / "networks" / "podman.json").write_text(json.dumps(_default_network(number)))
        files, tasks = (_limit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
        (root / "containers.conf").write_text(CONTAINERS_CONF.format(files=files, tasks=tasks, root=root, number=number))

    def _command(self, *arguments: str) -> list[str]:
        places = ["--root", f"{self._root}/storage", "--runroot", f"{self._root}/run", "--tmpdir", f"{self._root}/tmp"]
        return ["podman", *places, *arguments]

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": f"{self._root}/containers.conf"}

    def start(self) -> docker.APIClient:
        with (self._root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command("system", "service", "--time", "0", self.host),
                # What watches over a container leaves a file where it was started when memory runs out.
                cwd=self._root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._client = answering(self.socket, self._root / "log")
        return self._client

    @property
    def client(self) -> docker.APIClient:
        """Connected when it was started last."""
        assert self._client is not None
        return self._client

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)
            self._process = None

    def remove(self) -> None:
        """End every container, and what watches over programs in them, and unmount what is mounted."""
        self.stop()
        for arguments in (("rm", "--all", "--force", "--time", "0"), ("network", "prune", "--force")):
            subprocess.run(self._command(*arguments), env=self._environment, check=True, capture_output=True)
        for process in Path("/proc").glob("[0-9]*"):
            # They would stay for minutes.
            with contextlib.suppress(OSError):
                if f"{self._root}/storage/".encode() in (process / "cmdline").read_bytes():
                    os.kill(int(process.name), signal.SIGKILL)
        for place in reversed([line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]):
            if place.startswith(f"{self._root}/"):
                subprocess.run(["umount", place], check=True)


def _limit(kind: int) -> int:
    most = resource.getrlimit(kind)[1]
    return ENOUGH if most == resource.RLIM_INFINITY else min(most, ENOUGH)


def _default_network(number: int) -> dict[str, object]:
    return {
        "name": "podman",
        "id": uuid.uuid4().hex * 2,
        "driver": "bridge",
        "network_interface": f"pyrp{number}",
        "created": "2026-01-01T00:00:00Z",
        "subnets": [{"subnet": f"10.214.{number}.0/24", "gateway": f"10.214.{number}.1"}],
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
    }


@contextlib.contextmanager
def podman_of_its_own() -> Iterator[OwnPodman]:
    """A Podman that is not started yet; after the test nothing of it is left."""
    # A socket's path is short.
    root = Path(tempfile.mkdtemp(prefix="pyrp-"))
    with claimed_network() as number:
        podman = OwnPodman(root, number)
        try:
            yield podman
        finally:
            podman.remove()
            shutil.rmtree(root)
