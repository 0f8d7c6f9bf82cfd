"""Engines of a test's own, apart from this machine's engine in everything: addresses, data, networks."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import docker

START_S = 90.0
STOP_S = 60.0
NETWORKS = 200


@contextlib.contextmanager
def claimed_network() -> Iterator[int]:
    """A number below 200 that no other test of this machine has: the third part of a network's addresses."""
    for number in range(NETWORKS):
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0pyrunner-test-network-{number}")
            except OSError:
                continue
            yield number
            return
    raise AssertionError("no network is free")


class OwnEngine:
    """A dockerd on a bridge of its own. ``listens`` are more addresses than its socket, with their flags; ``hidden`` is a
    directory that it does not see, as if it were on another host, which is called ``elsewhere``. ``data`` is where its images
    and containers are."""

    def __init__(
        self, root: Path, bridge: str, listens: Sequence[str] = (), hidden: Path | None = None, data: Path | None = None
    ) -> None:
        self.socket = root / "docker.sock"
        self.host = f"unix://{self.socket}"
        self._root = root
        self._bridge = bridge
        self._listens = listens
        self._hidden = hidden
        self._data = data or root / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> docker.APIClient:
        root = self._root
        places = ["--data-root", str(self._data), "--exec-root", f"{root}/exec", "--pidfile", f"{root}/docker.pid"]
        network = ["--bridge", self._bridge, "--iptables=false", "--ip-masq=false"]
        with (root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._elsewhere(), "dockerd", "-H", self.host, *self._listens, *places, *network],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return answering(self.socket, root / "log")

    def _elsewhere(self) -> list[str]:
        if self._hidden is None:
            return []
        script = 'hostname elsewhere && mount -t tmpfs none "$1" && shift && exec "$@"'
        return ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script, "-", str(self._hidden)]

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_S)
            self._process = None


def answering(path: Path, log: Path) -> docker.APIClient:
    """An engine that is being started, once it listens on its socket."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as attempt:
            attempt.connect(str(path))
            return docker.APIClient(base_url=f"unix://{path}", version="auto", timeout=60)
        time.sleep(0.2)
    raise AssertionError(log.read_text())


@contextlib.contextmanager
def engine_of_its_own(listens: Sequence[str] = (), hidden: Path | None = None, data: Path | None = None) -> Iterator[OwnEngine]:
    """An engine that is not started yet; after the test nothing of it is left."""
    # A socket's path is short.
    root = Path(tempfile.mkdtemp(prefix="pyr-"))
    bridge = f"pyr{uuid.uuid4().hex[:8]}"
    with claimed_network() as number:
        subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
        try:
            subprocess.run(["ip", "addr", "add", f"10.213.{number}.1/24", "dev", bridge], check=True)
            engine = OwnEngine(root, bridge, listens, hidden, data)
            try:
                yield engine
            finally:
                engine.stop()
        finally:
            subprocess.run(["ip", "link", "delete", bridge], check=True)
            shutil.rmtree(root, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
