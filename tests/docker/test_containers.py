"""Every key of the configuration that lands in a container, made on a real engine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import msgspec
import pytest

from executors.base import ServiceSpec
from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.containers import (
    NO_ENTRYPOINT,
    NO_MAC_ADDRESS,
    Container,
    Process,
    Surroundings,
    build_container,
    build_user,
    create,
    helper_container,
    is_privileged,
    remove,
    service_container,
    shell_command,
)
from executors.docker.errors import EngineError
from executors.docker.names import LABELS, Names, network_name, store_name, unique_name
from executors.docker.network import Network, plan_network
from executors.docker.services import Service, plan_services, split_aliases
from executors.docker.volumes import plan_volumes
from executors.errors import ExecutorError, InvalidSpec
from runner.coordinator.payload import JobPayload, decode
from runner.job.variables import Variables, from_payload
from tests.contract import golden
from tests.docker import images
from tests.docker.made import around, fresh_names, inspected, swept, table

pytestmark = pytest.mark.docker

MIB = 1024 * 1024
ALL = frozenset({"build", "helper", "service"})
JOB = frozenset({"build", "helper"})
GPU = {"Driver": "", "Count": 2, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
ZERO = {"PathOnHost": "/dev/zero", "PathInContainer": "/dev/z", "CgroupPermissions": "r"}
# Key, value, the field of HostConfig, what the engine says of it, and which containers have it.
KEYS: list[tuple[str, object, str, object, frozenset[str]]] = [
    ("memory", "1g", "Memory", 1024 * MIB, JOB),
    ("memory_reservation", "64m", "MemoryReservation", 64 * MIB, JOB),
    ("service_memory", "64m", "Memory", 64 * MIB, frozenset({"service"})),
    ("service_memory_reservation", "32m", "MemoryReservation", 32 * MIB, frozenset({"service"})),
    ("cpus", "0.5", "NanoCpus", 500_000_000, JOB),
    ("service_cpus", "1/4", "NanoCpus", 250_000_000, frozenset({"service"})),
    ("cpuset_cpus", "0", "CpusetCpus", "0", JOB),
    ("service_cpuset_cpus", "0", "CpusetCpus", "0", frozenset({"service"})),
    ("cpuset_mems", "0", "CpusetMems", "0", JOB),
    ("cpu_shares", 512, "CpuShares", 512, JOB),
    ("service_cpu_shares", 256, "CpuShares", 256, frozenset({"service"})),
    ("cgroup_parent", "pyrunner-a", "CgroupParent", "pyrunner-a", JOB),
    ("service_cgroup_parent", "pyrunner-b", "CgroupParent", "pyrunner-b", frozenset({"service"})),
    ("oom_kill_disable", True, "OomKillDisable", True, JOB),
    ("oom_score_adjust", 100, "OomScoreAdj", 100, JOB),
    ("shm_size", 32 * MIB, "ShmSize", 32 * MIB, ALL),
    ("ulimit", {"nofile": "1000:2000"}, "Ulimits", [{"Name": "nofile", "Hard": 2000, "Soft": 1000}], JOB),
    ("gpus", "2", "DeviceRequests", [GPU], JOB),
    ("service_gpus", "2", "DeviceRequests", [GPU], frozenset({"service"})),
    ("devices", ["/dev/zero:/dev/z:r"], "Devices", [ZERO], JOB),
    ("services_devices", {"busybox:*": ["/dev/zero:/dev/z:r"]}, "Devices", [ZERO], frozenset({"service"})),
    ("services_devices", {"other:*": ["/dev/zero:/dev/z:r"]}, "Devices", [ZERO], frozenset()),
    ("device_cgroup_rules", ["c 1:5 r"], "DeviceCgroupRules", ["c 1:5 r"], JOB),
    ("privileged", True, "Privileged", True, ALL),
    ("services_privileged", True, "Privileged", True, frozenset({"service"})),
    ("cap_add", ["NET_ADMIN"], "CapAdd", ["NET_ADMIN"], JOB),
    ("cap_drop", ["MKNOD"], "CapDrop", ["MKNOD"], JOB),
    ("security_opt", ["no-new-privileges"], "SecurityOpt", ["no-new-privileges"], JOB),
    ("services_security_opt", ["no-new-privileges"], "SecurityOpt", ["no-new-privileges"], frozenset({"service"})),
    ("userns_mode", "host", "UsernsMode", "host", ALL),
    ("group_add", ["4242"], "GroupAdd", ["4242"], JOB),
    ("pid_mode", "host", "PidMode", "host", frozenset({"build"})),
    ("ipcmode", "shareable", "IpcMode", "shareable", JOB),
    ("sysctls", {"net.ipv4.ip_default_ttl": "65"}, "Sysctls", {"net.ipv4.ip_default_ttl": "65"}, JOB),
    ("network_mode", "host", "NetworkMode", "host", ALL),
    ("dns", ["10.9.8.6"], "Dns", ["10.9.8.6"], ALL),
    ("dns_search", ["x.test"], "DnsSearch", ["x.test"], ALL),
    ("extra_hosts", ["db.test:10.9.8.7"], "ExtraHosts", ["db.test:10.9.8.7"], ALL),
    ("volume_driver", "local", "VolumeDriver", "local", JOB),
    ("tmpfs", {"/scratch": "rw,size=8m"}, "Tmpfs", {"/scratch": "rw,size=8m"}, JOB),
    ("services_tmpfs", {"/scratch": "rw"}, "Tmpfs", {"/scratch": "rw"}, frozenset({"service"})),
    ("runtime", "io.containerd.runc.v2", "Runtime", "io.containerd.runc.v2", ALL),
    ("isolation", "default", "Isolation", "default", ALL),
]


@pytest.fixture
def names(client: docker.APIClient) -> Iterator[Names]:
    with swept(client, fresh_names()) as found:
        yield found


def of_kind(kind: str, keys: DockerConfig, place: Surroundings, **process: Any) -> Container:
    """A container of a kind."""
    what = Process(**{"image": "busybox:local", "command": ["true"], **process})
    if kind == "build":
        return build_container(keys, place, what, asked_image="busybox:local")
    if kind == "helper":
        return helper_container(keys, place, what, hardened=False)
    name = place.names.service("busybox", 0)
    return service_container(keys, place, what, name=name, image="busybox:local", labels={}, aliases=["busybox", "db"])


@pytest.mark.parametrize("kind", sorted(ALL))
@pytest.mark.parametrize(
    ("key", "value", "field", "said", "kinds"), KEYS, ids=[f"{key}-{number}" for number, (key, *_) in enumerate(KEYS)]
)
async def test_key_reaches_the_containers_that_it_is_for(
    engine: Engine,
    busybox: str,
    names: Names,
    kind: str,
    key: str,
    value: object,
    field: str,
    said: object,
    kinds: frozenset[str],
) -> None:
    keys = table(**{key: value})
    place = around(names, network=plan_network(keys, "own", per_build=False))
    found = essentials((await inspected(engine, of_kind(kind, keys, place)))["HostConfig"])
    if kind in kinds:
        assert found[field] == said
    else:
        assert found.get(field) != said


async def test_swap_is_counted_with_memory(engine: Engine, busybox: str, names: Names) -> None:
    keys = table(memory="1g", memory_swap="1g", service_memory="64m", service_memory_swap="96m")
    for kind, swap in (("build", 1024), ("helper", 1024), ("service", 96)):
        found = await inspected(engine, of_kind(kind, keys, around(names)))
        assert found["HostConfig"]["MemorySwap"] == swap * MIB


async def test_helper_has_memory_for_git_where_scripts_have_little(engine: Engine, busybox: str, names: Names) -> None:
    keys = table(memory="64m", memory_swap="96m")
    found = (await inspected(engine, of_kind("helper", keys, around(names))))["HostConfig"]
    assert (found["Memory"], found["MemorySwap"]) == (512 * MIB, 544 * MIB)


async def test_init_is_for_scripts_and_services(engine: Engine, busybox: str, names: Names) -> None:
    for kind, said in (("build", True), ("service", True), ("helper", False)):
        found = await inspected(engine, of_kind(kind, table(), around(names, with_init=True)))
        assert found["HostConfig"].get("Init", False) is said


async def test_services_are_apart_from_the_list_of_privileged_images(engine: Engine, busybox: str, names: Names) -> None:
    keys = table(privileged=True, allowed_privileged_images=["other:*"], allowed_privileged_services=["busybox:*"])
    for kind, said in (("build", False), ("helper", False), ("service", True)):
        found = await inspected(engine, of_kind(kind, keys, around(names)))
        assert found["HostConfig"]["Privileged"] is said


def test_default_image_is_not_privileged_where_there_is_a_list() -> None:
    keys = table(privileged=True, allowed_privileged_images=["busybox:*"])
    assert is_privileged(keys, "busybox:local")
    assert not is_privileged(keys, "")


def test_services_can_be_less_privileged_than_jobs() -> None:
    assert not is_privileged(table(privileged=True, services_privileged=False), "x", service=True)


async def test_helper_is_locked_up(engine: Engine, busybox: str, names: Names) -> None:
    """What scripts are given does not reach the runner's own work."""
    keys = table(
        privileged=True,
        cap_add=["SYS_ADMIN"],
        devices=["/dev/zero"],
        security_opt=["seccomp=unconfined", "label=disable"],
        tmpfs={"/scratch": "rw"},
    )
    process = Process(image="busybox:local", command=["sh"])
    found = (await inspected(engine, helper_container(keys, around(names), process, hardened=True)))["HostConfig"]
    assert found["Privileged"] is False
    assert _plain(sorted(found["CapAdd"])) == ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL"]
    assert found["CapDrop"] == ["ALL"]
    assert found["SecurityOpt"] == ["label=disable", "no-new-privileges"]
    assert found["ReadonlyRootfs"] is True
    assert found["PidsLimit"] == 4096
    assert not found["Devices"]
    assert set(found["Tmpfs"]) == {"/scratch", "/tmp", "/root", "/run"}
    assert found["LogConfig"]["Type"] == "none"


