"""An engine of its own, which is stopped and started while a job runs on it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tests.docker import images
from tests.docker.conftest import state_filter
from tests.docker.test_jobs import ended
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

START_S = 90.0


class OwnEngine:
    """A second engine of this machine, apart from the first one in everything: sockets, data, bridge."""

    def __init__(self, root: Path, bridge: str) -> None:
        self.host = f"unix://{root}/docker.sock"
        self._root = root
        self._bridge = bridge
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> docker.APIClient:
        root = self._root
        places = ["--data-root", f"{root}/data", "--exec-root", f"{root}/exec", "--pidfile", f"{root}/docker.pid"]
        with (root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["dockerd", "-H", self.host, *places, "--bridge", self._bridge, "--iptables=false", "--ip-masq=false"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as attempt:
                attempt.connect(f"{root}/docker.sock")
                return docker.APIClient(base_url=self.host, version="auto", timeout=60)
            time.sleep(0.2)
        raise AssertionError((root / "log").read_text())

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


@pytest.fixture
def own_engine(tmp_path: Path) -> Iterator[OwnEngine]:
    # A socket's path is short, and an engine on this bridge disturbs nobody.
    bridge = f"pyr{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "link", "add", bridge, "type", "bridge"], check=True)
    subprocess.run(["ip", "addr", "add", "10.213.47.1/24", "dev", bridge], check=True)
    root = Path(f"/tmp/{bridge}")
    root.mkdir()
    engine = OwnEngine(root, bridge)
    yield engine
    engine.stop()
    subprocess.run(["ip", "link", "delete", bridge], check=True)
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.timeout(300)
async def test_a_job_under_which_the_engine_restarts_fails_with_that_reason(
    own_engine: OwnEngine, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    client = own_engine.start()
    images.make(client, "busybox:local", images.busybox(), ['CMD ["sh"]'])
    daemon = make_daemon(docker=f'    host = "{own_engine.host}"\n    network_mode = "none"')
    daemon.start()
    job = fake.add_job(job_payload(1001, ["echo begun", "while :; do sleep 1; done"]))
    await fake.until(lambda: "begun\n" in job.log, 120)
    client.close()
    own_engine.stop()
    client = own_engine.start()
    await ended(job, 120)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure"), job.log + daemon.log
    assert "the Docker engine was restarted while the script ran" in job.log
    await until(lambda: client.containers(all=True, filters=state_filter(daemon)) == [], 90)
    client.close()
