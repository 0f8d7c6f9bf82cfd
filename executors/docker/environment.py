"""One job on an engine: two containers, the runner's and its own (``docker-executor.md`` 12)."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog

from executors.base import ExitStatus, JobSpec, Output, OutputSink, Script, Usage
from executors.docker.builder import Builder
from executors.docker.errors import EngineError, EngineUnreachable, NotFound
from executors.docker.helper import Helper, command
from executors.docker.hook_runs import HookRuns
from executors.docker.journal import Journal
from executors.docker.lines import KeptLines
from executors.docker.logs import Mark
from executors.docker.measures import READ, Used, parse, stats_of, sum_up
from executors.docker.ownership import image_owner
from executors.docker.place import JobPlace, explained
from executors.docker.scratch import JobFiles
from executors.docker.service_usage import ServiceUsage
from executors.docker.sweep import remove_all
from executors.errors import ExecutorError, InvalidSpec, WorkspaceError
from executors.workspace import Workspace

if TYPE_CHECKING:
    from executors.docker.executor import DockerExecutor

log = structlog.get_logger()

CLEANUP_S = 300.0
# Lines of services that wait for the log of the job: what comes faster than it is taken is left out.
LINES_MAX = 10_000
# What the engine answers of a container that is not there, or is being removed.
NOT_STARTED = (404, 409)
FLAG = "FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR"


class DockerEnvironment:
    """See :class:`executors.base.Environment`."""

    def __init__(self, executor: DockerExecutor, spec: JobSpec) -> None:
        assert spec.containers is not None
        self._executor = executor
        self._spec = spec
        self._need = spec.containers
        self._journal = Journal(spec.record_dir)
        self._lines = KeptLines()
        self._place: JobPlace | None = None
        self._is_prepared = False
        self._showing: asyncio.Task[None] | None = None
        self._company: list[bytes] = []
        self._positions: dict[str, Mark] = {}
        place = self._make_place("")
        self._engine = place.engine
        self._keeps_volumes = place.table.volume_keep
        umask = "0022" if FLAG in self._need.flags else "0000"
        self._helper = Helper(self._engine, self._make_helper, lambda: self._known.volumes.open_to_all, umask=umask)
        self._builder = Builder(self._engine, self._journal, lambda: self._known, spec, self._before_scripts)
        self._hooks = HookRuns(self._helper)
        self._service_usage = ServiceUsage(self._engine, self._journal)
        self._files = JobFiles(self._engine, self._helper, self._builder, lambda: self._known, self._need)
        self.files: Workspace = self._files

    @property
    def _known(self) -> JobPlace:
        if self._place is None:
            raise WorkspaceError("the place of the job was never made")
        return self._place

    def _make_place(self, attempt: str) -> JobPlace:
        return JobPlace.of(self._executor, self._spec, attempt, self._lines, self._journal)

    # Preparation

    async def prepare(self) -> None:
        """See :class:`executors.base.Environment`."""
        if self._is_prepared:
            return
        found = self._journal.find("prepared")
        if found is not None:
            self._place = self._make_place(found["attempt"])
            await self._place.plan()
            self._place.adopt(found)
            await self._note_earlier_helper()
            self._is_prepared = True
            self._builder.begin()
            await self._watch_services()
            return
        attempt = secrets.token_hex(8)
        self._journal.note("attempt", attempt=attempt)
        self._place = place = self._make_place(attempt)
        try:
            await place.plan()
            await place.make(self._running_helper)
        except BaseException:
            await asyncio.shield(self.cleanup())
            raise
        self._journal.note("prepared", attempt=attempt, **place.as_json())
        self._is_prepared = True
        self._builder.begin()
        if self._need.uses_tools:
            self._files.begin()
        await self._watch_services()

    # Services while scripts run

    async def _watch_services(self) -> None:
        services = self._known.services
        if services is None or not services.services:
            return
        if not services.running:
            await services.find()
        self._service_usage.watch(service.container for service in services.running)
        await self._show_services()

    async def _show_services(self) -> None:
        """Keep what services write from now on, where that is wanted."""
        services = self._known.services
        if not self._need.shows_services or services is None or not services.services:
            return
        if not services.running:
            await services.find()
        self._showing = asyncio.create_task(services.follow(self._keep_line, self._positions), name="services")
        self._showing.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    def _keep_line(self, line: bytes) -> None:
        if len(self._company) < LINES_MAX:
            self._company.append(line)

    def resume_company(self, position: str) -> None:
        """See :class:`executors.base.KeepsCompany`."""
        self._positions = {name: Mark.from_json(found) for name, found in json.loads(position).items()}

    async def catch_up(self) -> None:
        """See :class:`executors.base.KeepsCompany`."""
        services = self._place.services if self._place is not None else None
        if self._showing is None or services is None:
            return
        self._showing.cancel()
        await asyncio.wait([self._showing])
        await services.follow(self._keep_line, self._positions, to_the_end=False)
        await self._show_services()

    def company(self) -> tuple[str, str]:
        """See :class:`executors.base.KeepsCompany`."""
        text = b"".join(self._company).decode(errors="surrogateescape")
        self._company.clear()
        return text, json.dumps({name: mark.as_json() for name, mark in self._positions.items()})

    def _stop_showing(self) -> None:
        self._service_usage.close()
        if self._showing is not None:
            self._showing.cancel()

    async def _make_helper(self) -> str:
        place = self._known
        if place.around is None:
            raise WorkspaceError("the place of the job was never made")
        await place.need_helper()
        return await place.create(place.helper(), warn=True)

    async def _running_helper(self) -> str:
        await self._helper.start()
        return self._helper.container

    def remarks(self) -> Sequence[tuple[str, str]]:
        """See :class:`executors.base.Environment`."""
        found = [(str(level), text) for level, text in self._lines.kept]
        self._lines.kept.clear()
        return found

    async def hostname(self) -> str:
        """See :class:`executors.base.Environment`. What the engine refuses of the containers shows here."""
        try:
            self._known.helper()
            if not self._files.is_direct:
                await self._helper.start()
            else:
                await self._create_early()
        except ExecutorError as error:
            raise explained(error) from error
        place = self._known
        return f"{place.table.hostname or place.names.unique} via {socket.gethostname()}"

    async def _create_early(self) -> None:
        """Make the build container where no helper would show what the engine calls a bad request; other errors show
        when it is needed."""
        try:
            await self._builder.created()
        except InvalidSpec:
            raise
        except ExecutorError as error:
            log.debug("build container could not be made yet", error=str(error))

    async def login_environment(self) -> Mapping[str, str]:
        """Nothing: what the helper's programs get is what its image sets."""
        return {}

    # Scripts

    async def start(self, run: str, script: Script) -> None:
        """See :class:`executors.base.Environment`."""
        if script.predefined:
            await self._hooks.start(run, script)
            return
        await self._builder.say_image(run)
        try:
            await self._hand_over(run, script)
        except EngineError as error:
            # Who cleans up on the engine's host removes containers that were not started yet.
            if error.status not in NOT_STARTED or not await self._builder.is_gone():
                raise
            await self._hand_over(run, script)

    async def _hand_over(self, run: str, script: Script) -> None:
        await self._files.hand_over()
        await self._builder.start(run, script)

    async def started(self, run: str) -> bool:
        """See :class:`executors.base.Environment`."""
        return self._builder.started(run)

    async def ended(self, run: str) -> bool:
        """See :class:`executors.base.Environment`."""
        return self._hooks.ended(run) if run in self._hooks else await self._builder.ended(run)

    async def follow(self, run: str, offset: int = 0) -> AsyncIterator[Output]:
        """See :class:`executors.base.Environment`."""
        source = self._hooks.follow(run, offset) if run in self._hooks else self._builder.follow(run, offset)
        async for piece in source:
            yield piece

    async def wait(self, run: str) -> ExitStatus:
        """See :class:`executors.base.Environment`."""
        return await (self._hooks.wait(run) if run in self._hooks else self._builder.wait(run))

    async def stop(self, run: str, *, grace_s: float) -> None:
        """See :class:`executors.base.Environment`."""
        if run in self._hooks:
            await self._hooks.stop(run)
        else:
            native = "FF_USE_NATIVE_CONTAINER_STOP" in self._need.flags
            await self._builder.stop(run, grace_s=grace_s, all_processes=not native)

    async def discard(self, run: str) -> None:
        """Output is read on, so that what it takes of the engine's disk stays known."""

    async def _before_scripts(self) -> list[str]:
        """Give the sources to the user of the image, where they are not open to everybody."""
        place = self._known
        if FLAG not in self._need.flags:
            return []
        owner = await image_owner(self._engine, image=place.image, user=place.image_user, names=place.names, labels=place.labels)
        if owner is None:
            return []
        lines = []
        for path in (self._spec.project_dir, self._spec.tmp_dir):
            lines.append(owner.line(path))
            await self.tool(owner.command(path))
        return lines

    # Tools

    async def tool(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        output: OutputSink | None = None,
    ) -> ExitStatus:
        """Run a program in the helper."""
        if self._files.is_direct:
            await self._files.leave_direct()
        status = await self._helper.run(command(argv, cwd=cwd or "/", env=env, stdin=stdin), output)
        return ExitStatus(exit_code=status)

    async def usage(self) -> Usage | None:
        """See :class:`executors.base.MeasuresUsage`: of the containers of scripts, helpers and services."""
        runs = self._builder.used()
        if runs is None or self._place is None:
            return None
        earlier = [Used.from_json(one) for one in self._journal.all("used by helper").values()]
        helper, services = await asyncio.gather(self._helper_used(), self._service_usage.found())
        return sum_up([*runs, *earlier, *services, *([helper] if helper is not None else [])])

    async def _helper_used(self) -> Used | None:
        if not self._helper.is_running:
            return None
        said: list[bytes] = []
        await self._helper.run(READ, lambda piece: said.append(piece.data))
        return parse(b"".join(said).decode(errors="replace"))

    async def _note_earlier_helper(self) -> None:
        """What the helper of an earlier daemon has used: it is about to be replaced."""
        name = self._known.names.helper
        try:
            about = await self._engine.call(lambda client: client.inspect_container(name))
        except NotFound:
            return
        used = await stats_of(self._engine, about["Id"])
        if used is not None:
            self._journal.note("used by helper", about["Id"], **used.as_json())

    async def kill_tools(self) -> None:
        """A helper that an earlier daemon left is replaced by the next one of its name."""

    async def detach(self) -> None:
        """Let go of the connections; containers go on."""
        self._stop_showing()
        await self._files.detach()
        await self._builder.detach()
        await self._helper.close()

    async def cleanup(self) -> None:
        """Remove everything that carries the labels of this job."""
        self._stop_showing()
        try:
            await self._files.detach()
            await self._builder.detach()
            await self._helper.close()
            async with asyncio.timeout(CLEANUP_S):
                name = self._spec.record_dir.name
                await remove_all(self._engine, self._executor.state_id, name, keeps_volumes=self._keeps_volumes)
            self._executor.uses(self._engine, self._journal, self._known.table).end()
        except EngineUnreachable as error:
            log.warning("containers of the job wait for the engine", job=self._spec.job_id, error=str(error))
            self._executor.remove_later(self._engine, self._spec.record_dir.name)
        except (ExecutorError, TimeoutError, OSError) as error:
            log.warning("containers of the job could not be removed", job=self._spec.job_id, error=str(error))
