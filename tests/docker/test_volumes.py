"""Volumes of a job on a real engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import docker
import docker.errors
import pytest

from executors.docker.client import Engine
from executors.docker.containers import Process, build_container, create
from executors.docker.names import LABELS, Names
from executors.docker.volumes import Volumes, create_volumes, plan_volumes, remove_volumes
from executors.errors import PrepareError
from tests.docker.made import around, fresh_names, swept, table

pytestmark = pytest.mark.docker


@pytest.fixture
def names(client: docker.APIClient) -> Iterator[Names]:
    with swept(client, fresh_names()) as found:
        yield found


def plan(names: Names, *volumes: str, keeps_builds: bool = False, protected: bool = False, **settings: object) -> Volumes:
    return plan_volumes(
        table(volumes=list(volumes), **settings),
        names,
        expand=lambda text: text,
        builds_dir="/builds",
        keeps_builds=keeps_builds,
        protected=protected,
    )


async def run(engine: Engine, client: docker.APIClient, names: Names, volumes: Volumes, script: str, image: str) -> str:
    """Run a shell script with these volumes; what it printed."""
    process = Process(image=image, command=["sh", "-c", script])
    container = build_container(table(), around(names, binds=volumes.binds), process, asked_image=image)
    made = await create(engine, container)
    client.start(made)
    client.wait(made)
    said = client.logs(made).decode()
    client.remove_container(made)
    return said


async def test_volumes_are_made_with_their_labels(engine: Engine, client: docker.APIClient, names: Names) -> None:
    volumes = plan(names, "/cache", protected=True)
    await create_volumes(engine, volumes, table(), {"a": "b"})
    cache, builds = (client.inspect_volume(mount.name) for mount in volumes.made)
    assert cache["Labels"] == {
        "a": "b",
        f"{LABELS}type": "cache",
        f"{LABELS}destination": "/cache",
        f"{LABELS}protected": "true",
        f"{LABELS}reusable": "true",
    }
    assert (builds["Labels"][f"{LABELS}reusable"], builds["Driver"]) == ("false", "local")


async def test_making_volumes_again_changes_nothing(engine: Engine, client: docker.APIClient, names: Names) -> None:
    volumes = plan(names, "/cache")
    await create_volumes(engine, volumes, table(), {"a": "first"})
    await create_volumes(engine, volumes, table(), {"a": "second"})
    assert client.inspect_volume(volumes.made[0].name)["Labels"]["a"] == "first"


async def test_only_what_goes_with_the_job_is_removed(engine: Engine, client: docker.APIClient, names: Names) -> None:
    volumes = plan(names, "/cache")
    await create_volumes(engine, volumes, table(), {})
    await remove_volumes(engine, volumes.temporary)
    await remove_volumes(engine, volumes.temporary)
    cache, builds = volumes.made
    assert client.inspect_volume(cache.name)["Name"] == cache.name
    with pytest.raises(docker.errors.NotFound):
        client.inspect_volume(builds.name)


async def test_volume_in_use_stays_and_is_no_error(engine: Engine, client: docker.APIClient, names: Names, busybox: str) -> None:
    volumes = plan(names)
    await create_volumes(engine, volumes, table(), {})
    process = Process(image=busybox, command=["true"])
    await create(engine, build_container(table(), around(names, binds=volumes.binds), process, asked_image=busybox))
    await remove_volumes(engine, volumes.temporary)
    assert client.inspect_volume(volumes.temporary[0])


async def test_driver_options_that_the_engine_refuses_are_told(engine: Engine, names: Names) -> None:
    keys = table(volume_driver="local", volume_driver_ops={"size": "10m"})
    volumes = plan(names, "/data")
    with pytest.raises(PrepareError) as caught:
        await create_volumes(engine, volumes, keys, {})
    assert str(caught.value).startswith("adding cache volume: creating docker volume: Error response from daemon: create ")
    assert "quota size requested but no quota support" in str(caught.value)


async def test_driver_options_reach_the_volume(engine: Engine, client: docker.APIClient, names: Names) -> None:
    options = {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}
    volumes = plan(names, "/data")
    await create_volumes(engine, volumes, table(volume_driver_ops=options), {})
    assert client.inspect_volume(volumes.made[0].name)["Options"] == options


async def test_what_a_job_leaves_in_a_path_is_there_for_the_next(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str
) -> None:
    first = plan(names, "/cache")
    await create_volumes(engine, first, table(), {})
    await run(engine, client, names, first, "touch /cache/kept /builds/lost", busybox)
    later = replace(names, attempt="f" * 16)
    with swept(client, later):
        second = plan(later, "/cache")
        await create_volumes(engine, second, table(), {})
        assert await run(engine, client, names, second, "ls /cache /builds", busybox) == "/builds:\n\n/cache:\nkept\n"


async def test_job_of_an_unprotected_ref_does_not_see_volumes_of_protected_ones(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str
) -> None:
    await run(engine, client, names, plan(names, "/cache", protected=True), "touch /cache/secret", busybox)
    assert await run(engine, client, names, plan(names, "/cache"), "ls /cache", busybox) == ""


async def test_every_kind_of_volume_is_mounted(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str, tmp_path: Path
) -> None:
    host = tmp_path / "host"
    host.mkdir()
    (host / "file").write_text("from the host\n")
    volumes = plan(names, "/cache", f"{names.unique}-{names.attempt}-named:/named", f"{host}:/host", f"{host}:/ro:ro")
    await create_volumes(engine, volumes, table(), {})
    said = await run(
        engine,
        client,
        names,
        volumes,
        "cat /host/file; touch /ro/x 2>/dev/null || echo read-only; touch /named/x /host/new /cache/x /builds/x && echo written",
        busybox,
    )
    assert said == "from the host\nread-only\nwritten\n"
    assert (host / "new").exists()


async def test_cache_dir_keeps_paths_on_the_host(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str, tmp_path: Path
) -> None:
    volumes = plan(names, "/data", cache_dir=str(tmp_path))
    await create_volumes(engine, volumes, table(), {})
    await run(engine, client, names, volumes, "echo here > /data/x", busybox)
    (kept,) = tmp_path.glob("runner-*/*/x")
    assert kept.read_text() == "here\n"
