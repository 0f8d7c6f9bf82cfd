"""Volumes and images that are kept for later jobs, within their budgets, on a real engine."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.connection import Connection
from executors.docker.executor import DockerExecutor
from executors.docker.helper_image import HelperImages
from executors.docker.images import JobImages, Pulls
from executors.docker.journal import Journal
from executors.docker.kept_directories import KeptDirectories
from executors.docker.kept_images import KeptImages
from executors.docker.kept_volumes import KeptVolumes
from executors.docker.ledger import Ledger
from executors.docker.lines import KeptLines
from executors.docker.sweep import REUSABLE_LABEL, STATE_LABEL
from executors.docker.uses import JobUses, used_by
from executors.registry import HostSettings
from runner.disk.directories import HostTrees
from tests.docker import registry
from tests.docker.conftest import HOST, state_filter
from tests.docker.slow_engine import SlowEngine
from tests.docker.test_jobs import ended
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

pytestmark = pytest.mark.docker
MakeDaemon = Callable[..., Daemon]
MIB = 1024 * 1024
WAIT_S = 90.0
REMOVED = "removed from the disk what was not used for the longest time"


def bound(daemon: Daemon, keys: str) -> None:
    text = daemon.config.read_text()
    daemon.write_config(text.replace("[[runners]]", f"[pyrunner.disk]\n  {keys}\n\n[[runners]]", 1))


def add_job(fake: FakeCoordinator, number: int, script: list[str], *, project: int = 0, image: str = "") -> Job:
    payload = job_payload(number, script)
    payload["job_info"]["project_id"] = project or number
    if image:
        payload["image"] = {"name": image}
    return fake.add_job(payload)


def volumes_of(client: docker.APIClient, daemon: Daemon) -> dict[str, str]:
    """Names of the volumes at ``/cache`` that a daemon has made, by project."""
    found: Any = client.volumes(filters=state_filter(daemon))
    labels = "com.gitlab.gitlab-runner."
    return {
        one["Labels"][f"{labels}project.id"]: one["Name"]
        for one in found["Volumes"] or ()
        if one["Labels"][f"{labels}destination"] == "/cache"
    }


def has_image(client: docker.APIClient, name: str) -> bool:
    try:
        client.inspect_image(name)  # type: ignore[no-untyped-call]
    except docker.errors.ImageNotFound:
        return False
    return True


FILL = f"head -c {3 * MIB} /dev/zero > /cache/data"


async def test_volumes_are_kept_within_their_budget_and_never_taken_from_a_job(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, tmp_path: Path
) -> None:
    daemon = make_daemon(volumes=f'["/cache", "{tmp_path}:/marks"]')
    daemon.start()
    script = [FILL, "touch /marks/on; until test -e /marks/go; do sleep 0.2; done", "wc -c /cache/data"]
    running = add_job(fake, 1, script)
    await until((tmp_path / "on").exists, WAIT_S)
    for number in (2, 3):
        await ended(add_job(fake, number, [FILL]))
    foreign = f"pyrunner-test-{uuid.uuid4().hex[:12]}"
    client.create_volume(foreign, labels={REUSABLE_LABEL: "true", "com.gitlab.gitlab-runner.type": "cache"})
    try:
        before = volumes_of(client, daemon)
        assert set(before) == {"1", "2", "3"}
        # Nobody has adopted the first job when the next daemon begins to trim.
        daemon.kill()
        bound(daemon, f"volumes = {7 * MIB}")
        daemon.start()
        await until(lambda: set(volumes_of(client, daemon)) == {"1", "3"}, WAIT_S)
        (tmp_path / "go").touch()
        await ended(running)
        assert running.state == "success", running.log + daemon.log
        assert f"{3 * MIB} /cache/data" in running.log
        assert REMOVED in daemon.log
        again = await ended(add_job(fake, 4, ["ls /cache | wc -l"], project=2))
        assert "\n0\n" in again.log, "a volume that is gone is made again"
        assert client.inspect_volume(foreign)["Name"] == foreign
    finally:
        client.remove_volume(foreign)


def directories_of(root: Path) -> dict[str, Path]:
    """The directories in place of the volume ``/cache``, by project."""
    return {path.read_text().strip(): path.parent for path in root.glob("runner-*/*/project")}


async def test_directories_in_place_of_volumes_are_kept_within_the_same_budget(
    fake: FakeCoordinator, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    """Also those of a job that nobody has adopted yet stay, and what somebody else put there."""
    root = tmp_path / "directories"
    marks = tmp_path / "marks"
    marks.mkdir()
    foreign = root / f"runner-{'0' * 32}" / ("f" * 32)
    foreign.mkdir(parents=True)
    (foreign / "data").write_bytes(bytes(20 * MIB))
    daemon = make_daemon(volumes=f'["/cache", "{marks}:/marks"]', docker=f'    cache_dir = "{root}/"\n')
    daemon.start()
    fill = f"{FILL}; echo $CI_JOB_ID > /cache/project; ln -sf {foreign} /cache/link"
    script = [fill, "touch /marks/on; until test -e /marks/go; do sleep 0.2; done", "wc -c /cache/data"]
    running = add_job(fake, 1, script)
    await until((marks / "on").exists, WAIT_S)
    for number in (2, 3):
        await ended(add_job(fake, number, [fill]))
    assert set(directories_of(root)) == {"1", "2", "3"}
    daemon.kill()
    bound(daemon, f"volumes = {7 * MIB}")
    daemon.start()
    await until(lambda: set(directories_of(root)) == {"1", "3"}, WAIT_S)
    (marks / "go").touch()
    await ended(running)
    assert f"{3 * MIB} /cache/data" in running.log, running.log + daemon.log
    await until(lambda: REMOVED in daemon.log and not list(root.glob(".pyrunner-removed-*")), WAIT_S)
    again = await ended(add_job(fake, 4, ["ls /cache | wc -l"], project=2))
    assert "\n0\n" in again.log, "a directory that is gone is made again"
    assert (foreign / "data").stat().st_size == 20 * MIB


async def test_a_directory_on_its_way_out_is_gone_before_a_job_has_it_whoever_died(engine: Engine, tmp_path: Path) -> None:
    root = tmp_path / "directories"
    wanted, other, busy = (root / f"runner-{'a' * 32}" / letter for letter in "abc")
    for path in (wanted, other, busy):
        path.mkdir(parents=True)
        (path / "data").write_bytes(bytes(MIB))

    def kept(*used: Path) -> KeptDirectories:
        return KeptDirectories(
            engine, Ledger(tmp_path / "ledger"), lambda: set(map(str, used)), root=str(root), trees=HostTrees()
        )

    def job(shelf: KeptDirectories) -> JobUses:
        (tmp_path / "record").mkdir(exist_ok=True)
        return JobUses(Journal(tmp_path / "record"), shelf, shelf, shelf)

    first = kept(busy)
    await job(first).take_volumes([str(wanted), str(other), str(busy)])
    assert {name: item.size_bytes >= MIB for name, item in (await first.items(7)).items()} == {
        str(path): True for path in (wanted, other, busy)
    }
    assert await first.items(-1) == {}, "on another host"
    first.mark([str(wanted), str(other), str(busy)])
    again = kept(busy)
    assert set(await again.items(7)) == {str(busy)}, "the process died here; what is on its way out does not count any more"
    await job(again).take_volumes([str(wanted)])
    assert not wanted.exists()
    assert other.exists()
    assert list(root.glob(".pyrunner-removed-*/*/data")), "whoever waits does not wait for that"
    await again.sweep()
    assert sorted(path.name for path in root.rglob("*")) == [busy.name, "data", busy.parent.name]
    assert again.ledger.going() == []


@pytest.fixture
def opened(client: docker.APIClient, busybox: str, tmp_path: Path) -> Iterator[str]:
    """A registry with four versions of an image."""
    with registry.serving(tmp_path / "registry") as host:
        for tag in ("old", "running", "own", "tagged"):
            registry.push(client, registry.unique(client, busybox), f"{host}/app:{tag}")
        yield host
        registry.forget(client, host)


async def test_images_that_jobs_brought_go_and_no_others(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, engine: Engine, opened: str, tmp_path: Path
) -> None:
    await HelperImages(engine).own()
    daemon = make_daemon(volumes=f'["{tmp_path}:/marks"]')
    client.pull(f"{opened}/app", "own")
    daemon.start()
    script = ["touch /marks/on; until test -e /marks/go; do sleep 0.2; done"]
    for number, tag in ((1, "old"), (2, "own"), (3, "tagged")):
        job = await ended(add_job(fake, number, ["true"], image=f"{opened}/app:{tag}"))
        assert job.state == "success", job.log
    client.tag(f"{opened}/app:tagged", f"{opened}/mine", "1")
    running = add_job(fake, 4, script, image=f"{opened}/app:running")
    await until((tmp_path / "on").exists, WAIT_S)
    daemon.kill()
    bound(daemon, "images = 0")
    daemon.start()
    await until(lambda: not has_image(client, f"{opened}/app:old"), WAIT_S)
    for tag in ("running", "own", "tagged"):
        assert has_image(client, f"{opened}/app:{tag}"), tag
    (tmp_path / "go").touch()
    await ended(running)
    assert running.state == "success", running.log
    await until(lambda: not has_image(client, f"{opened}/app:running"), WAIT_S)
    for name in ("app:own", "app:tagged", "mine:1"):
        assert has_image(client, f"{opened}/{name}"), name
    job = await ended(add_job(fake, 5, ["echo here again"], image=f"{opened}/app:old"))
    assert "\nhere again\n" in job.log


# One engine


class Kept:
    """What a state directory keeps on an engine, as the executor has it; ``records`` are its jobs."""

    def __init__(self, root: Path, engine: Engine, state_id: str) -> None:
        self.root = root
        self.records: list[Path] = []
        self.volumes = KeptVolumes(engine, Ledger(root / "volumes"), self._used, state_id)
        self.images = KeptImages(engine, Ledger(root / "images"), self._used)
        self.labels = {STATE_LABEL: state_id, REUSABLE_LABEL: "true"}

    def _used(self) -> set[str]:
        return used_by(self.records)

    def job(self) -> JobUses:
        directory = self.root / f"job-{len(self.records)}"
        directory.mkdir(exist_ok=True)
        self.records.append(directory)
        return JobUses(Journal(directory), self.volumes, self.images)


@pytest.fixture
def state_id(client: docker.APIClient) -> Iterator[str]:
    """A state directory's own; what carries it is gone after the test."""
    found = uuid.uuid4().hex
    yield found
    label = {"label": [f"{STATE_LABEL}={found}"]}
    for container in client.containers(all=True, filters=label):
        client.remove_container(container["Id"], force=True)
    for volume in client.volumes(filters=label)["Volumes"] or ():
        client.remove_volume(volume["Name"], force=True)


