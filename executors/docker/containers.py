"""The containers of a job as the engine's create call takes them (``docker-executor.md`` 1, 2.5).

Everything up to :func:`create` is pure, but for a seccomp profile that is read. What the configuration asks for and cannot
be raises :class:`ExecutorError`, or the kind of it that says what the fault is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from executors.docker import resources
from executors.docker.config import size_bytes
from executors.docker.errors import EngineError, NotFound
from executors.docker.names import LABELS, Names
from executors.docker.network import ENGINE_DEFAULT, Network
from executors.docker.policy import matches_any
from executors.errors import ExecutorError, InvalidSpec

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.config import DockerConfig

MAC_ADDRESS_API = (1, 44)
NO_MAC_ADDRESS = (
    "mac_address is configured, but the Docker daemon's API version is older than 1.44; it cannot be applied to this container"
)
NO_ENTRYPOINT = "Entrypoint override disabled"
SHELLS = (
    "/usr/local/bin/bash",
    "/usr/bin/bash",
    "/bin/bash",
    "/usr/local/bin/sh",
    "/usr/bin/sh",
    "/bin/sh",
    "/busybox/sh",
)
# A follower must see every byte, so nothing is rotated away; what a job may write is bounded by the runner.
FOLLOWED_LOG = {"max-size": "1000g", "max-file": "1", "compress": "false"}
# What sources, caches and owners of files need, and no more.
HELPER_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL")
HELPER_TMPFS = {"/tmp": "rw,exec,mode=1777", "/root": "rw,mode=0700", "/run": "rw,mode=0755"}  # noqa: S108 - in the container
HELPER_PIDS = 4096
HELPER_MEMORY_BYTES = 512 * 1024 * 1024
REMOVAL_POLL_S = 0.1
# Podman, of a container that ends by itself while it is being ended.
CHANGING = "container state improper"
REMOVAL_POLLS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container to be made. ``body`` is that of the engine's create call; ``platform`` is empty for the engine's own;
    ``warnings`` are for the log of the job."""

    name: str
    body: Mapping[str, Any]
    platform: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the containers of a job have in common.

    ``labels`` are those of the runner, ``own_labels`` those of the configuration, expanded; ``hosts`` are the names of
    services (``name:address``); ``api_version`` is the one that the engine and the client speak.
    """

    names: Names
    labels: Mapping[str, str]
    own_labels: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[str, ...] = ()
    network: Network = ENGINE_DEFAULT
    hosts: tuple[str, ...] = ()
    api_version: tuple[int, int] = (1, 41)
    with_init: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What runs in a container: ``image`` is the id or digest to create it from, ``environment`` are ``KEY=VALUE``.
    An empty ``entrypoint`` is the image's own."""

    image: str
    environment: Sequence[str] = ()
    command: Sequence[str] = ()
    entrypoint: Sequence[str] = ()
    user: str = ""
    platform: str = ""


def shell_command(options: str = "") -> list[str]:
    """A command that becomes the best shell of an image; ``options`` are for that shell (2.7)."""
    lines = []
    for number, path in enumerate(SHELLS):
        lines.append(f"{'elif' if number else 'if'} [ -x {path} ]; then\n\texec {path} {options}\n")
    lines.append("else\n\techo shell not found\n\texit 1\nfi\n\n")
    return ["sh", "-c", "".join(lines)]


def build_user(table: DockerConfig, asked: str) -> str:
    """The user of the job's scripts: the configured one, else the job's, else the image's own (empty) (2.9)."""
    user = table.user or asked
    if not user or (not table.user and not table.allowed_users):
        return user
    allowed = table.allowed_users or (table.user,)
    if user not in allowed:
        text = f'user "{user}" is not an allowed user: [{" ".join(allowed)}]'
        raise ExecutorError(f"failed to create container configuration: {text}")
    return user


def is_privileged(table: DockerConfig, image: str, *, service: bool = False) -> bool:
    """Whether a container of this image is privileged; ``image`` is the name as the job asked for it (1.4)."""
    asked, allowed = table.privileged, table.allowed_privileged_images
    if service:
        asked = table.privileged if table.services_privileged is None else table.services_privileged
        allowed = table.allowed_privileged_services
    return asked and (not allowed or matches_any(allowed, image))


def build_container(table: DockerConfig, around: Surroundings, process: Process, *, asked_image: str) -> Container:
    """The container of the job's scripts. ``asked_image`` is the job's own image name, expanded; empty without one."""
    host = {
        **_job_host(table, around),
        "Privileged": is_privileged(table, asked_image),
        "PidMode": table.pid_mode,
        "Init": True if around.with_init else None,
    }
    host["LogConfig"] = _log(table, FOLLOWED_LOG)
    body = {
        **_body(process, _labels(around, "build"), table),
        **_stdio(once=True),
        "Hostname": _hostname(table, around),
        "HostConfig": _set(host),
    }
    aliases = ("build", around.names.build)
    return _container(around.names.build, body, process, table, around, aliases)


