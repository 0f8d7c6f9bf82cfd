"""The build container and the scripts that run in it, each at most once whatever dies meanwhile (12.2, exactly once).

A script is one quoted text on the standard input of the container's first process: a shell begins to run it when it has
read all of it. Before that the journal says that the run is due, with the nonce that the script prints first. So whoever
finds a run that was not delivered can tell by the log whether it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import structlog

from executors.base import ExitStatus, JobSpec, Output, Script
from executors.docker.containers import remove
from executors.docker.errors import EngineUnreachable, NotFound
from executors.docker.flood import Flood
from executors.docker.helper import quote
from executors.docker.lines import KeptLines, Level
from executors.docker.logs import LogReader, Mark, has_begun
from executors.docker.measures import Used, say_at_end, stats_of
from executors.docker.memory import KILLED, memory_remarks
from executors.docker.stopping import is_running, stop_container
from executors.docker.waiting_shell import WaitingShell, connect
from executors.errors import EnvironmentLost, ExecutorError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.journal import Journal
    from executors.docker.place import JobPlace
    from executors.docker.streams import Hijacked

log = structlog.get_logger()

# How long the engine may take a script; longer than that, and the run's own output tells when it has begun.
DELIVERY_S = 5.0
ENGINE_PATIENCE_S = 60.0
ENGINE_POLL_S = 0.5
# States of a container that is being removed.
VANISHING = ("removing", "dead")
MIB = 1024 * 1024
# The log of a job shows no more than this part of what a script may write.
SHOWN_PART = 8


class Builder:
    """The build container of one job. ``before_first`` is done before its first script; the lines that it gives are for
    the log."""

    def __init__(
        self,
        engine: Engine,
        journal: Journal,
        place: Callable[[], JobPlace],
        spec: JobSpec,
        before_first: Callable[[], Awaitable[list[str]]],
    ) -> None:
        self._engine = engine
        self._journal = journal
        self._place = place
        self._before_first = before_first
        self._limit_bytes = spec.output_limit_bytes
        self._making: asyncio.Task[str] | None = None
        self._waiting = WaitingShell(engine, journal, self.created)
        self._delivering: asyncio.Task[None] | None = None
        self._input: Hijacked | None = None
        self._readers: dict[str, LogReader] = {}
        # Runs that this process has begun; what the engine said of containers when the output of a run had ended.
        self._just_begun: set[str] = set()
        self._ends: dict[str, Any] = {}
        self._was_cut = False

    # The container

    def begin(self) -> None:
        """Begin to make the container; what goes wrong shows when it is needed."""
        if self._journal.find("build") is None:
            self._making = asyncio.create_task(self._make())
            self._making.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def created(self) -> str:
        """The container of the next script. Raises :class:`ExecutorError`."""
        if self._making is None:
            known = self._journal.find("build")
            if known is not None and await self._is_usable(known["id"]):
                return str(known["id"])
            self._making = asyncio.create_task(self._make())
        making = self._making
        try:
            return await asyncio.shield(making)
        finally:
            if making.done() and (making.cancelled() or making.exception() is not None):
                self._making = None

    def begin_early(self) -> None:
        """Begin to start the container while the sources are fetched, where no script can tell."""
        if not self.has_run and self._place().can_start_early:
            self._waiting.begin()

    async def _awake(self) -> tuple[str, Hijacked | None]:
        """The container of the next script, with the shell that waits in it if there is one. Raises :class:`ExecutorError`."""
        shell = await self._waiting.taken()
        try:
            container = await self.created()
            # An engine does not close the input of a container that has ended.
            if shell is not None and not shell.is_over and await is_running(self._engine, container):
                return container, shell
        except BaseException:
            if shell is not None:
                shell.close()
            raise
        if shell is not None:
            shell.close()
        if self._waiting.is_lost_in(container):
            self._spend(container)
            await remove(self._engine, container)
            container = await self.created()
        return container, None

    async def _make(self) -> str:
        place = self._place()
        made = await place.create(place.build(), warn=False)
        self._journal.note("build", id=made)
        return made

    async def _is_usable(self, container: str) -> bool:
        if self._journal.find("spent", container) is not None:
            return False
        try:
            about = await self._engine.call(lambda client: client.inspect_container(container))
        except NotFound:
            return False
        return about["State"]["Status"] not in VANISHING

    async def is_gone(self) -> bool:
        """Whether the container of the next script was made and has vanished; the next one is another then."""
        known = self._journal.find("build")
        if known is None or await self._is_usable(known["id"]):
            return False
        self._spend(known["id"])
        return True

    def _spend(self, container: str) -> None:
        """Nothing more runs in a container."""
        self._journal.note("spent", container)
        self._making = None

    @property
    def has_run(self) -> bool:
        """Whether a script of the job was ever handed over."""
        return self._journal.find("ran") is not None

    # Starting

    async def start(self, run: str, script: Script) -> None:
        """Hand a script over, or find that it was."""
        if self._journal.find("delivered", run) is not None:
            return
        due = self._journal.find("due", run)
        if due is not None and await self._began(due):
            self._journal.note("delivered", run)
            return
        container, shell = await self._awake()
        known = self._journal.find("log end", container)
        nonce = secrets.token_hex(16)
        mark = known["mark"] if known is not None else Mark().as_json()
        bare = self._place().has_bare_shell
        self._journal.note("ran")
        # Before "used": a waiting shell that has lost its daemon here is known by the run.
        self._journal.note("due", run, container=container, nonce=nonce, mark=mark, bare=bare)
        self._journal.note("used", container)
        await self._hand_over(run, container, nonce, script, shell)

    async def say_image(self, run: str) -> None:
        """The lines of the image, where its container is new; the same ones for whoever asks again."""
        known = self._journal.find("image lines", run)
        if known is None and self._journal.find("due", run) is None and self._needs_container():
            lines = KeptLines()
            place = self._place()
            await place.find_image_again(lines)
            try:
                warnings = place.build().warnings
            except ExecutorError:
                lines.pour(place.lines)
                raise
            for warning in warnings:
                lines.add(Level.WARNING, warning)
            for text in await self._before_first():
                lines.add(Level.PLAIN, text)
            self._journal.note("image lines", run, lines=[[str(level), text] for level, text in lines.kept])
            known = self._journal.find("image lines", run)
        for level, text in known["lines"] if known is not None else ():
            self._place().lines.add(Level(level), text)

    def _needs_container(self) -> bool:
        """Whether the next script is the first one in its container."""
        known = self._journal.find("build")
        if known is None:
            return True
        return self._journal.find("spent", known["id"]) is not None or self._journal.find("used", known["id"]) is None

    async def _began(self, due: dict[str, Any]) -> bool:
        """Whether a run that was due has begun. One that has not is over for good: its container is removed.

        Raises :class:`EnvironmentLost` where nobody can tell what became of it.
        """
        container, nonce, mark = due["container"], due["nonce"], Mark.from_json(due["mark"])
        try:
            if await has_begun(self._engine, container, nonce, mark):
                return True
            await stop_container(self._engine, container, grace_s=0, all_processes=False)
            if await has_begun(self._engine, container, nonce, mark):
                raise EnvironmentLost("the script had just begun when the runner was restarted")
            self._spend(container)
            await remove(self._engine, container)
        except NotFound:
            self._spend(container)
        return False

    async def _hand_over(self, run: str, container: str, nonce: str, script: Script, shell: Hijacked | None) -> None:
        # In two parts: the script's own text must not look like its beginning.
        begin = f"printf '%s%s\\n' {nonce[:16]} {nonce[16:]}\n{say_at_end(nonce)}"
        program = begin + script.text.decode(errors="surrogateescape")
        line = f"eval {quote(program)}\n"
        if shell is None:
            shell = await connect(self._engine, container)
        self._input = shell
        self._just_begun.add(run)
        self._delivering = asyncio.create_task(self._deliver(run, shell, line.encode(errors="surrogateescape")))
        await asyncio.wait([self._delivering], timeout=DELIVERY_S)

    async def _deliver(self, run: str, shell: Hijacked, data: bytes) -> None:
        """Until the engine has passed everything on."""
        try:
            await shell.send(data)
            if shell.end_input():
                while await shell.reader.read(1024):
                    pass
                self._journal.note("delivered", run)
        except OSError as error:
            # A container that does not read its input may end before it has all of it.
            log.debug("input of the container was closed", run=run, error=str(error))

    # Following

    def started(self, run: str) -> bool:
        """Whether a run was handed over, or was about to be."""
        return self._journal.find("due", run) is not None

    async def ended(self, run: str) -> bool:
        """Whether a run is over."""
        if self._journal.find("ended", run) is not None:
            return True
        due = self._journal.find("due", run)
        if due is None or run in self._just_begun:
            return False
        try:
            return not await is_running(self._engine, due["container"])
        except EngineUnreachable:
            return False

    def _reader(self, run: str) -> LogReader | None:
        due = self._journal.find("due", run)
        if run not in self._readers and due is not None:
            self._readers[run] = LogReader(self._engine, due["container"], due["nonce"], Mark.from_json(due["mark"]))
        return self._readers.get(run)

    async def follow(self, run: str, offset: int) -> AsyncIterator[Output]:
        """Output of a run; a broken connection is made again and reading goes on where it stopped."""
        reader = self._reader(run)
        if reader is None:
            return
        if offset != reader.offset:
            reader.rewind()
        flood = Flood(self._engine, reader.container, self._limit_bytes)
        end = self._end_of_flood(run)
        is_live = True
        while end is None or reader.offset < end:
            try:
                async with contextlib.aclosing(reader.read(follow=is_live)) as pieces:
                    async for piece in pieces:
                        self._note_beginning(run, reader)
                        if end is None and await flood.is_over(piece.next_offset):
                            end = await self._end_flood(run, reader.container, piece.next_offset - len(piece.data))
                        part = _between(piece, offset, end)
                        if part is not None:
                            yield part
                        if end is not None and piece.next_offset >= end:
                            return
                if await self._has_ended(run, reader.container):
                    if not is_live or not await self._engine.is_podman():
                        break
                    # What its followers say at the end is not taken.
                    is_live = False
            except NotFound:
                break
            except EngineUnreachable:
                self._was_cut = True
                await self._until_reachable()
        if reader.used is not None:
            self._note_usage(run, reader.used)
        rest = reader.rest()
        if rest is not None and rest.next_offset > offset:
            yield rest

    async def _has_ended(self, run: str, container: str) -> bool:
        """Whether the container of a run has; raises :class:`NotFound` where it is gone."""
        about = await self._engine.call(lambda client: client.inspect_container(container))
        if about["State"]["Running"]:
            return False
        if about["State"]["Status"] == "exited":
            self._ends[run] = about
        return True

    def _note_beginning(self, run: str, reader: LogReader) -> None:
        if reader.has_begun and self._journal.find("delivered", run) is None:
            self._journal.note("delivered", run)

    def _end_of_flood(self, run: str) -> int | None:
        """Where the output of a run ends that was too long."""
        known = self._journal.find("too long", run)
        return int(known["offset"]) if known is not None else None

    async def _end_flood(self, run: str, container: str, offset: int) -> int:
        """A script must not fill the engine's disk: its output cannot be dropped there, so it is ended, and no more of it
        is read than ``offset``, or what the log of a job may show: whoever reads it again must not stop before that."""
        offset = max(offset, self._limit_bytes // SHOWN_PART)
        log.warning("script wrote too much and is ended", container=container, limit_bytes=self._limit_bytes)
        self._journal.note("too long", run, offset=offset)
        self._spend(container)
        await self._stop(run, container, grace_s=0, all_processes=False)
        return offset

    async def _until_reachable(self) -> None:
        """Wait for the engine to come back. Raises :class:`EnvironmentLost` when it does not."""
        last: ExecutorError | None = None
        for _ in range(int(ENGINE_PATIENCE_S / ENGINE_POLL_S)):
            try:
                await self._engine.call(lambda client: client.ping())
                return
            except EngineUnreachable as error:
                last = error
                await asyncio.sleep(ENGINE_POLL_S)
        raise EnvironmentLost(f"the Docker engine is gone: {last}")

    # Ending

    async def wait(self, run: str) -> ExitStatus:
        """The exit code that the engine has of a run."""
        known = self._journal.find("ended", run)
        if known is not None:
            return _status(known)
        due = self._journal.find("due", run)
        if due is None:
            raise EnvironmentLost("the script was never started")
        container = due["container"]
        is_too_long = self._end_of_flood(run) is not None
        exit_code, remarks = await self._exit_code(run, container)
        if is_too_long:
            size = self._limit_bytes // MIB
            remarks.append(f"The script wrote more than {size} MiB and was ended, to save the disk of the Docker engine")
        elif exit_code in KILLED and await self._engine_has_ended(container):
            self._spend(container)
            raise EnvironmentLost("the Docker engine was restarted while the script ran")
        elif exit_code == 0 and due.get("bare") and not await self._has_begun(run, due):
            self._spend(container)
            raise EnvironmentLost("the connection to the container was lost before it had its script")
        reader = self._readers.get(run)
        if reader is not None:
            self._journal.note("log end", container, mark=reader.end.as_json())
        self._journal.note("ended", run, exit_code=exit_code, remarks=remarks, truncated=is_too_long)
        found = self._journal.find("ended", run)
        assert found is not None
        return _status(found)

    async def _has_begun(self, run: str, due: dict[str, Any]) -> bool:
        """Whether a run that is over ever was one: a shell without anything to read ends well."""
        reader = self._readers.get(run)
        if reader is not None and reader.has_begun:
            return True
        try:
            return await has_begun(self._engine, due["container"], due["nonce"], Mark.from_json(due["mark"]))
        except NotFound:
            return True

    async def _engine_has_ended(self, container: str) -> bool:
        """Whether a script that was killed, and not by us, was killed by the end of its engine."""
        was_stopped = self._journal.find("spent", container) is not None
        return not was_stopped and (self._was_cut or not await self._engine.is_accepting())

    async def _exit_code(self, run: str, container: str) -> tuple[int, list[str]]:
        known = self._ends.pop(run, None)
        if known is not None:
            exit_code = int(known["State"]["ExitCode"])
            return exit_code, await self._memory_remarks(run, container, known, exit_code)
        while True:
            try:
                async with self._engine.stream("POST", f"/containers/{container}/wait") as response:
                    answer: dict[str, Any] = await response.json(content_type=None)
                about: Any = await self._engine.call(lambda client: client.inspect_container(container))
            except NotFound:
                # Somebody removed it under the script, which was killed by that.
                self._spend(container)
                return 137, []
            except EngineUnreachable:
                self._was_cut = True
                await self._until_reachable()
                continue
            if about["State"]["Status"] in VANISHING:
                self._spend(container)
            elif about["State"]["Running"]:
                # Podman has answered too early before.
                await asyncio.sleep(ENGINE_POLL_S)
                continue
            exit_code = int(answer["StatusCode"])
            return exit_code, await self._memory_remarks(run, container, about, exit_code)

    async def _memory_remarks(self, run: str, container: str, about: Any, exit_code: int) -> list[str]:
        used = self._journal.find("used by", run)
        oom_kills = Used.from_json(used).oom_kills if used is not None else 0
        was_stopped = self._journal.find("spent", container) is not None
        return await memory_remarks(
            self._engine, container, about, exit_code=exit_code, was_stopped=was_stopped, oom_kills=oom_kills
        )

    async def stop(self, run: str, *, grace_s: float, all_processes: bool) -> None:
        """End a run; the next script gets another container."""
        due = self._journal.find("due", run)
        if due is None:
            return
        self._spend(due["container"])
        await self._stop(run, due["container"], grace_s=grace_s, all_processes=all_processes)

    async def _stop(self, run: str, container: str, *, grace_s: float, all_processes: bool) -> None:
        async def measure() -> None:
            # Who is killed says nothing any more.
            used = await stats_of(self._engine, container)
            if used is not None:
                self._note_usage(run, used)

        await stop_container(self._engine, container, grace_s=grace_s, all_processes=all_processes, before_kill=measure)

    # What was used

    def _note_usage(self, run: str, used: Used) -> None:
        self._journal.note("used by", run, **used.as_json())

    def used(self) -> list[Used] | None:
        """What the container has used in each run so far; None where that is lost of one."""
        known = self._journal.all("used by")
        if not self._journal.all("due").keys() <= known.keys():
            return None
        return [Used.from_json(one) for one in known.values()]

    async def detach(self) -> None:
        """Let go of connections and of work that was begun."""
        await self._waiting.close()
        tasks = [task for task in (self._delivering, self._making) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._input is not None:
            self._input.close()


def _status(found: dict[str, Any]) -> ExitStatus:
    return ExitStatus(exit_code=found["exit_code"], remarks=tuple(found["remarks"]), truncated=found["truncated"])


def _between(piece: Output, begin: int, end: int | None) -> Output | None:
    """The part of a piece that lies in an output between two of its bytes, if there is one."""
    at = piece.next_offset - len(piece.data)
    to_skip = max(begin - at, 0)
    to_drop = max(piece.next_offset - end, 0) if end is not None else 0
    if to_skip + to_drop == 0:
        return piece
    data = piece.data[to_skip : len(piece.data) - to_drop]
    return replace(piece, data=data, next_offset=piece.next_offset - to_drop) if data else None