@pytest.fixture
def kept(tmp_path: Path, engine: Engine, state_id: str) -> Kept:
    return Kept(tmp_path, engine, state_id)


def make_volume(client: docker.APIClient, kept: Kept) -> str:
    name = f"pyrunner-test-{uuid.uuid4().hex[:12]}"
    client.create_volume(name, labels=kept.labels)
    return name


def has_volume(client: docker.APIClient, name: str) -> bool:
    try:
        client.inspect_volume(name)
    except docker.errors.NotFound:
        return False
    return True


async def test_sizes_and_uses_of_volumes(client: docker.APIClient, kept: Kept, busybox: str) -> None:
    full, empty = make_volume(client, kept), make_volume(client, kept)
    host = client.create_host_config(binds=[f"{full}:/v"])
    command = ["dd", "if=/dev/zero", "of=/v/data", "bs=1M", "count=5"]
    made = client.create_container(busybox, command, host_config=host, labels=kept.labels)
    client.start(made)
    client.wait(made)
    client.remove_container(made)
    job = kept.job()
    await job.take_volumes([full])
    items = await kept.volumes.items(7)
    assert set(items) == {full, empty}
    assert items[full].size_bytes >= 5 * MIB > items[empty].size_bytes
    assert items[full].last_used_ns > items[empty].last_used_ns > 0
    assert (items[full].in_use, items[empty].in_use, items[full].device) == (True, False, 7)
    job.end()
    assert not (await kept.volumes.items(7))[full].in_use


