"""What a job gets on an engine: network, volumes, services, images, and the containers to be made of them."""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import ContainerSpec, JobSpec, Mount
from executors.docker import resources
from executors.docker.auth import Login, RegistryLogins
from executors.docker.config import DockerConfig
from executors.docker.containers import (
    Container,
    Process,
    Surroundings,
    build_container,
    build_user,
    create,
    helper_container,
    shell_command,
)
from executors.docker.helper_image import HelperImages
from executors.docker.images import Image, JobImages
from executors.docker.lines import KeptLines, Level, Lines
from executors.docker.names import LABELS, Names, network_name, unique_name
from executors.docker.network import Network, create_network, plan_network
from executors.docker.ownership import NO_UMASK
from executors.docker.policy import build_image, check_allowed
from executors.docker.service_group import ServiceGroup
from executors.docker.services import check_allowed_services, plan_services
from executors.docker.shared import shared_binds
from executors.docker.sweep import RECORD_LABEL, STATE_LABEL
from executors.docker.uses import JobUses
from executors.docker.volumes import KEEPS_ANONYMOUS, Volumes, create_volumes, parse_entry, plan_volumes
from executors.docker.waiting_shell import READ_AT_START
from executors.docker.ways import clear_ways, levels
from executors.errors import ExecutorError, InvalidSpec, PrepareError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.executor import DockerExecutor
    from executors.docker.journal import Journal


