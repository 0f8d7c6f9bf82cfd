"""Mirrors of repositories for jobs in containers: borrowed by the helper and by the job, written by neither."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from executors.docker.config import DockerConfig
from executors.docker.shared import reaches_host
from tests.contract.test_mirrors import BIG, BORROWING, MIRROR, mirrors
from tests.docker.slow_engine import SlowEngine
from tests.docker.test_jobs import ended
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload

pytestmark = pytest.mark.docker
MakeDaemon = Callable[..., Daemon]
PLACE = "/var/cache/pyrunner/git"
IMAGE = 'image = "debian-git:local"'


@pytest.fixture
def commit(fake: FakeCoordinator) -> str:
    return git_server.make_repository(fake.repositories, "app", {"README": "hello\n", **BIG})


def add_job(
    fake: FakeCoordinator,
    number: int,
    sha: str,
    script: list[str],
    *,
    repository: str = "app",
    protected: bool = False,
    **more: Any,
) -> Job:
    payload = job_payload(number, script, variables={"GIT_STRATEGY": "fetch", **more})
    payload["git_info"] |= fake.git_info(sha) | {"protected": protected, "repo_url": f"{fake.url}/git/{repository}.git"}
    payload["image"] = {"name": "debian-git:local"}
    return fake.add_job(payload)


def packs(daemon: Daemon) -> set[str]:
    return {str(path) for mirror in mirrors(daemon) for path in mirror.glob("objects/pack/*.pack")}


async def test_containers_borrow_and_cannot_write(fake: FakeCoordinator, make_daemon: MakeDaemon, commit: str) -> None:
    hook = f"touch {PLACE}/x 2>/dev/null || echo helper kept out"
    daemon = make_daemon(extra=f"  pre_get_sources_script = '{hook}'\n{MIRROR}")
    daemon.start()
    writes = [
        "git config --global --add safe.directory '*'; id -u; cat README",
        "git count-objects -v | grep -E '^(in-pack|alternate)'; git fsck --no-dangling; git status --short | wc -l",
        f"touch {PLACE}/x || echo kept out; chmod 777 {PLACE}/1 || echo kept",
        f"rm -f {PLACE}/1/objects/pack/*.pack || echo kept in",
        f"cat /dev/null > {PLACE}/1/config || echo not emptied; mv {PLACE}/1 {PLACE}/2 || echo not moved",
        f"ls {PLACE}",
    ]
    job = await ended(add_job(fake, 1, commit, writes))
    assert job.state == "success", job.log + daemon.log
    lines = job.log.splitlines()
    assert BORROWING in job.log
    for line in (
        "helper kept out",
        "hello",
        "in-pack: 0",
        f"alternate: {PLACE}/1/objects",
        "kept out",
        "kept in",
        "kept",
        "not emptied",
        "not moved",
        "1",
    ):
        assert line in lines, job.log
    (mirror,) = mirrors(daemon)
    assert mirror.parent.parent.name == "closed"
    assert subprocess.run(["git", f"--git-dir={mirror}", "fsck"], check=False, capture_output=True).returncode == 0
    before = packs(daemon)
    again = await ended(add_job(fake, 2, commit, ["cat README"], protected=True, GIT_STRATEGY="clone"))
    assert again.state == "success", again.log
    assert BORROWING in again.log
    assert packs(daemon) == before, "nothing new came over the network"


async def test_a_job_sees_the_mirror_of_its_own_repository_alone(
    fake: FakeCoordinator, make_daemon: MakeDaemon, commit: str
) -> None:
    other = git_server.make_repository(fake.repositories, "other", {"SECRET": "of others\n"})
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    assert (await ended(add_job(fake, 1, other, ["cat SECRET"], repository="other"))).state == "success"
    script = [f"export GIT_DIR={PLACE}/1 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'"]
    script += [f"git cat-file -e {commit} && echo own; git cat-file -e {other} || echo none of others"]
    job = await ended(add_job(fake, 2, commit, script))
    assert job.state == "success", job.log
    assert "\nown\n" in job.log
    assert "\nnone of others\n" in job.log
    assert len(mirrors(daemon)) == 2


async def test_a_workspace_that_borrowed_is_made_anew_without_a_mirror(
    fake: FakeCoordinator, make_daemon: MakeDaemon, commit: str
) -> None:
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    assert BORROWING in (await ended(add_job(fake, 1, commit, ["echo left > left"], GIT_CLEAN_FLAGS="none"))).log
    await daemon.stop()
    daemon.write_config(daemon.config.read_text().replace("mirror = true", "mirror = false"))
    daemon.start()
    script = ["git config --global --add safe.directory '*'; git fsck; test ! -e .git/objects/info/alternates; cat README"]
    job = await ended(add_job(fake, 2, commit, script))
    assert job.state == "success", job.log
    assert BORROWING not in job.log


async def test_jobs_that_can_write_to_it_lend_nothing_to_protected_refs(
    fake: FakeCoordinator, make_daemon: MakeDaemon, commit: str, tmp_path: Path
) -> None:
    daemon = make_daemon(extra=MIRROR, volumes=f'["/cache", "{tmp_path}:/host"]')
    daemon.start()
    protected = await ended(add_job(fake, 1, commit, ["cat README"], protected=True))
    assert protected.state == "success", protected.log
    assert BORROWING not in protected.log
    job = await ended(add_job(fake, 2, commit, ["touch /host/runner-0/state/mirrors/open/written"]))
    assert job.state == "success", job.log
    assert BORROWING in job.log
    (mirror,) = mirrors(daemon)
    assert mirror.parent.parent.name == "open"


async def test_an_engine_of_another_host_gets_no_mirror_and_the_log_says_so(
    fake: FakeCoordinator, make_daemon: MakeDaemon, commit: str
) -> None:
    async with SlowEngine().serving() as engine:
        daemon = make_daemon(extra=MIRROR, docker=f'    host = "{engine.host}"')
        daemon.start()
        job = await ended(add_job(fake, 1, commit, ["cat README"]))
        assert job.state == "success", job.log + daemon.log
        assert "\nhello\n" in job.log
        assert BORROWING not in job.log
        assert mirrors(daemon) == []
        assert "no mirror for the job" in daemon.log
        assert f"the Docker engine at {engine.host} does not see the directories of the runner" in daemon.log
        await daemon.stop()


@pytest.mark.parametrize(
    ("settings", "reaches"),
    [
        ({}, False),
        ({"privileged": True}, True),
        ({"services_privileged": True}, True),
        ({"cap_add": ["cap_sys_admin"]}, True),
        ({"cap_add": ["NET_ADMIN"]}, False),
        ({"pid_mode": "host"}, True),
        ({"volumes": ["/cache", "/srv:/srv", "name:/data"]}, False),
        ({"volumes": ["/:/host"]}, True),
        ({"volumes": ["/var/lib:/host:ro"]}, True),
        ({"volumes": ["/var/run/docker.sock:/var/run/docker.sock"]}, True),
    ],
)
def test_what_lets_a_job_write_to_the_host(settings: dict[str, Any], reaches: bool) -> None:
    assert reaches_host(DockerConfig.from_values(settings), "/var/lib/pyrunner") is reaches