async def test_a_volume_on_its_way_out_is_gone_before_a_job_has_it_whoever_died(
    client: docker.APIClient, kept: Kept, engine: Engine, tmp_path: Path, state_id: str
) -> None:
    wanted, other = make_volume(client, kept), make_volume(client, kept)
    kept.volumes.mark([wanted, other])
    assert has_volume(client, wanted), "the process dies here"
    again = Kept(tmp_path, engine, state_id)
    assert await again.volumes.items(0) == {}, "neither counts any more"
    await again.job().take_volumes([wanted])
    assert not has_volume(client, wanted)
    await again.volumes.sweep()
    assert not has_volume(client, other)
    assert again.volumes.ledger.going() == []


async def test_a_job_and_a_removal_never_have_the_same_volume(client: docker.APIClient, kept: Kept) -> None:
    volume = make_volume(client, kept)
    await kept.job().take_volumes([volume])
    kept.volumes.mark([volume])
    await kept.volumes.sweep()
    assert has_volume(client, volume)


async def test_what_a_container_uses_stays(client: docker.APIClient, kept: Kept, busybox: str) -> None:
    volume = make_volume(client, kept)
    host = client.create_host_config(binds=[f"{volume}:/v"])
    client.create_container(busybox, ["true"], host_config=host, labels=kept.labels)
    kept.volumes.mark([volume])
    await kept.volumes.sweep()
    assert has_volume(client, volume)
    assert kept.volumes.ledger.going() == []
    assert kept.volumes.ledger.last_uses().keys() == {volume}