def helper_container(table: DockerConfig, around: Surroundings, process: Process, *, hardened: bool) -> Container:
    """The container of the runner's own work, which runs beside the other: it is not ``build`` in the network.

    ``hardened`` takes away what the runner's work does not need; without it, for images and hooks of the administrator's
    own, it has what the job's container has.
    """
    host = {**_job_host(table, around), **_helper_memory(table)}
    if hardened:
        host |= _hardened(table)
    else:
        host["Privileged"] = is_privileged(table, process.image)
    host["LogConfig"] = {"Type": "none", "Config": {}}
    body = {
        **_body(process, _labels(around, "predefined"), table),
        **_stdio(once=False),
        "WorkingDir": "/",
        "HostConfig": _set(host),
    }
    if not around.network.is_user_defined:
        # In a network with names only one container may answer to the job's.
        body["Hostname"] = _hostname(table, around)
    return _container(around.names.helper, body, process, table, around, (around.names.helper,))


def service_container(
    table: DockerConfig,
    around: Surroundings,
    process: Process,
    *,
    name: str,
    image: str,
    labels: Mapping[str, str],
    aliases: Sequence[str],
) -> Container:
    """The container of a service (6.2). ``image`` is its name with its tag, ``labels`` are its own beside the job's."""
    patterns = [pattern for pattern in table.services_devices if matches_any((pattern,), image)]
    host = {
        **_common_host(table, around),
        **_limits(
            memory=table.service_memory,
            swap=table.service_memory_swap,
            reservation=table.service_memory_reservation,
            cpus=table.service_cpus,
        ),
        "CpusetCpus": table.service_cpuset_cpus,
        "CpuShares": table.service_cpu_shares,
        "CgroupParent": table.service_cgroup_parent,
        "DeviceRequests": resources.gpu_requests(table.service_gpus),
        "Devices": [device for pattern in patterns for device in resources.devices(table.services_devices[pattern])],
        "Privileged": is_privileged(table, image, service=True),
        "SecurityOpt": resources.security_options(table.services_security_opt),
        "Tmpfs": dict(table.services_tmpfs),
        "ExtraHosts": list(table.extra_hosts),
        "Init": True if around.with_init else None,
        "LogConfig": _log(table, {}),
    }
    legacy = {f"{LABELS}{key}": value for key, value in around.own_labels.items()}
    body = {
        **_body(process, {**legacy, **_labels(around, "service"), **labels}, table),
        "HostConfig": _set(host),
    }
    return _container(name, body, process, table, around, aliases)


def _container(
    name: str,
    body: dict[str, Any],
    process: Process,
    table: DockerConfig,
    around: Surroundings,
    aliases: Sequence[str],
) -> Container:
    """The container with its place in the network."""
    endpoint: dict[str, Any] = {}
    if around.network.is_user_defined and aliases:
        endpoint["Aliases"] = list(aliases)
    warnings: list[str] = []
    if table.mac_address and around.api_version < MAC_ADDRESS_API:
        warnings.append(NO_MAC_ADDRESS)
    elif table.mac_address:
        endpoint["MacAddress"] = resources.mac_address(table.mac_address)
    if endpoint:
        body["NetworkingConfig"] = {"EndpointsConfig": {around.network.mode or "default": endpoint}}
    if process.entrypoint and table.disable_entrypoint_overwrite:
        warnings.append(NO_ENTRYPOINT)
    return Container(name=name, body=body, platform=process.platform, warnings=tuple(warnings))


def _body(process: Process, labels: Mapping[str, str], table: DockerConfig) -> dict[str, Any]:
    body: dict[str, Any] = {
        "Image": process.image,
        "Env": list(process.environment),
        "Labels": dict(labels),
        "User": process.user,
    }
    if process.command:
        body["Cmd"] = list(process.command)
    if process.entrypoint and not table.disable_entrypoint_overwrite:
        body["Entrypoint"] = list(process.entrypoint)
    return body


def _labels(around: Surroundings, kind: str) -> dict[str, str]:
    """The runner's own labels win: what is swept and adopted is found by them."""
    return {**around.own_labels, **around.labels, f"{LABELS}type": kind}


def _stdio(*, once: bool) -> dict[str, Any]:
    return {
        "OpenStdin": True,
        "StdinOnce": once,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
    }


def _hostname(table: DockerConfig, around: Surroundings) -> str:
    """Containers in the network of another one have its host name."""
    if around.network.mode.startswith("container:"):
        return ""
    return table.hostname or around.names.unique


def _job_host(table: DockerConfig, around: Surroundings) -> dict[str, Any]:
    """What containers of the job and of the runner's work get, and services do not."""
    return {
        **_common_host(table, around),
        **_limits(
            memory=table.memory,
            swap=table.memory_swap,
            reservation=table.memory_reservation,
            cpus=table.cpus,
        ),
        "CpusetCpus": table.cpuset_cpus,
        "CpusetMems": table.cpuset_mems,
        "CpuShares": table.cpu_shares,
        "CgroupParent": table.cgroup_parent,
        "OomKillDisable": table.oom_kill_disable,
        "OomScoreAdj": table.oom_score_adjust,
        "Ulimits": resources.ulimits(table.ulimit),
        "DeviceRequests": resources.gpu_requests(table.gpus),
        "Devices": resources.devices(table.devices),
        "DeviceCgroupRules": list(table.device_cgroup_rules),
        "CapAdd": list(table.cap_add),
        "CapDrop": list(table.cap_drop),
        "SecurityOpt": resources.security_options(table.security_opt),
        "GroupAdd": list(table.group_add),
        "IpcMode": table.ipcmode,
        "Sysctls": dict(table.sysctls),
        "ExtraHosts": [*table.extra_hosts, *around.hosts],
        "Links": list(table.links),
        "VolumeDriver": table.volume_driver,
        "VolumesFrom": list(table.volumes_from),
        "Tmpfs": dict(table.tmpfs),
    }


