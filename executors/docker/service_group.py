"""The services of a job while they run: started side by side, waited for, followed (``docker-executor.md`` 6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from executors.docker.config import DEFAULT_SERVICES_TIMEOUT_S
from executors.docker.containers import Process, Surroundings, create, service_container
from executors.docker.errors import NotFound
from executors.docker.lines import KeptLines, Level, Lines
from executors.docker.logs import Mark, time_ns_of
from executors.docker.readiness import ProbeLog, Prober, Target, addresses, service_ports
from executors.docker.services import Service
from executors.docker.streams import Demultiplexer
from executors.errors import PrepareError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.config import DockerConfig

log = structlog.get_logger()

LOG_BYTES = 64 * 1024
LINE_BYTES = 256 * 1024
ALIVE_PAUSE_S = 0.5
# How long the first words of a service are waited for that did not come up: it may only just have begun, and the engine keeps
# them a moment later than they are said.
FIRST_WORDS_S = 1.0
FIRST_WORDS_PAUSE_S = 0.05
SHORT_ID = 12
GREY, YELLOW, RESET = "\x1b[0;37m", "\x1b[0;33m", "\x1b[0;m"

# An image's name, the pull policies that were asked for, a platform: gives what a container is created from.
FindImage = Callable[[str, Sequence[str], str, Lines], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service whose container was started. ``ports`` are those that tell whether it is up."""

    service: Service
    name: str
    container: str
    addresses: tuple[str, ...]
    ports: tuple[int, ...]
    host_pid: int

    @property
    def hosts(self) -> list[str]:
        """Its names for ``/etc/hosts``, each as ``name:address``."""
        names = (self.container[:SHORT_ID], *self.service.own_aliases)
        return [f"{name}:{address}" for name in names for address in self.addresses]