async def test_log_of_a_job_is_never_cut(engine: Engine, busybox: str, names: Names) -> None:
    keys = table(log_options={"env": "CI_JOB_ID", "labels": "x"})
    found = await inspected(engine, of_kind("build", keys, around(names)))
    options = {"env": "CI_JOB_ID", "labels": "x", "max-size": "1000g", "max-file": "1", "compress": "false"}
    assert found["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": options}


async def test_labels_of_the_configuration_cannot_hide_the_runners(engine: Engine, busybox: str, names: Names) -> None:
    place = around(names, own_labels={"my.label": "a", "test.pyrunner": "other", f"{LABELS}type": "other"})
    build = (await inspected(engine, of_kind("build", table(), place)))["Config"]["Labels"]
    assert (build["my.label"], build["test.pyrunner"], build[f"{LABELS}type"]) == ("a", names.attempt, "build")
    service = (await inspected(engine, of_kind("service", table(), place)))["Config"]["Labels"]
    assert (service["my.label"], service[f"{LABELS}my.label"], service[f"{LABELS}type"]) == ("a", "a", "service")


async def test_host_name_is_the_configured_one_or_the_slots(engine: Engine, busybox: str, names: Names) -> None:
    assert (await inspected(engine, of_kind("build", table(), around(names))))["Config"]["Hostname"] == names.unique
    keys = table(hostname="myhost")
    assert (await inspected(engine, of_kind("build", keys, around(names))))["Config"]["Hostname"] == "myhost"


