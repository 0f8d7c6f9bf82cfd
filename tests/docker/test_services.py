"""Services on a real engine: started, found by their names, waited for, shown."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest

from executors.base import ServiceSpec
from executors.docker.client import Engine
from executors.docker.containers import NO_ENTRYPOINT, Process, build_container, create
from executors.docker.errors import EngineError
from executors.docker.lines import KeptLines, Level, Lines
from executors.docker.names import Names
from executors.docker.network import Network, create_network
from executors.docker.readiness import ProbeLog, Prober, Target
from executors.docker.service_group import ServiceGroup
from executors.docker.services import plan_services
from executors.errors import InvalidSpec, PrepareError
from tests.docker import images
from tests.docker.made import around, fresh_names, swept, table
from tests.waiting import until

pytestmark = pytest.mark.docker

SERVE = "mkdir /w; echo svc-$GREETING > /w/index.html; exec httpd -f -p 8080 -h /w"


@pytest.fixture
def names(client: docker.APIClient) -> Iterator[Names]:
    with swept(client, fresh_names()) as found:
        yield found


@pytest.fixture(scope="session")
def exposed(client: docker.APIClient) -> str:
    """An image that exposes a port."""
    return images.make(client, "gold-exposed:local", images.busybox(), ["EXPOSE 8080", 'CMD ["sh"]'])


async def local(name: str, policies: Sequence[str], platform: str, lines: Lines) -> str:
    """Every image is here already."""
    lines.add(Level.PLAIN, f"found {name} {list(policies)} {platform}".rstrip())
    return name


def web(command: str = SERVE, *, image: str = "gold-exposed:local", **settings: Any) -> ServiceSpec:
    """A service that runs a shell script."""
    return ServiceSpec(**{"name": image, "entrypoint": ("sh", "-c"), "command": (command,), **settings})


def group(engine: Engine, names: Names, *specs: ServiceSpec, network: Network | None = None, **settings: Any) -> ServiceGroup:
    keys = table(**settings)
    place = around(names) if network is None else around(names, network=network)
    services = plan_services(keys, specs, lambda text: text)
    return ServiceGroup(engine=engine, table=keys, around=place, services=services, environment=["PUB=public", "PRIVATE="])


def texts(lines: KeptLines) -> list[str]:
    return [text for _, text in lines.kept]


async def ask(engine: Engine, client: docker.APIClient, names: Names, hosts: Sequence[str], script: str) -> str:
    """What a job's container prints that knows the services."""
    process = Process(image="busybox:local", command=["sh", "-c", script])
    container = build_container(table(), around(names, hosts=tuple(hosts)), process, asked_image="")
    made = await create(engine, container)
    client.start(made)
    client.wait(made)
    return client.logs(made).decode()


async def test_service_answers_to_its_names(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str, exposed: str
) -> None:
    lines = KeptLines()
    services = group(engine, names, web(aliases=("web", "other"), environment={"GREETING": "hey"}))
    await services.start(local, lines)
    await services.wait(None, lines)
    script = "for host in gold-exposed web other; do wget -qO- http://$host:8080/; done"
    assert await ask(engine, client, names, services.hosts, script) == "svc-hey\n" * 3
    assert texts(lines) == [
        "Starting service gold-exposed:local...",
        "found gold-exposed:local []",
        "Waiting for services to be up and running (timeout 30 seconds)...",
    ]
    (running,) = services.running
    assert services.hosts[0].startswith(f"{running.container[:12]}:")


async def test_services_are_found_by_name_in_a_network_of_the_job(
    engine: Engine, client: docker.APIClient, names: Names, exposed: str
) -> None:
    network = Network(mode=names.network, is_own=True)
    await create_network(engine, network, table(), {})
    services = group(engine, names, web(aliases=("one",)), web("exec sleep 600", aliases=("two",)), network=network)
    await services.start(local, KeptLines())
    look = client.exec_create(services.running[1].container, ["wget", "-qO-", "http://one:8080/"])
    await Prober(engine, None).wait(_target(services, 0), ProbeLog())
    assert client.exec_start(look["Id"]) == b"svc-\n"


