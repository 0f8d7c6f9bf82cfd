"""An engine of its own, which is stopped and started while a job runs on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.docker import images
from tests.docker.conftest import state_filter
from tests.docker.own_engine import OwnEngine, engine_of_its_own
from tests.docker.test_jobs import ended
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until


@pytest.fixture
def own_engine() -> Iterator[OwnEngine]:
    with engine_of_its_own() as engine:
        yield engine


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