async def test_only_the_job_answers_to_its_names_in_a_network(engine: Engine, busybox: str, names: Names) -> None:
    place = around(names, network=Network(mode=names.network, is_own=True))
    build = of_kind("build", table(), place)
    helper = of_kind("helper", table(), place)
    service = of_kind("service", table(), place)
    aliases = [
        container.body["NetworkingConfig"]["EndpointsConfig"][names.network]["Aliases"] for container in (build, helper, service)
    ]
    assert aliases == [["build", names.build], [names.helper], ["busybox", "db"]]
    assert "Hostname" not in helper.body


async def test_container_in_the_network_of_another_has_its_host_name(
    engine: Engine, client: docker.APIClient, busybox: str, names: Names
) -> None:
    other = client.create_container(busybox, ["sleep", "60"], labels={"test.pyrunner": names.attempt})
    keys = table(network_mode=f"container:{other['Id']}")
    place = around(names, network=plan_network(keys, "own", per_build=True))
    found = await inspected(engine, of_kind("build", keys, place))
    assert found["HostConfig"]["NetworkMode"] == f"container:{other['Id']}"


async def test_volumes_and_links_of_other_containers(
    engine: Engine, client: docker.APIClient, busybox: str, names: Names
) -> None:
    other = client.create_container(
        busybox,
        ["sleep", "60"],
        name=f"{names.unique}-holder",
        volumes=["/shared"],
        labels={"test.pyrunner": names.attempt},
    )
    client.start(other["Id"])
    keys = table(volumes_from=[f"{names.unique}-holder:ro"], links=[f"{names.unique}-holder:db"])
    for kind in ("build", "helper"):
        found = (await inspected(engine, of_kind(kind, keys, around(names))))["HostConfig"]
        assert found["VolumesFrom"] == [f"{names.unique}-holder:ro"]
        assert [link.split(":")[0] for link in found["Links"]] == [f"/{names.unique}-holder"]
    found = (await inspected(engine, of_kind("service", keys, around(names))))["HostConfig"]
    assert (found["VolumesFrom"], found["Links"]) == (None, None)


