"""Runs one script of a job to its end, or to the end of what limits it, and puts its output into the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

from executors.base import Environment, ExitStatus, Output, Script
from executors.errors import ExecutorError
from runner.job.company import Company, Said
from runner.job.steps import Step, Steps
from runner.scope import Stopped, StopScope, finish
from runner.trace.log import JobLog, StageLog

# What a stopped script may still take beyond its grace: the kill itself and the rest of its output.
KILL_MARGIN_S = 30.0
COMPANY_S = 0.5


class ScriptRunner:
    """Starts a script under its journalled name, follows it, stops it. The same for a script that runs already.

    ``is_detached`` tells that another process takes over: then nothing is touched. ``grace_s`` is how long a script may
    take to end after SIGTERM; it is asked for at the moment of the stop. ``force_s`` is how long what was killed is waited
    for. ``has_company`` tells that something runs beside the script whose output is wanted while it comes.
    """

    def __init__(
        self,
        environment: Environment,
        job_log: JobLog,
        steps: Steps,
        *,
        is_detached: Callable[[], bool],
        grace_s: Callable[[], float],
        force_s: float = 0.0,
        company: Company | None = None,
    ) -> None:
        self._environment = environment
        self._log = job_log
        self._steps = steps
        self._is_detached = is_detached
        self._grace_s = grace_s
        self._force_s = force_s
        self._company = company

    async def run(self, step: Step, script: Script, scope: StopScope) -> ExitStatus:
        """Run within ``scope``. Raises :class:`Stopped` once everything the script started is gone."""
        following = _Following(self._environment, step.run, self._log, self._company)
        try:
            try:
                await self._environment.start(step.run, script)
            finally:
                if not self._is_detached():
                    self.say_remarks(step.at_ns)
            if await self._environment.ended(step.run):
                # The script ended while nobody looked: whatever its limits were, it kept them.
                status = await following.to_the_end()
                await self._say_last(following)
            else:
                async with scope:
                    status = await self._follow(following)
        except (Stopped, asyncio.CancelledError):
            if self._is_detached():
                raise
            await finish(self._stop(step, following), within_s=self._grace_s() + self._force_s + KILL_MARGIN_S)
            raise
        except ExecutorError:
            following.close(self._steps.moment(f"end {step.name}"))
            raise
        following.close(self._steps.moment(f"end {step.name}"))
        return status

    async def _follow(self, following: _Following) -> ExitStatus:
        if self._company is None:
            return await following.to_the_end()
        company = asyncio.create_task(self._say_on(following), name="company")
        try:
            status = await following.to_the_end()
        finally:
            company.cancel()
        await self._say_last(following)
        return status

    async def _say_on(self, following: _Following) -> None:
        while True:
            await asyncio.sleep(COMPANY_S)
            if not self._is_detached():
                following.say_company()

    async def _say_last(self, following: _Following) -> None:
        """What was written up to the end of the script."""
        if self._company is not None and not self._is_detached():
            await self._company.catch_up()
            if not self._is_detached():
                following.say_company()

    def say_remarks(self, time_ns: int) -> None:
        """Put into the log what the place of the job has to say."""
        say = {"info": self._log.info, "warning": self._log.warning, "error": self._log.error, "output": self._log.bare}
        for kind, text in self._environment.remarks():
            say.get(kind, self._log.plain)(text, time_ns=time_ns)

    async def _stop(self, step: Step, following: _Following) -> None:
        """Kill the script; what it prints meanwhile still belongs to the log."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._environment.stop(step.run, grace_s=self._grace_s()), name="stop")
            group.create_task(following.drain(), name="drain")
        await self._say_last(following)
        following.close(self._steps.moment(f"end {step.name}"))


class _Following:
    """Output of a run on its way into the log; remembers how far it got."""

    def __init__(self, environment: Environment, run: str, job_log: JobLog, company: Company | None) -> None:
        self._environment = environment
        self._run = run
        self._log = job_log
        self._stage: StageLog = job_log.open_stage()
        self._offset = 0
        self._discarding = False
        self._company = company
        self._said: Iterator[Said] = iter(()) if company is None else company.of(run)
        self._next = next(self._said, None)

    async def drain(self) -> None:
        self._say_again(self._offset)
        async for piece in self._environment.follow(self._run, self._offset):
            self._write(piece)
            if self._log.is_full and not self._discarding:
                self._discarding = True
                await self._environment.discard(self._run)
        self._say_again(None)

    def _write(self, piece: Output) -> None:
        """A piece, and what an earlier process has put into the middle of it."""
        data, at = piece.data, self._offset
        while self._next is not None and at < self._next.offset < piece.next_offset:
            size = self._next.offset - at
            self._stage.write(piece.stream, data[:size], piece.time_ns)
            data, at = data[size:], self._next.offset
            self._say_again(at)
        self._stage.write(piece.stream, data, piece.time_ns)
        self._offset = piece.next_offset
        self._say_again(self._offset)

    def _say_again(self, offset: int | None) -> None:
        """Texts that an earlier process has put there, up to a place in the output; None: all that are left."""
        while self._next is not None and (offset is None or self._next.offset <= offset):
            self._log.bare(self._next.text, time_ns=self._next.time_ns)
            self._next = next(self._said, None)

    def say_company(self) -> None:
        """What has been written beside the script meanwhile."""
        if self._company is not None and self._next is None:
            said = self._company.take(self._run, self._offset, time.time_ns())
            if said is not None:
                self._log.bare(said.text, time_ns=said.time_ns)

    async def to_the_end(self) -> ExitStatus:
        await self.drain()
        return await self._environment.wait(self._run)

    def close(self, time_ns: int) -> None:
        self._stage.close(time_ns)
