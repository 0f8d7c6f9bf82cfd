"""Services of a job: their names, which of them counts, and the ports that tell whether they are up."""

from __future__ import annotations

from pathlib import Path

import pytest

from executors.base import ServiceSpec
from executors.docker.config import DockerConfig
from executors.docker.lines import KeptLines, Level
from executors.docker.readiness import Target, is_local, service_ports
from executors.docker.services import Service, ServiceImage, check_allowed_services, plan_services, split_aliases, split_image
from executors.errors import InvalidSpec, PrepareError


def expand(text: str) -> str:
    return text.replace("$CI_JOB_NAME", "test")


def plan(*asked: ServiceSpec, **settings: object) -> tuple[Service, ...]:
    return plan_services(DockerConfig.from_values(settings), asked, expand)


@pytest.mark.parametrize(
    ("text", "path", "version", "name"),
    [
        ("redis", "redis", "latest", "redis:latest"),
        ("redis:7", "redis", "7", "redis:7"),
        ("ns/svc:1", "ns/svc", "1", "ns/svc:1"),
        ("sub.domain.tld:8080/ns/svc:1.2", "sub.domain.tld/ns/svc", "1.2", "sub.domain.tld:8080/ns/svc:1.2"),
        ("reg.test:4999/ns/svc", "reg.test/ns/svc", "latest", "reg.test:4999/ns/svc:latest"),
        ("app@sha256:" + "a" * 64, "app", "@sha256:" + "a" * 64, "app@sha256:" + "a" * 64),
        ("127.0.0.1:5000/x:1@sha256:" + "a" * 64, "127.0.0.1/x", "@sha256:" + "a" * 64, "127.0.0.1:5000/x:1@sha256:" + "a" * 64),
    ],
)
def test_image_is_taken_apart(text: str, path: str, version: str, name: str) -> None:
    assert split_image(text) == ServiceImage(path=path, version=version, name=name)


@pytest.mark.parametrize("text", ["", ":tag", "UPPER", "a b", "x:", "/x"])
def test_what_is_no_image_has_no_parts(text: str) -> None:
    assert split_image(text) is None


def test_log_names_a_digest_without_a_colon() -> None:
    found = split_image("reg.test:1/x@sha256:" + "b" * 64)
    assert found is not None
    assert found.title == "reg.test/x@sha256:" + "b" * 64


def test_aliases_follow_from_the_image() -> None:
    (service,) = plan(ServiceSpec(name="registry.example.com:4999/ns/db", aliases=("a", "b")))
    assert service.own_aliases == ("registry.example.com__ns__db", "registry.example.com-ns-db", "a", "b")


def test_aliases_are_divided_by_spaces_and_commas() -> None:
    assert split_aliases(" one two,three , four ") == ("one", "two", "three", "four")


def test_first_service_with_an_alias_keeps_it() -> None:
    first, second, third = plan(
        ServiceSpec(name="busybox:local", aliases=("s1",)),
        ServiceSpec(name="busybox:local", aliases=("s2",)),
        ServiceSpec(name="busybox:local"),
    )
    text = 'Skipping alias "busybox" for service "busybox:local" (services[{}]): alias is already in use by another service.'
    assert first.own_aliases == ("busybox", "s1")
    assert (second.own_aliases, second.warnings) == (("s2",), (text.format(1),))
    assert second.aliases == ("busybox", "s2")
    assert (third.own_aliases, third.warnings) == ((), (text.format(2),))


def test_alias_that_a_service_repeats_is_told_once_it_runs() -> None:
    (service,) = plan(ServiceSpec(name="web", aliases=("web", "x")))
    assert service.own_aliases == ("web", "x")
    assert service.warnings == ()
    assert len(service.late_warnings) == 1


def test_services_of_the_configuration_come_first_and_know_the_job() -> None:
    settings = {"name": "busybox:local", "alias": "cfg one", "command": ["sleep", "60"], "environment": ["A=b-$CI_JOB_NAME"]}
    first, second = plan(ServiceSpec(name="web"), services=[settings])
    assert first.spec.environment == {"A": "b-test"}
    assert first.own_aliases == ("busybox", "cfg", "one")
    assert (second.index, second.image.name) == (1, "web:latest")


def test_limit_counts_both_kinds_of_services() -> None:
    with pytest.raises(PrepareError) as caught:
        plan(ServiceSpec(name="a"), services=[{"name": "b"}], services_limit=1)
    assert str(caught.value) == "too many services requested: 2, only 1 allowed"


def test_limit_below_zero_is_none() -> None:
    assert len(plan(ServiceSpec(name="a"), ServiceSpec(name="b"))) == 2


def test_services_are_checked_against_the_list() -> None:
    keys = DockerConfig.from_values({"allowed_services": ["postgres:*"], "services": [{"name": "$CI_JOB_NAME:1"}]})
    lines = KeptLines()
    check_allowed_services(keys, [ServiceSpec(name="postgres:14"), ServiceSpec(name="test:1")], expand, lines)
    assert not lines.kept
    with pytest.raises(InvalidSpec, match="disallowed image"):
        check_allowed_services(keys, [ServiceSpec(name="busybox:local")], expand, lines)
    assert lines.kept[1] == (Level.ERROR, 'The "busybox:local" image is not present on list of allowed services:')


@pytest.mark.parametrize("aliases", [(), ("x",)])
def test_service_without_an_image_is_refused(aliases: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSpec) as caught:
        plan(ServiceSpec(name="", aliases=aliases))
    assert str(caught.value) == "invalid service image name: "


@pytest.mark.parametrize(
    ("config", "ports"),
    [
        ({}, ()),
        ({"ExposedPorts": {"8080/tcp": {}, "80/tcp": {}, "53/udp": {}}}, (80, 8080)),
        ({"ExposedPorts": {f"{port}/tcp": {} for port in range(100, 130)}}, tuple(range(100, 120))),
        ({"ExposedPorts": {"80/tcp": {}}, "Env": ["healthcheck_tcp_port=99"]}, (99,)),
    ],
)
def test_ports_that_a_service_is_known_by(config: dict[str, object], ports: tuple[int, ...]) -> None:
    assert service_ports(config) == ports


@pytest.mark.parametrize("value", ["abc", "0", "65536", "", "-1", "1 2"])
def test_port_variable_that_is_no_port_is_refused(value: str) -> None:
    with pytest.raises(PrepareError) as caught:
        service_ports({"Env": [f"HEALTHCHECK_TCP_PORT={value}"]})
    assert str(caught.value) == f"getting exposed ports: invalid health check tcp port: {value}"


def test_container_counts_as_near_only_when_its_process_is_here(tmp_path: Path) -> None:
    for name, users in (("self", "0 0 1"), ("7", "0 0 1"), ("8", "0 1000 1"), ("9", "0 0 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "uid_map").write_text(users)
        (tmp_path / name / "cgroup").write_text("0::/docker/other" if name == "9" else "0::/docker/abcdef")

    def near(pid: int) -> bool:
        target = Target(container="abcdef", name="x", addresses=(), ports=(), host_pid=pid)
        return is_local(target, tmp_path)

    assert near(7)
    assert not near(8), "a user namespace of its own"
    assert not near(9), "another container"
    assert not near(10), "no such process"
    assert not near(0)