def _target(services: ServiceGroup, index: int) -> Target:
    running = services.running[index]
    return Target(
        container=running.container,
        name=running.container[:12],
        addresses=running.addresses,
        ports=running.ports,
        host_pid=running.host_pid,
    )


async def test_service_sees_what_it_is_given(engine: Engine, client: docker.APIClient, names: Names, busybox: str) -> None:
    options = {"user": "4321", "platform": "linux/amd64"}
    spec = web("env | sort; id -u", image="busybox:local", environment={"A": "<x>"}, executor_opts=options)
    lines = KeptLines()
    services = group(engine, names, spec)
    await services.start(local, lines)
    container = services.running[0].container
    client.wait(container)
    said = client.logs(container).decode().splitlines()
    assert {"PUB=public", "PRIVATE=", "A=<x>", "4321"} <= set(said)
    assert texts(lines)[1] == "found busybox:local [] linux/amd64"


async def test_services_start_side_by_side_and_are_told_in_order(engine: Engine, names: Names, busybox: str) -> None:
    """The first one waits for the second: one behind the other they would never both run."""
    lines = KeptLines()
    second_is_under_way = asyncio.Event()

    async def find(name: str, policies: Sequence[str], platform: str, own: Lines) -> str:
        if "first" in policies:
            await second_is_under_way.wait()
        second_is_under_way.set()
        own.add(Level.PLAIN, f"found for {policies[0]}")
        return name

    def sleeper(policy: str) -> ServiceSpec:
        return web("exec sleep 600", image="busybox:local", aliases=(policy,), pull_policies=(policy,))

    services = group(engine, names, sleeper("first"), sleeper("second"))
    async with asyncio.timeout(60):
        await services.start(find, lines)
    text = 'Skipping alias "busybox" for service "busybox:local" (services[1]): alias is already in use by another service.'
    assert lines.kept == [
        (Level.PLAIN, "Starting service busybox:local..."),
        (Level.PLAIN, "found for first"),
        (Level.WARNING, text),
        (Level.PLAIN, "Starting service busybox:local..."),
        (Level.PLAIN, "found for second"),
    ]


async def test_service_without_a_name_of_its_own_has_no_container(engine: Engine, names: Names, busybox: str) -> None:
    sleeper = web("exec sleep 600", image="busybox:local")
    services = group(engine, names, sleeper, sleeper)
    await services.start(local, KeptLines())
    assert [running.service.index for running in services.running] == [0]


async def test_entrypoint_of_a_service_can_be_fixed(engine: Engine, client: docker.APIClient, names: Names, busybox: str) -> None:
    lines = KeptLines()
    spec = ServiceSpec(name="busybox:local", entrypoint=("sh", "-c"), command=("sleep", "600"))
    services = group(engine, names, spec, disable_entrypoint_overwrite=True)
    await services.start(local, lines)
    assert (Level.WARNING, NO_ENTRYPOINT) in lines.kept
    assert client.inspect_container(services.running[0].container)["State"]["Running"]


async def test_service_that_cannot_be_started_fails_the_preparation(engine: Engine, names: Names, busybox: str) -> None:
    services = group(engine, names, ServiceSpec(name="busybox:local", entrypoint=("/nosuch",)))
    with pytest.raises(EngineError, match='exec: "/nosuch": stat /nosuch: no such file or directory'):
        await services.start(local, KeptLines())


async def test_what_the_engine_calls_bad_in_a_service_is_final(engine: Engine, names: Names, busybox: str) -> None:
    services = group(engine, names, web("true", image="busybox:local"), service_memory="1m")
    with pytest.raises(InvalidSpec, match="Minimum memory limit allowed is 6MB"):
        await services.start(local, KeptLines())


