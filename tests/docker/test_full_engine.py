"""An engine whose disk has no room left (``docker-executor.md`` 10.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

from tests.docker import images
from tests.docker.conftest import state_filter
from tests.docker.own_engine import OwnEngine, engine_of_its_own
from tests.docker.test_jobs import ended
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.small_disk import small_tmpfs
from tests.waiting import until

MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def small_engine(tmp_path: Path) -> Iterator[tuple[OwnEngine, docker.APIClient, Path]]:
    """An engine with 64 MiB for everything: itself, a client, and the file that fills the rest."""
    with small_tmpfs(tmp_path / "small", "64m") as root, engine_of_its_own(data=root) as engine:
        client = engine.start()
        images.make(client, "busybox:local", images.busybox(), ['CMD ["sh"]'])
        yield engine, client, root / "filling"
        client.close()


def fill(path: Path) -> None:
    """Leave nothing."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


@pytest.mark.timeout(300)
async def test_a_job_that_cannot_be_prepared_says_why(
    small_engine: tuple[OwnEngine, docker.APIClient, Path], fake: FakeCoordinator, make_daemon: MakeDaemon
) -> None:
    engine, client, filling = small_engine
    daemon = make_daemon(docker=f'    host = "{engine.host}"\n    network_mode = "none"')
    daemon.start()
    fill(filling)
    job = await ended(fake.add_job(job_payload(1, ["echo ran"])), 120)
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure"), job.log + daemon.log
    assert "no space left on device" in job.log
    filling.unlink()
    second = await ended(fake.add_job(job_payload(2, ["echo ran"])), 120)
    assert second.state == "success", second.log + daemon.log
    await until(lambda: client.containers(all=True, filters=state_filter(daemon)) == [], 90)


@pytest.mark.timeout(300)
async def test_a_script_under_which_the_disk_fills_up_ends_as_it_does(
    small_engine: tuple[OwnEngine, docker.APIClient, Path], fake: FakeCoordinator, make_daemon: MakeDaemon
) -> None:
    """Its output is lost from there on, its result is not, and everything is removed."""
    engine, client, filling = small_engine
    daemon = make_daemon(docker=f'    host = "{engine.host}"\n    network_mode = "none"')
    daemon.start()
    script = ["echo begun; while [ ! -e /cache/go ]; do sleep 0.1; done", "echo over; exit 7"]
    job = fake.add_job(job_payload(1, script))
    await until(lambda: "begun\n" in job.log, 120)
    (volume,) = [one for one in client.volumes()["Volumes"] if one["Labels"]["com.gitlab.gitlab-runner.destination"] == "/cache"]
    Path(volume["Mountpoint"], "go").touch()
    fill(filling)
    await ended(job, 120)
    assert (job.state, job.exit_code) == ("failed", 7), job.log + daemon.log
    await until(lambda: client.containers(all=True, filters=state_filter(daemon)) == [], 90)