async def test_mac_address_needs_a_newer_engine(engine: Engine, busybox: str, names: Names) -> None:
    keys = table(mac_address="92:d0:c6:0a:29:33")
    assert of_kind("build", keys, around(names)).warnings == (NO_MAC_ADDRESS,)
    newer = of_kind("build", keys, around(names, api_version=(1, 44)))
    assert newer.warnings == ()
    assert newer.body["NetworkingConfig"]["EndpointsConfig"] == {"default": {"MacAddress": "92:d0:c6:0a:29:33"}}
    with pytest.raises(InvalidSpec):
        of_kind("build", table(mac_address="zz:zz"), around(names, api_version=(1, 44)))


async def test_entrypoint_can_be_fixed_by_the_configuration(engine: Engine, busybox: str, names: Names) -> None:
    asked = of_kind("build", table(), around(names), entrypoint=["sh", "-c"])
    assert (asked.body["Entrypoint"], asked.warnings) == (["sh", "-c"], ())
    fixed = of_kind("build", table(disable_entrypoint_overwrite=True), around(names), entrypoint=["sh", "-c"])
    assert fixed.warnings == (NO_ENTRYPOINT,)
    assert "Entrypoint" not in fixed.body


async def test_empty_entrypoint_means_none(engine: Engine, client: docker.APIClient, busybox: str, names: Names) -> None:
    container = of_kind("build", table(), around(names), entrypoint=[""], command=["sh", "-c", "exit 7"])
    made = await create(engine, container)
    client.start(made)
    assert client.wait(made)["StatusCode"] == 7


@pytest.mark.parametrize(
    ("user", "allowed", "asked", "found"),
    [
        ("", [], "", ""),
        ("", [], "7", "7"),
        ("1000", [], "1001", "1000"),
        ("", ["1000"], "", ""),
        ("", ["1000"], "1000", "1000"),
        ("1000", ["1000"], "", "1000"),
    ],
)
def test_user_is_the_configured_one_else_the_jobs(user: str, allowed: list[str], asked: str, found: str) -> None:
    assert build_user(table(user=user, allowed_users=allowed), asked) == found


@pytest.mark.parametrize(("user", "asked", "refused"), [("", "7", "7"), ("1001", "", "1001"), ("1001", "1000", "1001")])
def test_user_must_be_allowed(user: str, asked: str, refused: str) -> None:
    with pytest.raises(ExecutorError) as caught:
        build_user(table(user=user, allowed_users=["1000", "1002"]), asked)
    text = f'failed to create container configuration: user "{refused}" is not an allowed user: [1000 1002]'
    assert str(caught.value) == text


async def test_user_is_that_of_the_container(engine: Engine, client: docker.APIClient, busybox: str, names: Names) -> None:
    container = of_kind("build", table(), around(names), user="1234", command=["id", "-u"])
    made = await create(engine, container)
    client.start(made)
    client.wait(made)
    assert client.logs(made) == b"1234\n"


async def test_best_shell_of_an_image_is_found(
    engine: Engine, client: docker.APIClient, debian: str, busybox: str, names: Names
) -> None:
    for image, shell in ((debian, b"bash"), (busybox, b"sh")):
        container = of_kind("build", table(), around(names), image=image, command=shell_command('-c "cat /proc/1/comm"'))
        made = await create(engine, container)
        client.start(made)
        client.wait(made)
        assert client.logs(made).strip() in (shell, b"cat")
        await remove(engine, made)


async def test_what_the_engine_calls_bad_is_the_configurations_fault(engine: Engine, busybox: str, names: Names) -> None:
    with pytest.raises(InvalidSpec) as caught:
        await create(engine, of_kind("build", table(memory="1m"), around(names)))
    assert str(caught.value) == "Error response from daemon: Minimum memory limit allowed is 6MB"
    with pytest.raises(InvalidSpec, match="Unknown runtime specified nosuch"):
        await create(engine, of_kind("build", table(runtime="nosuch"), around(names)))


