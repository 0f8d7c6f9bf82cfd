"""``[runners.docker]``: every key (``docker-executor.md`` 1). What depends on a job is looked at when there is one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

import msgspec

from executors.docker import resources
from executors.docker.volumes import parse_entry
from executors.errors import ExecutorError
from executors.tables import Option, Problem, Table

PULL_POLICIES = ("always", "if-not-present", "never")
DEFAULT_SERVICES_TIMEOUT_S = 30
CACHE_VOLUME = "/cache"
_SIZE = re.compile(r"(?P<number>[0-9.]+) ?(?P<unit>[kmgtp]?)(?P<rest>(?:i?b)?)", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

Strings = tuple[str, ...]


class ServiceConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[[runners.docker.services]]``: a service of every job. ``name`` and ``alias`` are expanded with a job's
    variables, ``environment`` is a list of ``KEY=VALUE``."""

    name: Annotated[str, Option(help="Image of the service", flag="-")] = ""
    alias: Annotated[str, Option(help="More names, divided by spaces or commas", flag="-")] = ""
    command: Annotated[Strings, Option(help="Its command", flag="-")] = ()
    entrypoint: Annotated[Strings, Option(help="Its entrypoint", flag="-")] = ()
    environment: Annotated[Strings, Option(help="Its variables, KEY=VALUE", flag="-")] = ()
    suspend_data_path: Annotated[str, Option(help="Only with Kubernetes", flag="-")] = ""


