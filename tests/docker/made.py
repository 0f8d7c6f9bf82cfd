"""Containers made from a configuration on a real engine, for looking at what the engine understood."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import docker
import docker.errors

from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.containers import Container, Surroundings, create
from executors.docker.names import Names, store_name, unique_name

LABEL = "test.pyrunner"


def fresh_names() -> Names:
    """Names that nothing else on the engine has."""
    token = uuid.uuid4().hex[:9]
    return Names(
        unique=unique_name(token, 9, 0),
        attempt=uuid.uuid4().hex[:16],
        store=store_name(token, "s_test", 9, 0),
        network=f"pyrunner-test-{token}",
    )


def table(**settings: object) -> DockerConfig:
    """The table with these keys."""
    return DockerConfig.from_values(settings)


def around(names: Names, **settings: Any) -> Surroundings:
    """What the containers of a test have in common."""
    return Surroundings(names=names, labels={LABEL: names.attempt}, **settings)


@contextmanager
def swept(client: docker.APIClient, names: Names) -> Iterator[Names]:
    """Removes everything with these names, or their label, in the end."""
    try:
        yield names
    finally:
        found = client.containers(all=True, filters={"label": f"{LABEL}={names.attempt}"})
        for container in found:
            client.remove_container(container["Id"], force=True, v=True)
        for volume in client.volumes()["Volumes"] or []:
            if names.attempt in volume["Name"] or names.store in volume["Name"]:
                client.remove_volume(volume["Name"], force=True)
        for network in client.networks(names=[names.network]):
            client.remove_network(network["Id"])


async def inspected(engine: Engine, container: Container) -> dict[str, Any]:
    """Make a container; what the engine says of it."""
    made = await create(engine, container)
    found: dict[str, Any] = await engine.call(lambda client: client.inspect_container(made))
    return found