async def test_missing_image_is_no_fault_of_the_configuration(engine: Engine, names: Names) -> None:
    with pytest.raises(EngineError, match="No such image"):
        await create(engine, of_kind("build", table(), around(names), image="nosuch:none"))


async def test_what_is_left_of_the_same_name_is_replaced(engine: Engine, busybox: str, names: Names) -> None:
    first = await create(engine, of_kind("build", table(), around(names)))
    second = await create(engine, of_kind("build", table(), around(names)))
    assert first != second


async def test_removal_of_what_is_gone_is_fine(engine: Engine, busybox: str, names: Names) -> None:
    made = await create(engine, of_kind("build", table(), around(names)))
    await remove(engine, made)
    await remove(engine, made)


# As recorded

SAME_AS_DEFAULT = {
    "IpcMode": "private",
    "NetworkMode": "default",
    "Runtime": "runc",
    "ShmSize": 64 * MIB,
}
OF_THEIR_OWN = {
    "gold-user:local": ["USER 1000"],
    "gold-entry:local": ['ENTRYPOINT ["sh", "-c", "export FROM_ENTRYPOINT=yes; exec \\"$@\\"", "--"]'],
}
# Their containers need another one that is not recorded.
APART = {"volumes-from"}


def recordings() -> list[str]:
    found = []
    for name in golden.scenarios("docker"):
        about = golden.read("docker", name)
        kinds = {_kind(container["name"]) for container in about["containers"]}
        if kinds & {"build", "service"} and len(about["jobs"]) == 1 and name not in APART:
            found.append(name)
    return found


def _kind(name: str) -> str:
    for ending, kind in (("-build", "build"), ("-predefined", "helper"), ("-wait-for-service", "wait")):
        if name.endswith(ending):
            return kind
    return "init" if "-set-permission-" in name else "service"


def essentials(host: dict[str, Any]) -> dict[str, Any]:
    """The settings that say something, without the log driver's and the addresses of services."""
    found = {key: value for key, value in host.items() if value not in (None, "", 0, False, [], {}, [0, 0])}
    for key in ("CapAdd", "CapDrop"):
        if key in found:
            found[key] = _plain(found[key])
    for key, value in SAME_AS_DEFAULT.items():
        if found.get(key) == value:
            del found[key]
    for key in ("LogConfig", "RestartPolicy", "MaskedPaths", "ReadonlyPaths", "CgroupnsMode", "Cgroup", "ConsoleSize"):
        found.pop(key, None)
    hosts = [host for host in found.pop("ExtraHosts", ()) if not re.search(r":172\.\d+\.", host)]
    return {**found, "ExtraHosts": hosts}


def _plain(capabilities: list[str]) -> list[str]:
    """Without the prefix, which the engine adds once a container runs."""
    return [name.removeprefix("CAP_") for name in capabilities]


@pytest.mark.parametrize("recorded", recordings() or [pytest.param("", marks=pytest.mark.skip(golden.ABSENT))])
async def test_containers_are_asked_for_as_recorded(
    engine: Engine, busybox: str, client: docker.APIClient, tmp_path: Path, recorded: str
) -> None:
    scenario = golden.fill(
        golden.read("docker", recorded), {"ROOT": str(tmp_path), "REGISTRY": "127.0.0.1:5000", "AUTH_REGISTRY": "127.0.0.1:5001"}
    )
    keys, payload = _keys(scenario["config_toml"]), _payload(scenario["jobs"][0]["payload"])
    (short,) = {re.sub(r"^/?runner-(\w+)-project.*", r"\1", entry["name"]) for entry in _wanted(scenario)}
    attempts = {re.sub(r"^.*-concurrent-0-([0-9a-f]{16})-.*", r"\1", entry["name"]) for entry in _wanted(scenario)}
    ours = fresh_names()
    theirs = Names(
        unique=unique_name(short, 9, 0),
        attempt=attempts.pop(),
        store=store_name(f"glrt-{short}", "s_1746f8786189", 9, 0),
        network=network_name(short, 9, 0, payload.id),
    )
    image = payload.image.name if payload.image.name in OF_THEIR_OWN else busybox
    if image != busybox:
        images.make(client, image, images.busybox(), OF_THEIR_OWN[image])
    with swept(client, ours):
        made = _made(keys, payload, ours, image)
        for entry in _wanted(scenario):
            if theirs.attempt not in entry["name"]:
                continue  # of a further attempt
            name = _translate(entry["name"].lstrip("/"), theirs, ours)
            found = await inspected(engine, made[name])
            expected = _translate(essentials(entry["host_config"]), theirs, ours)
            assert essentials(found["HostConfig"]) == expected
            assert found["Config"]["User"] == entry["user"]
            assert found["Config"]["Cmd"] == entry["cmd"]
            assert (found["Config"]["Entrypoint"] or None) == entry["entrypoint"]
            if name.endswith("-build"):
                assert found["Config"]["Hostname"] == _translate(entry["hostname"], theirs, ours)
            labels = {
                key: value for key, value in entry["labels"].items() if not re.search(r"\.(job|pipeline|project|runner)\.", key)
            }
            labels.pop(f"{LABELS}managed")
            assert {key: value for key, value in found["Config"]["Labels"].items() if key != "test.pyrunner"} == labels