@dataclass(slots=True, kw_only=True)
class JobPlace:
    """The place of one job, by one attempt to prepare it. ``labels`` are on everything that is made."""

    engine: Engine
    spec: JobSpec
    need: ContainerSpec
    table: DockerConfig
    images: JobImages
    helper_images: HelperImages
    uses: JobUses
    names: Names
    labels: dict[str, str]
    lines: KeptLines
    image_name: str = ""
    image: str = ""
    image_user: str = ""
    image_id: str = ""
    image_entrypoint: tuple[str, ...] = ()
    image_directory: str = ""
    image_environment: tuple[str, ...] = ()
    helper_image: str = ""
    hardened: bool = True
    volumes: Volumes = field(default_factory=lambda: Volumes(mounts=(), protected=False))
    network: Network = field(default_factory=Network)
    around: Surroundings | None = None
    copies_early: bool = False
    services: ServiceGroup | None = None

    @classmethod
    def of(cls, executor: DockerExecutor, spec: JobSpec, attempt: str, lines: KeptLines, journal: Journal) -> JobPlace:
        """The place of a job; ``attempt`` are the hexadecimal digits of its names, ``journal`` is where its uses are noted."""
        need = spec.containers
        assert need is not None
        table = DockerConfig.from_values(spec.table or {})
        engine, pulls, helper_images = executor.engine(table)
        slot = need.slot
        uses = executor.uses(engine, journal, table)
        logins = tuple(Login(username=one.username, password=one.password, server=one.registry) for one in need.logins)
        return cls(
            engine=engine,
            spec=spec,
            need=need,
            table=table,
            images=JobImages(
                engine,
                pulls,
                table,
                logins=RegistryLogins(variable=need.auth_config, is_runners_own=need.own_auth_config, payload=logins),
                home=Path(executor.environ.get("HOME") or "/root"),
                uses=uses,
            ),
            uses=uses,
            helper_images=helper_images,
            names=Names(
                unique=unique_name(slot.short_token, slot.project_id, slot.number),
                attempt=attempt,
                store=slot.store,
                network=network_name(slot.short_token, slot.project_id, slot.number, spec.job_id),
            ),
            labels={
                **{f"{LABELS}{key}": value for key, value in spec.labels.items()},
                STATE_LABEL: executor.state_id,
                RECORD_LABEL: spec.record_dir.name,
            },
            lines=lines,
        )

    # Preparation

    async def plan(self) -> None:
        """Work out what follows from configuration and job, and look whether the engine is there.

        Raises :class:`ExecutorError`.
        """
        if self.spec.table is None:
            raise InvalidSpec("missing docker configuration")
        try:
            api_version, _ = await asyncio.gather(self.engine.api_version(), self.engine.call(lambda client: client.ping()))
        except PrepareError as error:
            raise PrepareError(f"getting docker info: {error}") from error
        self.copies_early = not await self.engine.is_podman()
        table, need = self.table, self.need
        resources.log_options(table.log_options)
        for entry in table.volumes:
            parse_entry(entry)
        self.image_name = self._choose_image()
        resources.devices(table.devices)
        self.network = plan_network(table, self.names.network, per_build="FF_NETWORK_PER_BUILD" in need.flags)
        self.volumes = plan_volumes(
            table,
            self.names,
            expand=need.expand,
            builds_dir=need.builds_dir,
            keeps_builds=need.keeps_builds,
            protected=need.protected,
        )
        self.around = Surroundings(
            names=self.names,
            labels=self.labels,
            own_labels={need.expand(key): need.expand(value) for key, value in table.container_labels.items()},
            binds=self.volumes.binds,
            network=self.network,
            api_version=api_version,
            with_init="FF_USE_INIT_WITH_DOCKER_EXECUTOR" in need.flags,
        )
        check_allowed_services(table, self.spec.services, need.expand, self.lines)
        self.services = ServiceGroup(
            engine=self.engine,
            table=table,
            around=self.around,
            services=plan_services(table, self.spec.services, need.expand),
            environment=need.service_variables,
        )

    def _named_image(self, lines: Lines) -> str:
        asked = self.spec.image.name if self.spec.image is not None else ""
        return build_image(asked, self.need.expand(self.table.image), lines)

    def _choose_image(self) -> str:
        notes = KeptLines()
        name = self._named_image(notes)
        always = [self.need.expand(self.table.image)]
        check_allowed(name, self.table.allowed_images, always=always, what="images", lines=self.lines)
        notes.pour(self.lines)
        self.lines.add(Level.PLAIN, f"Using Docker executor with image {name} ...")
        return name

    async def make(self, helper: Callable[[], Awaitable[str]]) -> None:
        """Make network, volumes and services, and get the images; ``helper`` starts the helper and gives its id.

        Raises :class:`ExecutorError`.
        """
        if self.table.volume_keep:
            self.lines.add(Level.WARNING, KEEPS_ANONYMOUS)
        await self.uses.take_volumes((*self.volumes.kept, *self.volumes.kept_directories))
        # What is mounted must be there first: the engine would make it, too, without a label.
        await asyncio.gather(
            create_network(self.engine, self.network, self.table, self.labels),
            create_volumes(self.engine, self.volumes, self.table, self.labels),
        )
        for level in levels(self.volumes.mounts):
            await self.need_helper()
            await clear_ways(self.engine, level, image=self.helper_image, names=self.names, labels=self.labels)
        helper_lines, service_lines, image_lines = KeptLines(), KeptLines(), KeptLines()
        async with _first_error(self.lines, helper_lines, service_lines, image_lines):
            async with asyncio.TaskGroup() as group:
                started = asyncio.Event()
                group.create_task(self._find_helper(helper_lines), name="helper image")
                build = group.create_task(self._find_image_behind(started, image_lines), name="image")
                group.create_task(self._run_services(helper, service_lines, started), name="services")
            image = build.result()
            self.image, self.image_user, self.image_id = image.reference, image.user, image.id
            self.image_entrypoint = image.entrypoint
            self.image_directory, self.image_environment = image.directory, image.environment
        if "FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR" in self.need.flags:
            self.lines.add(Level.PLAIN, NO_UMASK)

    async def _run_services(self, helper: Callable[[], Awaitable[str]], lines: Lines, started: asyncio.Event) -> None:
        assert self.services is not None
        assert self.around is not None
        await self.services.start(self._service_image, lines)
        started.set()
        self.around = replace(self.around, hosts=self.services.hosts)
        await self.services.wait(helper, lines)

    async def _find_image_behind(self, services_started: asyncio.Event, lines: Lines) -> Image:
        """The image; behind services of the same, since the first who asks for an image is told how it was found."""
        assert self.services is not None
        if self.image_name in {service.image.name for service in self.services.services}:
            await services_started.wait()
        return await self._find_image(lines)

    async def _find_image(self, lines: Lines) -> Image:
        self._named_image(lines)
        asked = self.spec.image
        policies = asked.pull_policies if asked is not None else ()
        platform = asked.executor_opts.get("platform", "") if asked is not None else ""
        return await self.images.get(self.image_name, policies=policies, platform=platform, lines=lines)

    async def find_image_again(self, lines: Lines) -> None:
        """The lines of the image where its container is made."""
        await self._find_image(lines)

    async def _service_image(self, name: str, policies: Sequence[str], platform: str, lines: Lines) -> str:
        return (await self.images.get(name, policies=policies, platform=platform, lines=lines)).reference

    async def _find_helper(self, lines: Lines) -> None:
        if not self.need.uses_tools:
            return
        await self._get_helper(lines)

    async def need_helper(self) -> None:
        """The image of the helper, where it was not clear before that there would be one."""
        if not self.helper_image:
            await self._get_helper(KeptLines())

    async def _get_helper(self, lines: Lines) -> None:
        configured = self.need.expand(self.table.helper_image)
        self.hardened = not configured
        while True:
            image = await self.helper_images.get(configured, self.images, lines)
            if await self.uses.take_image(image.id):
                self.helper_image = image.reference
                return

    def adopt(self, found: dict[str, Any]) -> None:
        """Take over what an earlier daemon found out."""
        assert self.around is not None
        self.image, self.image_user, self.image_id = found["image"], found["image_user"], found["image_id"]
        self.image_entrypoint = tuple(found["image_entrypoint"])
        self.helper_image, self.hardened = found["helper_image"], found["hardened"]
        self.around = replace(self.around, hosts=tuple(found["hosts"]))

    def as_json(self) -> dict[str, Any]:
        """What :meth:`adopt` takes."""
        assert self.around is not None
        return {
            "image": self.image,
            "image_user": self.image_user,
            "image_id": self.image_id,
            "image_entrypoint": list(self.image_entrypoint),
            "helper_image": self.helper_image,
            "hardened": self.hardened,
            "hosts": list(self.around.hosts),
        }

    # Containers

    def build(self) -> Container:
        """The container of the job's scripts. Raises :class:`ExecutorError`."""
        asked = self.spec.image
        options = asked.executor_opts if asked is not None else {}
        process = Process(
            image=self.image,
            environment=self.need.variables,
            command=shell_command(),
            entrypoint=asked.entrypoint if asked is not None else (),
            user=build_user(self.table, options.get("user", "")),
            platform=options.get("platform", ""),
        )
        around = self._with_mounts(self.spec.mounts)
        if self.copies_early:
            # An empty volume gets what the image has in its place, and that place's owner and mode, when the container is
            # made: before the sources are there.
            own = dict(zip(self.volumes.binds, self.volumes.binds_without_copy(self.need.builds_dir), strict=True))
            around = replace(around, binds=tuple(own.get(bind, bind) for bind in around.binds))
        return build_container(self.table, around, process, asked_image=asked.name if asked is not None else "")

    @property
    def has_bare_shell(self) -> bool:
        """Whether nothing but a shell runs in the container of the scripts when it starts."""
        asked = self.spec.image
        return not self.image_entrypoint and (asked is None or not asked.entrypoint)

    @property
    def can_start_early(self) -> bool:
        """Whether a shell may start in the container of the scripts before the sources are there; for whoever has made the
        place. One that begins in a directory of theirs would have it made by the engine, for root alone, or lose it."""
        variables = {entry.partition("=")[0] for entry in (*self.image_environment, *self.need.variables)}
        directory = f"{posixpath.normpath(self.image_directory or '/')}/"
        is_apart = not any(directory.startswith(f"{mount.destination}/") for mount in self.volumes.mounts)
        return self.has_bare_shell and is_apart and not variables & READ_AT_START

    def _with_mounts(self, mounts: Sequence[Mount]) -> Surroundings:
        assert self.around is not None
        taken = [mount.destination for mount in self.volumes.mounts]
        binds = shared_binds(mounts, self.image_id, taken=taken)
        return replace(self.around, binds=(*self.around.binds, *binds))

    def helper(self) -> Container:
        """The container of the runner's own work. Raises :class:`ExecutorError`."""
        process = Process(image=self.helper_image, command=("sh",))
        around = self._with_mounts([mount for mount in self.spec.mounts if mount.for_tools])
        return helper_container(self.table, around, process, hardened=self.hardened)

    async def create(self, container: Container, *, warn: bool) -> str:
        """Make a container; ``warn`` says what is odd about it."""
        if warn:
            for warning in container.warnings:
                self.lines.add(Level.WARNING, warning)
        return await create(self.engine, container)


@contextlib.asynccontextmanager
async def _first_error(lines: Lines, *kept: KeptLines) -> Any:
    """Pours the lines of work done side by side in their order; of several errors the first counts."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise _leaf(group) from group
    finally:
        for one in kept:
            one.pour(lines)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def explained(error: ExecutorError) -> ExecutorError:
    """What goes wrong when the helper is made, as the log of the job knows it."""
    advice = "https://docs.gitlab.com/runner/shells/#shell-profile-loading"
    text = f"prepare environment: {error}. Check {advice} for more information"
    return InvalidSpec(text) if isinstance(error, InvalidSpec) else ExecutorError(text)