async def test_a_slow_removal_holds_up_nothing_else(client: docker.APIClient, state_id: str, tmp_path: Path) -> None:
    async with SlowEngine(tmp_path / "engine.sock").serving() as slow:
        engine = Engine(Connection(host=slow.host))
        kept = Kept(tmp_path, engine, state_id)
        stuck, *others = (make_volume(client, kept) for _ in range(8))
        version = ".".join(map(str, await engine.api_version()))
        slow.slow.append(f"DELETE /v{version}/volumes/{stuck} ")
        kept.volumes.mark([stuck, *others])
        sweep = asyncio.create_task(kept.volumes.sweep())
        await until(lambda: not any(has_volume(client, name) for name in others), WAIT_S)
        await until(lambda: slow.waiting, WAIT_S)
        assert not sweep.done()
        waiting = asyncio.create_task(kept.job().take_volumes([stuck]))
        await kept.job().take_volumes(others)
        assert not waiting.done(), "only whoever wants this one waits"
        slow.release()
        await waiting
        await sweep
        assert not has_volume(client, stuck)
        await engine.close()


async def test_an_image_on_its_way_out_is_got_again(
    client: docker.APIClient, kept: Kept, busybox: str, opened: str, tmp_path: Path
) -> None:
    name, config = f"{opened}/app:old", DockerConfig(pull_policy=("if-not-present",))

    def images(uses: JobUses) -> JobImages:
        return JobImages(kept.images.engine, Pulls(), config, home=tmp_path, uses=uses)

    first = kept.job()
    image = await images(first).get(name, lines=KeptLines())
    (item,) = (await kept.images.items(0)).values()
    assert item.in_use
    assert item.size_bytes >= registry.UNIQUE_BYTES
    kept.images.mark([image.id])
    await kept.images.sweep()
    assert has_image(client, name), "the job has it"
    first.end()
    kept.images.mark([image.id])
    lines = KeptLines()
    assert (await images(kept.job()).get(name, lines=lines)).id == image.id
    assert any("Pulling docker image" in text for _, text in lines.kept)


async def test_the_floor_of_free_space_knows_where_an_engine_of_this_host_writes(
    client: docker.APIClient, tmp_path: Path
) -> None:
    executor = DockerExecutor(HostSettings(state_dir=str(tmp_path)))
    await executor.open()
    assert executor.disk_places() == []
    executor.sweep([{"host": HOST}], list)
    await until(lambda: executor.disk_places() == [client.info()["DockerRootDir"]], WAIT_S)
    await executor.close()
