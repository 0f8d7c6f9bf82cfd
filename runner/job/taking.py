"""How a stage is taken: its section and headline, its end in the journal, its tries and its limits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from executors.base import Environment
from executors.errors import EnvironmentLost, ExecutorError
from runner.job.attempts import pause_s
from runner.job.outcome import JobFailure, Reason, failure_of, stage_timed_out
from runner.job.plan import JobPlan
from runner.job.stages import Stage, headline
from runner.job.steps import Step, Steps
from runner.scope import Stopped, StopReason, StopScope
from runner.trace.log import JobLog, StageLog

CUT_OFF = (
    "could not run to completion because the timeout was exceeded. For more control over job and script timeouts see: "
    "https://docs.gitlab.com/ci/runners/configure_runners/#set-script-and-after_script-timeouts"
)
Body = Callable[[Step], Awaitable[None]]


class StageTaker:
    """Takes the stages of one job, one after the other; one that an earlier process saw end is passed over.

    ``stage`` is where the job is. ``in_tools`` tells that a stage is under way which another process would have to take
    again; ``on_tools_end`` is called at its end. ``plan`` may be replaced while no stage is under way.
    """

    def __init__(
        self,
        *,
        plan: JobPlan,
        environment: Environment,
        job_log: JobLog,
        steps: Steps,
        job_scope: StopScope,
        is_detached: Callable[[], bool],
        on_stage: Callable[[str, float], None],
    ) -> None:
        self.plan = plan
        self._environment = environment
        self._log = job_log
        self._steps = steps
        self._job_scope = job_scope
        self._is_detached = is_detached
        self._on_stage = on_stage
        self._was_cut = False
        self.stage = ""
        self.in_tools = False
        self.on_tools_end: Callable[[], None] | None = None

    async def take(self, stage: str, body: Body, *, key: str = "", script: bool = False) -> None:
        """Take a stage with its section and headline, unless an earlier process saw it end."""
        if self._job_scope.reason is not None:
            # The cancel of the stage before was lost on its way: what ends the job ends it here.
            raise Stopped(self._job_scope.reason)
        name = key or str(stage)
        self.stage = str(stage)
        ended = self._steps.ended(name)
        if ended is not None:
            if ended.failure is not None:
                raise JobFailure(ended.failure)
            return
        step = self._steps.begin(name, replayable=script, script=script)
        self.in_tools = not script
        self._log.section_start(stage, time_ns=step.at_ns)
        self._log.header(headline(stage, self.plan.kind.name), time_ns=step.at_ns)
        try:
            await self._carry_out(step, stage, body, script=script)
        except (JobFailure, ExecutorError) as error:
            if self._is_detached():
                # Broken by letting go of it, for all that is known: the next process takes the stage again.
                raise Stopped(StopReason.DETACHED) from error
            failure = error if isinstance(error, JobFailure) else failure_of(error)
            self._close(step, stage, failure)
            raise failure from error.__cause__ if failure is error else error
        except (Stopped, asyncio.CancelledError):
            if not self._is_detached():
                self._was_cut = True
                self._close(step, stage, None)
            raise
        self._close(step, stage, None)

    async def _carry_out(self, step: Step, stage: str, body: Body, *, script: bool) -> None:
        """The work of a stage; in a new place where the first one vanished, but no script of the job twice."""
        has_scripts = script or (stage == Stage.GET_SOURCES and self._has_hooks())
        for left in reversed(range(1 if has_scripts else self.plan.settings.section_attempts)):
            try:
                await body(step)
                return
            except EnvironmentLost:
                if left == 0 or self._is_detached():
                    raise
            self._log.info(f"Retrying {stage}", time_ns=time.time_ns())
            await self._environment.prepare()

    def _has_hooks(self) -> bool:
        runner = self.plan.runner
        return bool(runner.pre_get_sources_script or runner.post_get_sources_script or self.plan.payload.hooks)

    def _close(self, step: Step, stage: str, failure: JobFailure | None) -> None:
        """The end of a stage, and what is to be said of it."""
        now_ns = self._steps.moment(f"end {step.name}")
        self._log.section_end(stage, time_ns=now_ns)
        timed_out = self._job_scope.reason is StopReason.TIMEOUT
        if failure is not None and failure.outcome.reason == Reason.TIMEOUT:
            timed_out = True
        if timed_out and stage != Stage.PREPARE_EXECUTOR:
            self._log.warning(f"{stage} {CUT_OFF}", time_ns=now_ns)
        if failure is not None and failure.outcome.reason == Reason.CANCELED:
            self._log.warning("script canceled externally (UI, API)", time_ns=now_ns)
        self._steps.end(step, failure.outcome if failure is not None else None)
        self._on_stage(stage, (now_ns - step.at_ns) / 1e9)
        self.in_tools = False
        if self.on_tools_end is not None:
            self.on_tools_end()

    async def attempt(
        self,
        stage: Stage,
        attempts: int,
        body: Body,
        *,
        between: Callable[[int], Awaitable[None]] | None = None,
        script: bool = False,
    ) -> None:
        """A stage that may be tried more than once; raises the last failure. ``between`` is done before the next try, and
        where it fails that try has failed."""
        for attempt in range(1, attempts + 1):
            try:
                if attempt > 1 and between is not None:
                    await between(attempt - 1)
                await self.take(stage, body, key=f"{stage} {attempt}", script=script)
                return
            except JobFailure:
                if attempt == attempts:
                    raise
            self.say(f"retry {stage} {attempt}", lambda now_ns: self._log.warning("Retrying...", time_ns=now_ns))
            await asyncio.sleep(pause_s(attempt, grows=self.plan.flags["FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY"]))

    async def in_stage(self, work: Callable[[StageLog], Awaitable[None]]) -> None:
        """Work that writes into the log of the stage."""
        stage = self._log.open_stage()
        try:
            await work(stage)
        finally:
            if not self._is_detached():
                stage.close(time.time_ns())

    def say(self, name: str, write: Callable[[int], None]) -> None:
        """Lines between stages, written once."""
        if self._steps.ended(name) is None:
            step = self._steps.begin(name, replayable=True)
            write(step.at_ns)
            self._steps.end(step)

    async def limited(self, what: str, limit_s: float | None, work: Callable[[], Awaitable[None]]) -> None:
        """Work within a limit of the configuration; one that is not shorter than the job's does not count."""
        if limit_s is None or limit_s <= 0 or limit_s >= self.plan.payload.timeout_s:
            await work()
            return
        began_ns = self._steps.moment(f"{what} began")
        scope = StopScope(loop_time(began_ns, limit_s))
        try:
            async with scope:
                await work()
        except Stopped as stop:
            if scope.reason is None:
                raise
            failure = stage_timed_out(what, limit_s)
            text = f"{self.stage} {CUT_OFF}"
            if self._was_cut and self.stage != Stage.PREPARE_EXECUTOR:
                self.say(f"{what} timed out", lambda now_ns: self._log.warning(text, time_ns=now_ns))
            raise failure from stop


def loop_time(since_ns: int, seconds: float) -> float:
    """The loop's time ``seconds`` after a moment of the wall clock."""
    return asyncio.get_running_loop().time() + since_ns / 1e9 + seconds - time.time()
