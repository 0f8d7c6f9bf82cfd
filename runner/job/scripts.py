"""Runs one script of a job to its end, or to the end of what limits it, and puts its output into the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from executors.base import Environment, ExecutorError, ExitStatus, Script
from runner.job.steps import Step, Steps
from runner.scope import Stopped, StopScope, finish
from runner.trace.log import JobLog, StageLog

# What a stopped script may still take beyond its grace: the kill itself and the rest of its output.
KILL_MARGIN_S = 30.0
REMARKS_S = 0.5


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
        has_company: bool = False,
    ) -> None:
        self._environment = environment
        self._log = job_log
        self._steps = steps
        self._is_detached = is_detached
        self._grace_s = grace_s
        self._force_s = force_s
        self._has_company = has_company

    async def run(self, step: Step, script: Script, scope: StopScope) -> ExitStatus:
        """Run within ``scope``. Raises :class:`Stopped` once everything the script started is gone."""
        following = _Following(self._environment, step.run, self._log)
        try:
            try:
                await self._environment.start(step.run, script)
            finally:
                if not self._is_detached():
                    self.say_remarks(step.at_ns)
            if await self._environment.ended(step.run):
                # The script ended while nobody looked: whatever its limits were, it kept them.
                status = await following.to_the_end()
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
        if not self._has_company:
            return await following.to_the_end()
        company = asyncio.create_task(self._say_on(), name="remarks")
        try:
            return await following.to_the_end()
        finally:
            company.cancel()
            if not self._is_detached():
                self.say_remarks(time.time_ns())

    async def _say_on(self) -> None:
        while True:
            await asyncio.sleep(REMARKS_S)
            self.say_remarks(time.time_ns())

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
        following.close(self._steps.moment(f"end {step.name}"))


class _Following:
    """Output of a run on its way into the log; remembers how far it got."""

    def __init__(self, environment: Environment, run: str, job_log: JobLog) -> None:
        self._environment = environment
        self._run = run
        self._log = job_log
        self._stage: StageLog = job_log.open_stage()
        self._offset = 0
        self._discarding = False

    async def drain(self) -> None:
        async for piece in self._environment.follow(self._run, self._offset):
            self._offset = piece.next_offset
            self._stage.write(piece.stream, piece.data, piece.time_ns)
            if self._log.is_full and not self._discarding:
                self._discarding = True
                await self._environment.discard(self._run)

    async def to_the_end(self) -> ExitStatus:
        await self.drain()
        return await self._environment.wait(self._run)

    def close(self, time_ns: int) -> None:
        self._stage.close(time_ns)