async def test_lines_stop_at_the_service_that_failed(engine: Engine, names: Names, busybox: str) -> None:
    lines = KeptLines()

    async def find(name: str, policies: Sequence[str], platform: str, own: Lines) -> str:
        if name == "missing:1":
            raise PrepareError("no such image")
        return name

    sleeper = web("exec sleep 600", image="busybox:local")
    services = group(engine, names, sleeper, ServiceSpec(name="missing:1"), ServiceSpec(name="other:1"))
    with pytest.raises(PrepareError, match="no such image"):
        await services.start(find, lines)
    assert texts(lines) == ["Starting service busybox:local...", "Starting service missing:1..."]


async def test_bad_port_variable_fails_the_preparation(engine: Engine, names: Names, busybox: str) -> None:
    services = group(engine, names, web("exec sleep 600", image="busybox:local", environment={"HEALTHCHECK_TCP_PORT": "abc"}))
    with pytest.raises(PrepareError) as caught:
        await services.start(local, KeptLines())
    assert str(caught.value) == "getting exposed ports: invalid health check tcp port: abc"


# Waiting


async def test_slow_service_is_waited_for(engine: Engine, client: docker.APIClient, names: Names, exposed: str) -> None:
    lines = KeptLines()
    services = group(engine, names, web("sleep 2; " + SERVE))
    await services.start(local, lines)
    await services.wait(None, lines)
    assert texts(lines)[-1].startswith("Waiting for services")
    look = client.exec_create(services.running[0].container, ["wget", "-qO-", "http://127.0.0.1:8080/"])
    assert client.exec_start(look["Id"]) == b"svc-\n"


async def test_service_without_ports_is_told_at_once(engine: Engine, names: Names, busybox: str) -> None:
    lines = KeptLines()
    services = group(engine, names, web("exec sleep 600", image="busybox:local"), wait_for_services_timeout=3600)
    await services.start(local, lines)
    await services.wait(None, lines)
    name = services.running[0].name
    expected = (
        f"\n\x1b[0;33m*** WARNING:\x1b[0;m Service {name} probably didn't start properly.\n\nHealth check error:\n"
        f'service "{name}" has no exposed ports\n\nService container logs:\n\n\n\x1b[0;33m*********\x1b[0;m\n\n'
    )
    assert lines.kept[-1] == (Level.OUTPUT, expected)


async def test_service_that_nobody_serves_is_told_with_its_log(engine: Engine, names: Names, exposed: str) -> None:
    lines = KeptLines()
    services = group(engine, names, web("echo log-line; exec sleep 600"), wait_for_services_timeout=1)
    await services.start(local, lines)
    await services.wait(None, lines)
    (level, text) = lines.kept[-1]
    running = services.running[0]
    assert level is Level.OUTPUT
    assert f'Health check error:\nservice "{running.name}-wait-for-service" timeout\n\nHealth check container logs:\n' in text
    assert f"Z waiting for TCP connection to {running.container[:12]} on [8080]...\n" in text
    assert f"Z dialing {running.container[:12]}:8080...\n" in text
    assert "\n\nService container logs:\n" in text
    assert text.endswith("Z log-line\n\n\x1b[0;33m*********\x1b[0;m\n\n")


async def test_service_that_has_ended_is_not_waited_for(engine: Engine, names: Names, exposed: str) -> None:
    lines = KeptLines()
    services = group(engine, names, web("echo last words; exit 3"), wait_for_services_timeout=3600)
    await services.start(local, lines)
    await services.wait(None, lines)
    text = texts(lines)[-1]
    assert f'service "{services.running[0].name}" has stopped with exit code 3' in text
    assert "last words" in text


async def test_waiting_can_be_switched_off(engine: Engine, names: Names, exposed: str) -> None:
    lines = KeptLines()
    services = group(engine, names, web("exec sleep 600"), wait_for_services_timeout=-1)
    await services.start(local, lines)
    await services.wait(None, lines)
    assert not any("Waiting" in text for text in texts(lines))