def _common_host(table: DockerConfig, around: Surroundings) -> dict[str, Any]:
    """What every container of a job gets."""
    return {
        "Binds": list(around.binds),
        "NetworkMode": around.network.mode or "default",
        "Dns": resources.name_servers(table.dns),
        "DnsSearch": list(table.dns_search),
        "Runtime": table.runtime,
        "Isolation": resources.isolation(table.isolation),
        "ShmSize": table.shm_size,
        "UsernsMode": table.userns_mode,
        "RestartPolicy": {"Name": "no"},
    }


def _limits(*, memory: str, swap: str, reservation: str, cpus: str) -> dict[str, Any]:
    return {
        "Memory": size_bytes(memory),
        "MemorySwap": size_bytes(swap),
        "MemoryReservation": size_bytes(reservation),
        "NanoCpus": resources.nano_cpus(cpus),
    }


def _helper_memory(table: DockerConfig) -> dict[str, Any]:
    """A limit that is meant for scripts must not kill git: the runner's work has a least of its own."""
    memory, swap = size_bytes(table.memory), size_bytes(table.memory_swap)
    if not 0 < memory < HELPER_MEMORY_BYTES:
        return {}
    more = HELPER_MEMORY_BYTES - memory
    return {"Memory": HELPER_MEMORY_BYTES, "MemorySwap": swap + more if swap > 0 else swap}


def _hardened(table: DockerConfig) -> dict[str, Any]:
    return {
        "Privileged": False,
        "CapAdd": list(HELPER_CAPABILITIES),
        "CapDrop": ["ALL"],
        "SecurityOpt": [*(option for option in table.security_opt if option.startswith("label")), "no-new-privileges"],
        "ReadonlyRootfs": True,
        "Tmpfs": {**table.tmpfs, **HELPER_TMPFS},
        "PidsLimit": HELPER_PIDS,
        "Devices": [],
        "DeviceRequests": [],
        "DeviceCgroupRules": [],
        "IpcMode": "",
    }


def _log(table: DockerConfig, options: Mapping[str, str]) -> dict[str, Any]:
    return {"Type": "json-file", "Config": {**options, **resources.log_options(table.log_options)}}


def _set(host: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that say something: what is empty is left to the engine."""
    always = ("OomKillDisable",)
    return {key: value for key, value in host.items() if key in always or value not in (None, "", 0, False, [], {})}


async def create(engine: Engine, container: Container) -> str:
    """Make a container in the place of one of the same name, if any; its id.

    Raises :class:`InvalidSpec` for what the engine calls a bad request, else the engine's error.
    """
    try:
        return await _create(engine, container)
    except EngineError as error:
        # Podman knows no conflicts.
        if error.status != 409 and "name is already in use" not in error.explanation:
            raise _refused(error) from error
    await remove(engine, container.name)
    try:
        return await _create(engine, container)
    except EngineError as error:
        raise _refused(error) from error


async def _create(engine: Engine, container: Container) -> str:
    async with engine.creating():
        answer = await engine.call(
            lambda client: client.create_container_from_config(  # type: ignore[no-untyped-call]
                dict(container.body), name=container.name, platform=container.platform or None
            )
        )
    return str(answer["Id"])


def _refused(error: EngineError) -> ExecutorError:
    return InvalidSpec(str(error)) if error.status == 400 else error


async def remove(engine: Engine, container: str, *, keeps_volumes: bool = False) -> None:
    """Remove a container, running or not, with its anonymous volumes unless they stay; one that is gone is fine."""
    try:
        await engine.call(lambda client: client.remove_container(container, v=not keeps_volumes, force=True))
    except NotFound:
        pass
    except EngineError as error:
        if error.status == 409 and "already in progress" in error.explanation:
            await _until_removed(engine, container)
        elif CHANGING in error.explanation:
            await asyncio.sleep(REMOVAL_POLL_S)
            await engine.call(lambda client: client.remove_container(container, v=not keeps_volumes, force=True))
        else:
            raise


async def _until_removed(engine: Engine, container: str) -> None:
    """Wait for the end of a removal that somebody else has begun. Raises :class:`ExecutorError` when there is none."""
    for _ in range(REMOVAL_POLLS):
        try:
            await engine.call(lambda client: client.inspect_container(container))
        except NotFound:
            return
        await asyncio.sleep(REMOVAL_POLL_S)
    raise ExecutorError(f"container {container} is being removed, and still there")