class DockerConfig(Table, frozen=True, kw_only=True):
    """The table. ``image``, ``helper_image``, ``helper_image_flavor`` and ``container_labels`` are expanded with a job's
    variables; sizes are texts for :func:`size_bytes`; an empty text or list is a key that is not set."""

    # Connection
    host: Annotated[str, Option(help="Address of the engine")] = ""
    tls_cert_path: Annotated[str, Option(help="Folder of ca.pem, cert.pem, key.pem", flag="cert-path")] = ""
    tls_verify: Annotated[bool, Option(help="TLS, verified in both directions", flag="tlsverify", env="DOCKER_TLS_VERIFY")] = (
        False
    )
    # Image and process
    hostname: Annotated[str, Option(help="Host name in containers")] = ""
    image: Annotated[
        str, Option(help="Image of jobs that name none", ask="Enter the default Docker image (for example, ruby:3.3):")
    ] = ""
    runtime: Annotated[str, Option(help="Runtime of the engine")] = ""
    helper_image: Annotated[str, Option(help="Image for sources, caches and artifacts")] = ""
    helper_image_flavor: Annotated[str, Option(help="Which of the stock helper images")] = ""
    user: Annotated[str, Option(help="User in the build container")] = ""
    allowed_users: Annotated[Strings, Option(help="Users that jobs may ask for", flag="allowed_users")] = ()
    disable_entrypoint_overwrite: Annotated[bool, Option(help="Jobs cannot change an entrypoint")] = False
    container_labels: Annotated[dict[str, str], Option(help="Labels of containers", env="-")] = msgspec.field(
        default_factory=dict
    )
    log_options: Annotated[dict[str, str], Option(help="Options env and labels of the log driver")] = msgspec.field(
        default_factory=dict
    )
    isolation: Annotated[str, Option(help="Only with Windows")] = ""
    # Resources
    memory: Annotated[str, Option(help="Memory limit, such as 512m")] = ""
    memory_swap: Annotated[str, Option(help="Limit of memory and swap together")] = ""
    memory_reservation: Annotated[str, Option(help="Soft memory limit")] = ""
    cpus: Annotated[str, Option(help="Number of CPUs, such as 0.5")] = ""
    cpuset_cpus: Annotated[str, Option(help="CPUs that may be used, such as 0-2")] = ""
    cpuset_mems: Annotated[str, Option(help="Memory nodes that may be used")] = ""
    cpu_shares: Annotated[int, Option(help="Relative share of CPU time")] = 0
    cgroup_parent: Annotated[str, Option(help="Parent of control groups")] = ""
    oom_kill_disable: Annotated[bool, Option(help="Processes are not killed when memory runs out")] = False
    oom_score_adjust: Annotated[int, Option(help="Score when memory runs out")] = 0
    shm_size: Annotated[int, Option(help="Size of /dev/shm, bytes")] = 0
    ulimit: Annotated[dict[str, str], Option(help="Limits, NAME:soft[:hard]")] = msgspec.field(default_factory=dict)
    gpus: Annotated[str, Option(help="GPUs, as docker run takes them")] = ""
    devices: Annotated[Strings, Option(help="Devices, host[:container[:permissions]]")] = ()
    device_cgroup_rules: Annotated[Strings, Option(help="Rules of devices")] = ()
    service_memory: Annotated[str, Option(help="Memory limit of a service")] = ""
    service_memory_swap: Annotated[str, Option(help="Limit of memory and swap of a service")] = ""
    service_memory_reservation: Annotated[str, Option(help="Soft memory limit of a service")] = ""
    service_cpus: Annotated[str, Option(help="Number of CPUs of a service")] = ""
    service_cpuset_cpus: Annotated[str, Option(help="CPUs that a service may use")] = ""
    service_cpu_shares: Annotated[int, Option(help="Relative share of CPU time of a service")] = 0
    service_cgroup_parent: Annotated[str, Option(help="Parent of control groups of services")] = ""
    service_slot_cgroup_template: Annotated[str, Option(help="Only with autoscaling")] = ""
    service_gpus: Annotated[str, Option(help="GPUs of services", flag="service_gpus")] = ""
    services_devices: Annotated[
        dict[str, Strings], Option(help="Devices of services, by patterns of images", flag="services_devices")
    ] = msgspec.field(default_factory=dict)
    # Security
    privileged: Annotated[bool, Option(help="Privileged containers")] = False
    services_privileged: Annotated[bool | None, Option(help="Privileged services", flag="services_privileged")] = None
    allowed_privileged_images: Annotated[Strings, Option(help="Patterns of images that may be privileged")] = ()
    allowed_privileged_services: Annotated[Strings, Option(help="Patterns of services that may be privileged")] = ()
    cap_add: Annotated[Strings, Option(help="Capabilities to add")] = ()
    cap_drop: Annotated[Strings, Option(help="Capabilities to drop")] = ()
    security_opt: Annotated[Strings, Option(help="Security options")] = ()
    services_security_opt: Annotated[Strings, Option(help="Security options of services")] = ()
    userns_mode: Annotated[str, Option(help="User namespace", flag="userns", env="DOCKER_USERNS_MODE")] = ""
    group_add: Annotated[Strings, Option(help="Groups to add")] = ()
    pid_mode: Annotated[str, Option(help="PID namespace of the build container")] = ""
    ipcmode: Annotated[str, Option(help="IPC namespace", env="DOCKER_IPC_MODE")] = ""
    sysctls: Annotated[dict[str, str], Option(help="Kernel parameters, NAME:value")] = msgspec.field(default_factory=dict)
    # Network
    network_mode: Annotated[str, Option(help="Network of containers")] = ""
    dns: Annotated[Strings, Option(help="Name servers")] = ()
    dns_search: Annotated[Strings, Option(help="Search domains")] = ()
    extra_hosts: Annotated[Strings, Option(help="Names of hosts, name:address")] = ()
    links: Annotated[Strings, Option(help="Links to containers")] = ()
    mac_address: Annotated[str, Option(help="MAC address")] = ""
    enable_ipv6: Annotated[bool, Option(help="IPv6 in networks of jobs", env="-")] = False
    network_mtu: Annotated[int, Option(help="MTU of networks of jobs", env="-")] = 0
    # Volumes
    volumes: Annotated[Strings, Option(help="Volumes and binds")] = ()
    disable_cache: Annotated[bool, Option(help="Volumes are removed with the job")] = False
    cache_dir: Annotated[str, Option(help="Host directory for volumes")] = ""
    volume_keep: Annotated[bool, Option(help="Anonymous volumes are kept")] = False
    volume_driver: Annotated[str, Option(help="Driver of volumes")] = ""
    volume_driver_ops: Annotated[dict[str, str], Option(help="Options of that driver, NAME:value")] = msgspec.field(
        default_factory=dict
    )
    volumes_from: Annotated[Strings, Option(help="Containers whose volumes are used")] = ()
    tmpfs: Annotated[dict[str, str], Option(help="Memory file systems, PATH:options")] = msgspec.field(default_factory=dict)
    services_tmpfs: Annotated[dict[str, str], Option(help="Memory file systems of services")] = msgspec.field(
        default_factory=dict
    )
    # Policy and services
    pull_policy: Annotated[Strings, Option(help="always, if-not-present, never, or several", split=True)] = ()
    allowed_pull_policies: Annotated[Strings, Option(help="Pull policies that jobs may ask for")] = ()
    allowed_images: Annotated[Strings, Option(help="Patterns of images that jobs may use")] = ()
    allowed_services: Annotated[Strings, Option(help="Patterns of services that jobs may use")] = ()
    services_limit: Annotated[int, Option(help="Most services of a job")] = -1
    wait_for_services_timeout: Annotated[int, Option(help="Seconds; negative: do not wait")] = 0
    services: Annotated[tuple[ServiceConfig, ...], Option(help="Services of every job", flag="-")] = ()

    def problems(self) -> Iterable[Problem]:
        """Sizes that are none take the runner out of use; the rest is said, and fails the jobs that it concerns."""
        yield from self._bad_sizes()
        yield from self._bad_policies()
        yield from self._bad_values()
        yield from self._idle_keys()
        yield from self._open_doors()
        for name in ("allowed_images", "allowed_services", "allowed_privileged_images", "allowed_privileged_services"):
            for pattern in getattr(self, name):
                if pattern.startswith("!"):
                    yield Problem(place=(name,), text=f'"{pattern}" excludes nothing: patterns cannot be negated')
        for index, service in enumerate(self.services):
            if not service.name:
                yield Problem(place=("services", index), text="a service without a name cannot be started")

    def _bad_sizes(self) -> Iterator[Problem]:
        for name in ("memory", "memory_swap", "memory_reservation"):
            for key in (name, f"service_{name}"):
                try:
                    size_bytes(getattr(self, key))
                except ValueError as error:
                    yield Problem(place=(key,), text=f'"{key}" cannot be used: {error}', fatal=True)

    def _bad_policies(self) -> Iterator[Problem]:
        known = ", ".join(PULL_POLICIES)
        for name in ("pull_policy", "allowed_pull_policies"):
            for policy in getattr(self, name):
                if policy not in PULL_POLICIES:
                    yield Problem(place=(name,), text=f'"{policy}" is no pull policy (there are {known})')
        if self.allowed_pull_policies and not set(self.pull_policy or PULL_POLICIES[:1]) & set(self.allowed_pull_policies):
            text = 'no image can be had: "pull_policy" is not among "allowed_pull_policies"'
            yield Problem(place=("allowed_pull_policies",), text=text)

    def _bad_values(self) -> Iterator[Problem]:
        """Values that jobs will fail with."""
        checks: list[tuple[str, Callable[[Any], object]]] = [
            ("cpus", resources.nano_cpus),
            ("service_cpus", resources.nano_cpus),
            ("devices", resources.devices),
            ("gpus", resources.gpu_requests),
            ("service_gpus", resources.gpu_requests),
            ("ulimit", resources.ulimits),
            ("dns", resources.name_servers),
            ("mac_address", resources.mac_address),
            ("isolation", resources.isolation),
            ("log_options", resources.log_options),
            ("security_opt", resources.security_options),
            ("services_security_opt", resources.security_options),
            ("volumes", lambda entries: [parse_entry(entry) for entry in entries]),
            ("services_devices", lambda entries: [resources.devices(one) for one in entries.values()]),
        ]
        for key, check in checks:
            try:
                check(getattr(self, key))
            except ExecutorError as error:
                yield Problem(place=(key,), text=f'"{key}" will fail jobs: {error}')

    def _idle_keys(self) -> Iterator[Problem]:
        """Keys that are set and do nothing here."""
        idle = {
            "service_slot_cgroup_template": "only executors that scale machines have slots",
            "helper_image_flavor": "the helper image is the configured one, or made of this host's programs",
        }
        for key, why in idle.items():
            if getattr(self, key):
                yield Problem(place=(key,), text=f'"{key}" has no effect: {why}')
        for index, service in enumerate(self.services):
            if service.suspend_data_path:
                text = '"suspend_data_path" has no effect: it is for Kubernetes'
                yield Problem(place=("services", index, "suspend_data_path"), text=text)

    def _open_doors(self) -> Iterator[Problem]:
        """What gives the engine's host to every image that a job may name (13.3)."""
        if not self.allowed_images:
            sockets = [entry for entry in self.volumes if re.search(r"(docker|podman|containerd)\.sock", entry)]
            doors = [
                ("volumes", bool(sockets)),
                ("pid_mode", self.pid_mode == "host"),
                ("userns_mode", self.userns_mode == "host"),
            ]
            for key, is_open in doors:
                if is_open:
                    yield Problem(place=(key,), text=f'"{key}" gives the host to every image: set "allowed_images"')
        if self.privileged and not (self.allowed_images or self.allowed_privileged_images):
            text = '"privileged" gives the host to every image: set "allowed_privileged_images" or "allowed_images"'
            yield Problem(place=("privileged",), text=text)
        of_services = self.privileged if self.services_privileged is None else self.services_privileged
        if of_services and not (self.allowed_services or self.allowed_privileged_services):
            key = "privileged" if self.services_privileged is None else "services_privileged"
            text = f'"{key}" gives the host to every service: set "allowed_privileged_services" or "allowed_services"'
            yield Problem(place=(key,), text=text)

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same with a volume for ``/cache``, unless there is one or volumes are not kept."""
        volumes = list(values.get("volumes") or ())
        has_cache = any(volume == CACHE_VOLUME or volume.endswith(f":{CACHE_VOLUME}") for volume in volumes)
        if has_cache or values.get("disable_cache"):
            return dict(values)
        return {**values, "volumes": [*volumes, CACHE_VOLUME]}


def size_bytes(text: str) -> int:
    """``512m``, ``1.5 GiB``, ``1024``; 0 for an empty text, -1 for ``-1`` (no limit). Raises :class:`ValueError`."""
    if text in ("", "-1"):
        return int(text or 0)
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"invalid size: {text!r} is not a number with a unit (b, k, m, g, t)")
    try:
        number = float(match["number"])
    except ValueError:
        raise ValueError(f"invalid size: {text!r} does not begin with a number") from None
    return int(number * 1024 ** _POWERS[match["unit"].lower()])