async def test_port_variable_of_a_service_counts(engine: Engine, names: Names, busybox: str) -> None:
    lines = KeptLines()
    services = group(engine, names, web(image="busybox:local", environment={"HEALTHCHECK_TCP_PORT": "8080"}))
    await services.start(local, lines)
    await services.wait(None, lines)
    assert not [text for level, text in lines.kept if level is Level.OUTPUT]


@pytest.mark.parametrize("image", ["busybox", "debian", "bare"])
async def test_helper_dials_where_this_machine_cannot(
    engine: Engine, client: docker.APIClient, names: Names, exposed: str, busybox: str, debian: str, image: str
) -> None:
    """The process of the service is not to be found here, as with an engine on another machine."""
    helper_image = {"busybox": busybox, "debian": debian, "bare": debian}[image]
    services = group(engine, names, web("sleep 1; " + SERVE))
    await services.start(local, KeptLines())
    running = services.running[0]
    made = client.create_container(helper_image, ["sleep", "600"], labels={"test.pyrunner": names.attempt})
    client.start(made["Id"])
    if image == "bare":
        hide = client.exec_create(
            made["Id"], ["rm", "-f", "/usr/bin/bash", "/usr/bin/nc", "/usr/bin/python3", "/usr/bin/timeout"]
        )
        client.exec_start(hide["Id"])
    target = Target(container=running.container, name="x", addresses=running.addresses, ports=(9, 8080))

    async def helper() -> str:
        return str(made["Id"])

    async with asyncio.timeout(60):
        await Prober(engine, helper).wait(target, ProbeLog())
    look = client.exec_create(running.container, ["wget", "-qO-", "http://127.0.0.1:8080/"])
    assert client.exec_start(look["Id"]) == b"svc-\n"


# Logs


async def test_log_of_a_service_is_shown_with_its_names(engine: Engine, names: Names, busybox: str) -> None:
    services = group(engine, names, web("echo one; printf 'two' >&2", image="busybox:local", aliases=("web",)))
    await services.start(local, KeptLines())
    written: list[bytes] = []
    async with asyncio.timeout(60):
        await services.follow(written.append, {})
    assert sorted(piece.split(b" ")[-1] for piece in written) == [b"one\x1b[0;m\n", b"two\x1b[0;m\n"]
    assert all(piece.startswith(b"\x1b[0;37m[service:busybox-web] 20") for piece in written)


async def test_log_is_followed_while_the_service_runs(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str
) -> None:
    services = group(engine, names, web("echo ready; read line; echo $line", image="busybox:local"))
    await services.start(local, KeptLines())
    written: list[bytes] = []
    following = asyncio.create_task(services.follow(written.append, {}))
    await until(lambda: any(b"ready" in piece for piece in written), 60)
    client.remove_container(services.running[0].container, force=True)
    async with asyncio.timeout(60):
        await following


# The end


async def test_another_process_finds_what_was_started(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str
) -> None:
    sleepers = [web("exec sleep 600", image="busybox:local", aliases=(alias,)) for alias in ("a", "b")]
    services = group(engine, names, *sleepers)
    await services.start(local, KeptLines())
    client.remove_container(services.running[1].container, force=True)
    again = group(engine, names, *sleepers)
    await again.find()
    assert again.running == services.running[:1]
    assert again.hosts == tuple(services.running[0].hosts)


async def test_services_mount_what_the_job_mounts(
    engine: Engine, client: docker.APIClient, names: Names, busybox: str, tmp_path: Path
) -> None:
    keys = table()
    place = around(names, binds=(f"{tmp_path}:/shared",))
    spec = web("echo here > /shared/file", image="busybox:local")
    services = ServiceGroup(engine=engine, table=keys, around=place, services=plan_services(keys, [spec], str))
    await services.start(local, KeptLines())
    client.wait(services.running[0].container)
    assert (tmp_path / "file").read_text() == "here\n"
