"""Networks of jobs on a real engine."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import docker.errors
import pytest

from executors.docker.client import Engine
from executors.docker.containers import Process, build_container, create, service_container
from executors.docker.errors import NotFound
from executors.docker.names import Names
from executors.docker.network import Network, create_network, plan_network, remove_network
from executors.errors import PrepareError
from tests.docker.made import around, fresh_names, swept, table

pytestmark = pytest.mark.docker


@pytest.fixture
def names(client: docker.APIClient) -> Iterator[Names]:
    with swept(client, fresh_names()) as found:
        yield found


def own(names: Names) -> Network:
    return Network(mode=names.network, is_own=True)


@pytest.mark.parametrize(
    ("mode", "per_build", "found"),
    [
        ("", False, Network()),
        ("", True, Network(mode="own", is_own=True)),
        ("bridge", True, Network(mode="bridge")),
        ("mine", False, Network(mode="mine")),
    ],
)
def test_configured_network_beats_one_of_the_jobs_own(mode: str, per_build: bool, found: Network) -> None:
    assert plan_network(table(network_mode=mode), "own", per_build=per_build) == found


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        ("", False),
        ("bridge", False),
        ("default", False),
        ("host", False),
        ("none", False),
        ("container:x", False),
        ("mine", True),
    ],
)
def test_names_resolve_in_networks_of_users_only(mode: str, found: bool) -> None:
    assert Network(mode=mode).is_user_defined is found


async def test_network_is_made_as_configured(engine: Engine, client: docker.APIClient, names: Names) -> None:
    await create_network(engine, own(names), table(network_mtu=1300), {"test.pyrunner": names.attempt})
    found = client.inspect_network(names.network)
    assert found["Options"] == {"com.docker.network.driver.mtu": "1300"}
    assert (found["Driver"], found["EnableIPv6"], found["Labels"]) == ("bridge", False, {"test.pyrunner": names.attempt})


async def test_ipv6_is_asked_for(engine: Engine, client: docker.APIClient, names: Names) -> None:
    """This engine gives out no IPv6 networks by itself: that it says so shows that it was asked."""
    try:
        await create_network(engine, own(names), table(enable_ipv6=True), {})
    except PrepareError as error:
        assert "IPv6" in str(error) or "non-overlapping" in str(error)  # noqa: PT017 - either answer is one
    else:
        assert client.inspect_network(names.network)["EnableIPv6"] is True


async def test_network_of_an_earlier_attempt_is_used_again(engine: Engine, client: docker.APIClient, names: Names) -> None:
    await create_network(engine, own(names), table(), {"a": "b"})
    first = client.inspect_network(names.network)["Id"]
    await create_network(engine, own(names), table(), {"a": "b"})
    assert client.inspect_network(names.network)["Id"] == first


async def test_network_of_somebody_else_is_not_taken(engine: Engine, names: Names) -> None:
    await create_network(engine, own(names), table(), {"a": "b"})
    with pytest.raises(PrepareError, match="already exists"):
        await create_network(engine, own(names), table(), {"a": "other"})


async def test_network_goes_with_the_containers_that_are_left_on_it(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str
) -> None:
    await create_network(engine, own(names), table(), {})
    process = Process(image=busybox, command=["sleep", "600"])
    made = await create(engine, build_container(table(), around(names, network=own(names)), process, asked_image=""))
    client.start(made)
    await remove_network(engine, names.network)
    with pytest.raises(docker.errors.NotFound):
        client.inspect_network(names.network)
    with pytest.raises(docker.errors.NotFound):
        client.inspect_container(made)
    with pytest.raises(NotFound):
        await remove_network(engine, names.network)


async def test_everybody_in_a_jobs_network_finds_the_job_and_the_services(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str
) -> None:
    network = own(names)
    place = around(names, network=network)
    await create_network(engine, network, table(), {})
    service = service_container(
        table(),
        place,
        Process(image=busybox, command=["sleep", "600"]),
        name=names.service("db", 0),
        image="db:1",
        labels={},
        aliases=["db", "under_score"],
    )
    running = await create(engine, service)
    client.start(running)
    process = Process(image=busybox, command=["sleep", "600"])
    made = await create(engine, build_container(table(), place, process, asked_image=""))
    client.start(made)
    for container, wanted in ((made, ["db", "under_score"]), (running, ["build", names.unique, names.build])):
        for host in wanted:
            look = client.exec_create(container, ["ping", "-c", "1", "-w", "5", host])
            client.exec_start(look["Id"])
            assert client.exec_inspect(look["Id"])["ExitCode"] == 0, host