def _wanted(scenario: dict[str, Any]) -> list[dict[str, Any]]:
    return [entry for entry in scenario["containers"] if _kind(entry["name"]) in ("build", "service")]


def _keys(text: str) -> DockerConfig:
    (runner,) = tomllib.loads(text)["runners"]
    values = {**runner["docker"]}
    if isinstance(values.get("pull_policy"), str):
        values["pull_policy"] = [values["pull_policy"]]
    return DockerConfig.from_values(values)


def _payload(found: dict[str, Any]) -> JobPayload:
    return decode(msgspec.json.encode(found))


def _translate(value: Any, theirs: Names, ours: Names) -> Any:
    """The recorded names as the test's."""
    if isinstance(value, str):
        for before, after in (
            (theirs.unique, ours.unique),
            (theirs.attempt, ours.attempt),
            (theirs.store, ours.store),
            (theirs.network, ours.network),
        ):
            value = value.replace(before, after)
        return value
    if isinstance(value, list):
        return [_translate(item, theirs, ours) for item in value]
    if isinstance(value, dict):
        return {key: _translate(item, theirs, ours) for key, item in value.items()}
    return value


def _made(keys: DockerConfig, payload: JobPayload, names: Names, image: str) -> dict[str, Container]:
    """The containers that follow from a configuration and a payload, by name."""
    variables = Variables([from_payload(variable) for variable in payload.variables], "/builds/x.tmp")

    def is_set(flag: str) -> bool:
        return variables.get(flag) == "true"

    strategy = variables.get("GIT_STRATEGY") or "fetch"
    volumes = plan_volumes(
        keys,
        names,
        expand=variables.expand,
        builds_dir="/builds",
        keeps_builds=strategy == "fetch",
        protected=payload.git_info.protected is True,
    )
    place = around(
        names,
        own_labels={key: variables.expand(value) for key, value in keys.container_labels.items()},
        binds=volumes.binds,
        network=plan_network(keys, names.network, per_build=is_set("FF_NETWORK_PER_BUILD")),
        with_init=is_set("FF_USE_INIT_WITH_DOCKER_EXECUTOR"),
    )
    found = {}
    options = payload.image.executor_opts.get("docker", {})
    try:
        user = build_user(keys, str(options.get("user", "")))
    except ExecutorError:
        user = ""
    process = Process(
        image=image,
        command=shell_command(),
        entrypoint=payload.image.entrypoint,
        user=user,
    )
    found[names.build] = build_container(keys, place, process, asked_image=variables.expand(payload.image.name))
    for service in _services(keys, payload, variables):
        name = names.service(service.image.path, service.index)
        what = Process(
            image="busybox:local",
            command=service.spec.command,
            entrypoint=service.spec.entrypoint,
            user=str(service.spec.executor_opts.get("user", "")),
        )
        found[name] = service_container(
            keys, place, what, name=name, image=service.image.name, labels=service.labels, aliases=service.aliases
        )
    return found


def _services(keys: DockerConfig, payload: JobPayload, variables: Variables) -> tuple[Service, ...]:
    asked = [
        ServiceSpec(
            name=variables.expand(service.name),
            aliases=split_aliases(variables.expand(service.alias)),
            entrypoint=tuple(service.entrypoint),
            command=tuple(service.command),
            executor_opts={key: str(value) for key, value in service.executor_opts.get("docker", {}).items()},
        )
        for service in payload.services
        if variables.expand(service.name)
    ]
    return plan_services(keys, asked, variables.expand)