@dataclass(slots=True, kw_only=True)
class ServiceGroup:
    """The services of one job. ``environment`` is what every service sees of the job, as ``KEY=VALUE``.

    After a restart of the daemon :meth:`find` gives the group its containers back.
    """

    engine: Engine
    table: DockerConfig
    around: Surroundings
    services: Sequence[Service]
    environment: Sequence[str] = ()
    running: list[Running] = field(default_factory=list)

    # Starting

    async def start(self, find_image: FindImage, lines: Lines) -> None:
        """Start all of them at once; ``lines`` get theirs in the order of the services, up to the first that failed.

        Raises :class:`ExecutorError`; containers that were made then are removed by their labels.
        """
        kept = [KeptLines() for _ in self.services]
        work = (self._start(service, find_image, own) for service, own in zip(self.services, kept, strict=True))
        outcomes = await asyncio.gather(*work, return_exceptions=True)
        for service, outcome, own in zip(self.services, outcomes, kept, strict=True):
            own.pour(lines)
            if isinstance(outcome, BaseException):
                raise outcome
            for warning in service.late_warnings:
                lines.add(Level.WARNING, warning)
        self.running = [outcome for outcome in outcomes if isinstance(outcome, Running)]

    async def _start(self, service: Service, find_image: FindImage, lines: Lines) -> Running | None:
        for warning in service.warnings:
            lines.add(Level.WARNING, warning)
        if not service.own_aliases:
            return None
        lines.add(Level.PLAIN, f"Starting service {service.image.title}...")
        options = service.spec.executor_opts
        platform = options.get("platform", "")
        process = Process(
            image=await find_image(service.image.name, service.spec.pull_policies, platform, lines),
            environment=[*self.environment, *(f"{key}={value}" for key, value in service.spec.environment.items())],
            command=service.spec.command,
            entrypoint=service.spec.entrypoint,
            user=options.get("user", ""),
            platform=platform,
        )
        container = service_container(
            self.table,
            self.around,
            process,
            name=self._name(service),
            image=service.image.name,
            labels=service.labels,
            aliases=service.aliases,
        )
        for warning in container.warnings:
            lines.add(Level.WARNING, warning)
        made = await create(self.engine, container)
        await self.engine.call(lambda client: client.start(made))
        return await self._inspect(service)

    async def _inspect(self, service: Service) -> Running:
        name = self._name(service)
        found: Mapping[str, Any] = await self.engine.call(lambda client: client.inspect_container(name))
        return Running(
            service=service,
            name=name,
            container=str(found["Id"]),
            addresses=addresses(found["NetworkSettings"]),
            ports=service_ports(found["Config"]),
            host_pid=int(found["State"].get("Pid") or 0),
        )

    def _name(self, service: Service) -> str:
        return self.around.names.service(service.image.path, service.index)

    async def find(self) -> None:
        """Take over what an earlier daemon started; services that are gone are left out. Raises :class:`PrepareError`."""
        self.running = []
        for service in self.services:
            try:
                self.running.append(await self._inspect(service))
            except NotFound:
                continue

    @property
    def hosts(self) -> tuple[str, ...]:
        """What the containers of the job get for ``/etc/hosts``."""
        return tuple(host for running in self.running for host in running.hosts)

    # Waiting

    async def wait(self, helper: Callable[[], Awaitable[str]] | None, lines: Lines) -> None:
        """Give the services time to come up, and tell of each that did not; that never fails the job (6.4).

        ``helper`` starts the helper container, if need be, and gives its id.
        """
        timeout_s = self.table.wait_for_services_timeout or DEFAULT_SERVICES_TIMEOUT_S
        if timeout_s < 0 or not self.running:
            return
        lines.add(Level.PLAIN, f"Waiting for services to be up and running (timeout {timeout_s} seconds)...")
        prober = Prober(self.engine, helper)
        for report in await asyncio.gather(*(self._check(running, prober, timeout_s) for running in self.running)):
            if report:
                lines.add(Level.OUTPUT, report)

    async def _check(self, running: Running, prober: Prober, timeout_s: float) -> str:
        """Text on a service that did not come up; empty for one that did."""
        if not running.ports:
            return await self._report(running, f'service "{running.name}" has no exposed ports', None)
        probe = ProbeLog()
        target = Target(
            container=running.container,
            name=running.container[:SHORT_ID],
            addresses=running.addresses or self._shared_addresses(),
            ports=running.ports,
            host_pid=running.host_pid,
        )
        try:
            async with asyncio.timeout(timeout_s):
                ended = await _first(prober.wait(target, probe), self._ended(running))
        except TimeoutError:
            ended = f'service "{running.name}-wait-for-service" timeout'
        return await self._report(running, ended, probe) if ended else ""

    def _shared_addresses(self) -> tuple[str, ...]:
        """Where a service without an address of its own is reached, if it shares a network with the helper."""
        is_shared = self.around.network.mode == "host" or self.around.network.mode.startswith("container:")
        return ("127.0.0.1",) if is_shared else ()

    async def _ended(self, running: Running) -> str:
        """Why there is nothing to wait for any more, once its container has stopped."""
        while True:
            await asyncio.sleep(ALIVE_PAUSE_S)
            try:
                found = await self.engine.call(lambda client: client.inspect_container(running.container))
            except PrepareError as error:
                return str(error)
            if not found["State"]["Running"]:
                return f'service "{running.name}" has stopped with exit code {found["State"]["ExitCode"]}'

    async def _report(self, running: Running, error: str, probe: ProbeLog | None) -> str:
        title = f"{YELLOW}*** WARNING:{RESET} Service {running.name} probably didn't start properly."
        checks = "" if probe is None else _block("Health check container logs:", "\n".join(probe.lines)[:LOG_BYTES])
        output = await self._first_words(running)
        return (
            f"\n{title}\n{_block('Health check error:', error)}{checks}{_block('Service container logs:', output)}"
            f"\n{YELLOW}*********{RESET}\n\n"
        )

    async def _first_words(self, running: Running) -> str:
        loop = asyncio.get_running_loop()
        until = loop.time() + FIRST_WORDS_S
        while True:
            output = await self._output(running)
            if output or loop.time() >= until:
                return output
            await asyncio.sleep(FIRST_WORDS_PAUSE_S)

    async def _output(self, running: Running) -> str:
        """The beginning of what a service wrote, both streams."""
        found = bytearray()
        try:
            async for _, data in self._frames(running, follow=False):
                found += data
                if len(found) >= LOG_BYTES:
                    break
        except PrepareError as error:
            return str(error)
        return bytes(found[:LOG_BYTES]).decode(errors="replace").strip()

    # Following

    async def follow(self, write: Callable[[bytes], None], positions: dict[str, Mark], *, to_the_end: bool = True) -> None:
        """Hand on what the services write, each line with the names of its service, until they end, or what there is now
        (``CI_DEBUG_SERVICES``, 6.5).

        ``positions`` tell where to begin in the log of each; they go along with the lines.
        """
        await asyncio.gather(*(self._follow(running, write, positions, to_the_end) for running in self.running))

    async def _follow(
        self, running: Running, write: Callable[[bytes], None], positions: dict[str, Mark], to_the_end: bool
    ) -> None:
        before = f"{GREY}[service:{'-'.join(running.service.own_aliases)}] ".encode()
        behind = f"{RESET}\n".encode()
        mark = positions.get(running.name, Mark()).copy()
        to_skip = mark.skip
        rest: dict[int, bytes] = {}
        try:
            async for stream, data in self._frames(running, follow=to_the_end, since_s=mark.since_s):
                stamp, _, text = data.partition(b" ")
                if to_skip >= len(text) > 0:
                    to_skip -= len(text)
                    continue
                mark.advance(time_ns_of(stamp) // 1_000_000_000, len(text))
                *whole, left = (rest.get(stream, b"") + data).split(b"\n")
                if len(left) > LINE_BYTES:
                    whole, left = [*whole, left], b""
                rest[stream] = left
                for line in whole:
                    write(before + line.rstrip(b"\r") + behind)
                if not any(rest.values()):
                    positions[running.name] = mark.copy()
        except PrepareError as error:
            log.warning("log of a service could not be followed", container=running.name, error=str(error))
        if to_the_end:
            for left in filter(None, rest.values()):
                write(before + left + behind)
            positions[running.name] = mark

    async def _frames(self, running: Running, *, follow: bool, since_s: int = 0) -> AsyncIterator[tuple[int, bytes]]:
        wanted = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0"}
        if since_s:
            wanted["since"] = str(since_s)
        parts = Demultiplexer()
        async with self.engine.stream("GET", f"/containers/{running.container}/logs", params=wanted) as response:
            async for chunk in response.content.iter_any():
                for frame in parts.feed(chunk):
                    yield frame


def _block(title: str, text: str) -> str:
    return f"\n{title}\n{text}\n"


async def _first(ready: Coroutine[Any, Any, None], ended: Coroutine[Any, Any, str]) -> str:
    """The text of ``ended`` if that is first, else nothing."""
    async with asyncio.TaskGroup() as group:
        up = group.create_task(ready, name="probe")
        down = group.create_task(ended, name="service")
        done, pending = await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
    return "" if up in done else down.result()
