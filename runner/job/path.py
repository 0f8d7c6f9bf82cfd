"""The stages of a job in their order (``job-lifecycle.md`` 2): what it does between its header and its last line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from executors.base import Environment, ExitStatus, PlaceFacts, Script, ScriptedPlace, Stream
from executors.errors import EnvironmentLost, ExecutorError, PrepareError
from runner.coordinator.port import JobCoordinator
from runner.job.archive_stages import ArtifactWork, CacheWork
from runner.job.artifacts import ArtifactStages
from runner.job.caches import CacheStages
from runner.job.git_safety import make_own_dir
from runner.job.outcome import (
    JobFailure,
    Reason,
    canceled,
    failure_of,
    misconfigured,
    script_failed,
    script_timed_out,
    tool_failed,
)
from runner.job.plan import JobPlan
from runner.job.policy import policy_lines
from runner.job.script import Commands, change_directory, frame, go_defaults, notice, prelude
from runner.job.scripts import ScriptRunner
from runner.job.settings import parse_times
from runner.job.source_hooks import SourceHooks
from runner.job.sources import Sources
from runner.job.stages import Stage, user_stage
from runner.job.steps import Step, Steps
from runner.job.taking import Body, StageTaker, loop_time
from runner.mirrors.access import Lender
from runner.scope import Stopped, StopReason, StopScope
from runner.trace.log import JobLog

if TYPE_CHECKING:
    from runner.job.rendered.stages import ScriptedStages

log = structlog.get_logger()

PREPARE_TRIES = 3
PREPARE_PAUSE_S = 3.0
STEP_SCRIPT = "step_script"
OLD_NAME = (
    "Starting with version 17.0 the 'build_script' stage will be replaced with 'step_script': "
    "https://gitlab.com/groups/gitlab-org/-/epics/6112"
)
NO_STEPS = "native step execution (e.g. the `run:` keyword) on this executor requires the FF_CONCRETE feature flag to be enabled"
NO_STEPS_AT_ALL = "native step execution (the `run:` keyword) is not part of this runner, whatever FF_CONCRETE says"


class JobPath:
    """Walks the stages. ``run`` returns when the job succeeded and raises :class:`JobFailure` when it did not.

    ``early_failure`` is how the preparation ended that began before the path; it counts as the first try. ``in_script``
    tells whether a graceful cancel ends the script only. ``taker`` knows where the job is; ``on_stage`` hears of each
    stage that has ended, with its seconds.
    """

    def __init__(
        self,
        *,
        plan: JobPlan,
        environment: Environment,
        coordinator: JobCoordinator,
        job_log: JobLog,
        steps: Steps,
        scripts: ScriptRunner,
        job_scope: StopScope,
        script_scope: StopScope,
        is_detached: Callable[[], bool],
        deadline: float,
        replan: Callable[[PlaceFacts], JobPlan],
        lender: Lender | None = None,
        on_stage: Callable[[str, float], None] = lambda stage, seconds: None,
        early_failure: ExecutorError | None = None,
    ) -> None:
        self._environment = environment
        self._coordinator = coordinator
        self._log = job_log
        self._steps = steps
        self._scripts = scripts
        self._replan = replan
        self._lender = lender
        self.taker = StageTaker(
            plan=plan,
            environment=environment,
            job_log=job_log,
            steps=steps,
            job_scope=job_scope,
            is_detached=is_detached,
            on_stage=on_stage,
        )
        self._use(plan)
        self._script_scope = script_scope
        self._is_detached = is_detached
        self._deadline = deadline
        self._early_failure = early_failure
        self._tidy = False
        self.in_script = False
        self.script_over = False

    def _use(self, plan: JobPlan) -> None:
        """Go by this plan from here on."""
        self._plan = self.taker.plan = plan
        self._sources_plan = plan.sources()
        self._sources = Sources(self._environment, self._sources_plan, self._lender)
        self._hooks = SourceHooks(
            plan, self._environment, self._steps, run=self._run, commands=self._commands, prelude=self._prelude
        )
        self._caches: CacheWork
        self._artifacts: ArtifactWork
        self._scripted = self._render(plan) if plan.kind.is_scripted else None
        if self._scripted is not None:
            self._caches = self._artifacts = self._scripted
            return
        self._caches = CacheStages(
            plan,
            self._environment,
            self._steps.tally,
            take=self.taker.take,
            attempt=self.taker.attempt,
            in_stage=self.taker.in_stage,
        )
        self._artifacts = ArtifactStages(
            plan,
            self._environment,
            self._coordinator,
            self._steps,
            take=self.taker.take,
            attempt=self.taker.attempt,
            in_stage=self.taker.in_stage,
        )

    def _render(self, plan: JobPlan) -> ScriptedStages:
        from runner.job.rendered.stages import ScriptedStages

        async def run(step: Step, body: str, stage: str, status: str) -> ExitStatus:
            return await self._run(step, body, stage, StopScope(), status)

        return ScriptedStages(plan, take=self.taker.take, attempt=self.taker.attempt, run=run, commands=self._commands)

    async def run(self) -> None:
        """The path of a job, top to bottom."""
        await self.taker.limited("prepare", self._plan.runner.prepare_timeout_s, self._prepare)
        failure = await self._get_sources() or await self._caches.restore() or await self._artifacts.download()
        if failure is None:
            self._announce()
            failure = await self._user_steps()
            failure = await self._after_script(failure)
        status, succeeded = _status_of(failure), failure is None
        not_saved = await self._caches.save(status, succeeded=succeeded)
        not_uploaded = await self._artifacts.upload(status, succeeded=succeeded)
        failure = failure or not_saved or not_uploaded
        await self._clean_up(status)
        if failure is not None:
            raise failure

    async def tidy(self) -> None:
        """Remove what holds secrets, however the job ended; nothing is left to do after the cleanup stage."""
        made = self._steps.ended(Stage.PREPARE_EXECUTOR)
        if self._tidy or made is None or made.failure is not None or self._scripted is not None:
            return
        self._tidy = True
        try:
            try:
                await self._remove_secrets()
            except EnvironmentLost:
                await self._environment.prepare()
                await self._remove_secrets()
        except (ExecutorError, OSError) as error:
            log.warning("files of the job could not be removed", error=str(error))

    async def _remove_secrets(self) -> None:
        await self._environment.files.remove([*self._secret_files(), *self._sources.secret_files])
        await self._sources.forget()

    # Preparation

    async def _prepare(self) -> None:
        was_made = self._steps.ended(Stage.PREPARE_EXECUTOR) is not None
        await self.taker.take(Stage.PREPARE_EXECUTOR, self._prepare_executor if self._scripted is None else self._provision)
        if was_made:
            await self._make_place(lambda _: None)
            self._environment.remarks()  # the log has them
        if self._scripted is None:
            await self.taker.take(Stage.PREPARE_SCRIPT, self._prepare_script)
            return
        self._use(self._replan(self._scripted_place().facts()))
        await self.taker.take(Stage.PREPARE_SCRIPT, self._scripted.prepare_script, script=True)

    def _scripted_place(self) -> ScriptedPlace:
        place = self._environment
        assert isinstance(place, ScriptedPlace)
        return place

    async def _provision(self, step: Step) -> None:
        """The same for a place that only its driver can make."""
        from runner.job.rendered.preparation import Preparation

        if self._plan.misconfigured is not None:
            raise self._plan.misconfigured
        place = self._scripted_place()
        work = Preparation(self._environment, place, self._log, replan=self._replan, is_detached=self._is_detached)
        await work.run(self._plan, step)
        if self._plan.payload.run:
            raise misconfigured(NO_STEPS)

    async def _prepare_executor(self, step: Step) -> None:
        if self._plan.misconfigured is not None:
            raise self._plan.misconfigured

        def say(error: PrepareError) -> None:
            now_ns = time.time_ns()
            self._scripts.say_remarks(now_ns)
            self._log.error(f"Preparation failed: {error}", time_ns=now_ns)
            self._log.info("Will be retried in 3s ...", time_ns=now_ns)

        try:
            await self._make_place(say)
        finally:
            if not self._is_detached():
                self._scripts.say_remarks(time.time_ns())
        for line in self._plan.go.lines:
            self._log.plain(line, time_ns=step.at_ns)
        if self._plan.payload.run:
            raise misconfigured(NO_STEPS_AT_ALL if self._plan.flags["FF_CONCRETE"] else NO_STEPS)

    async def _make_place(self, on_failure: Callable[[PrepareError], None]) -> None:
        """Make the job's place, or find the one that an earlier process made."""
        for attempt in range(1, PREPARE_TRIES + 1):
            try:
                if attempt == 1 and self._early_failure is not None:
                    raise self._early_failure
                await self._environment.prepare()
                return
            except PrepareError as error:
                if self._is_detached():
                    raise
                on_failure(error)
                await asyncio.sleep(PREPARE_PAUSE_S)
                if attempt == PREPARE_TRIES:
                    raise failure_of(error) from error

    async def _prepare_script(self, step: Step) -> None:
        try:
            place = await self._environment.hostname()
        finally:
            self._scripts.say_remarks(step.at_ns)
        files = self._environment.files
        tmp = self._plan.directories.tmp
        await make_own_dir(files, tmp)
        await files.remove([self._plan.env_file, f"{tmp}/masking.db"])
        stage = self._log.open_stage()
        stage.write(Stream.STDOUT, f"Running on {place}...\n".encode(), step.at_ns)
        stage.close(step.at_ns)

    # Sources

    async def _get_sources(self) -> JobFailure | None:
        """All attempts; the last failure, if none succeeded."""
        try:
            self._sources.check()
        except JobFailure as failure:
            return failure
        limit_s = self._plan.runner.get_sources_timeout_s
        try:
            await self.taker.limited("get sources", limit_s, self._attempt_sources)
        except JobFailure as failure:
            if failure.outcome.reason == Reason.TIMEOUT:
                raise
            return failure
        return None

    async def _attempt_sources(self) -> None:
        scripted = self._scripted
        body, clear_up = (
            (scripted.sources, scripted.clear_worktree) if scripted is not None else (self._sources_once, self._clear_worktree)
        )

        async def clear(attempt: int) -> None:
            if attempt == 1:
                await self.taker.take(Stage.CLEAR_WORKTREE, clear_up, script=scripted is not None)

        attempts = self._plan.settings.get_sources_attempts
        await self.taker.attempt(Stage.GET_SOURCES, attempts, body, between=clear, script=scripted is not None)

    async def _sources_once(self, step: Step) -> None:
        await self._environment.kill_tools()
        await self._write_file_variables()
        hooks = self._hooks if self._sources_plan.uses_git else None
        if hooks is not None:
            await hooks.before(step)
        await self.taker.in_stage(lambda stage: self._sources.get(stage, time.time_ns(), self._hooks.exported))
        if hooks is not None:
            await hooks.after(step)

    async def _clear_worktree(self, step: Step) -> None:
        stage = self._log.open_stage()
        await self._sources.clear(stage, step.at_ns)
        stage.close(time.time_ns())

    # Scripts

    def _announce(self) -> None:
        """Lines between the sources and the first script."""
        left_s = self._deadline - asyncio.get_running_loop().time()
        times = parse_times(self._plan.variables.get, left_s=left_s)
        script_s = "" if times.script_s is None else repr(times.script_s)
        self._steps.note("script timeout", lambda: script_s)
        self._steps.note("after_script timeout", lambda: repr(times.after_script_s))

        def write(now_ns: int) -> None:
            for line in policy_lines(self._plan.payload.policy_options):
                self._log.info(line, time_ns=now_ns)
            for warning in times.warnings:
                self._log.warning(warning, time_ns=now_ns)

        self.taker.say("announce", write)

    async def _user_steps(self) -> JobFailure | None:
        timeout = self._steps.known("script timeout")
        began_ns = self._steps.moment("script began")
        if timeout:
            self._script_scope.set_deadline(loop_time(began_ns, float(timeout)))
        self.in_script = True
        try:
            for number, step in enumerate(self._plan.payload.steps):
                if step.name == "after_script":
                    continue
                stage = user_stage(step.name)
                elements = list(step.script)
                if step.name == "release":
                    elements = [self._plan.variables.expand(element) for element in elements]
                body = self._step_body(elements)
                await self.taker.take(
                    stage, self._script_body(body, stage, self._script_scope), key=f"{stage} {number}", script=True
                )
        except JobFailure as failure:
            return failure
        finally:
            self.in_script = False
            self.script_over = True
        return None

    def _commands(self) -> Commands:
        """A renderer for one script: sections are counted anew in each."""
        return Commands(
            sections=self._plan.flags["FF_SCRIPT_SECTIONS"] and self._plan.payload.features.trace_sections,
            exit_check=self._plan.flags["FF_ENABLE_BASH_EXIT_CODE_CHECK"],
        )

    def _step_body(self, elements: list[str]) -> str:
        runner = self._plan.runner
        commands = self._commands()
        body = self._prelude("running") + change_directory(self._plan.directories.project)
        if runner.pre_build_script:
            body += commands.render([runner.pre_build_script], "pre_build_script")
        body += commands.render(elements, "script_step")
        if runner.post_build_script:
            body += commands.render([runner.post_build_script], "post_build_script")
        return body

    async def _after_script(self, failure: JobFailure | None) -> JobFailure | None:
        elements = [line for step in self._plan.payload.steps if step.name == "after_script" for line in step.script]
        if not elements:
            return failure
        body = self._prelude(_status_of(failure)) + change_directory(self._plan.directories.project)
        body += notice("Running after script...") + self._commands().render(elements, "after_script_step")
        limit_s = float(self._steps.known("after_script timeout") or 0)
        scope = StopScope(loop_time(self._steps.moment("after_script began"), limit_s))
        try:
            run = self._script_body(body, Stage.AFTER_SCRIPT, scope, _status_of(failure))
            await self.taker.take(Stage.AFTER_SCRIPT, run, script=True)
        except JobFailure as own:
            outcome = own.outcome
            if outcome.reason == Reason.TIMEOUT:
                outcome = tool_failed(1).outcome
            if not self._plan.settings.after_script_ignore_errors:
                return failure or JobFailure(outcome)
            text = f"after_script failed, but job will continue unaffected: {self._plan.worded(outcome).message}"
            self.taker.say("after_script failed", lambda now_ns: self._log.warning(text, time_ns=now_ns))
        return failure

    def _script_body(self, body: str, stage: str, scope: StopScope, job_status: str = "running") -> Body:
        async def run(step: Step) -> None:
            if self._scripted is None:
                await self._write_file_variables()
            elif stage == STEP_SCRIPT:
                self._log.warning(OLD_NAME, time_ns=step.at_ns)
                log.warning(OLD_NAME)
            try:
                status = await self._run(step, body, stage, scope, job_status)
            except Stopped as stop:
                if stop.reason is StopReason.CANCELED:
                    raise canceled() from stop
                if stop.reason is StopReason.TIMEOUT:
                    raise script_timed_out() from stop
                raise
            if status.exit_code != 0:
                raise script_failed(status)

        return run

    async def _run(self, step: Step, body: str, stage: str, scope: StopScope, job_status: str = "running") -> ExitStatus:
        in_tools = stage == Stage.GET_SOURCES
        text = frame(self._plan.script_shell, body)
        script = Script(text=text, stage=stage, predefined=in_tools, status=job_status)
        try:
            status = await self._scripts.run(step, script, scope)
        except ExecutorError as error:
            raise failure_of(error) from error
        now_ns = self._steps.moment(f"end {step.name}")
        if status.truncated and not self._log.is_full:
            self._log.warning("The runner could not keep all output of the script, the rest was dropped", time_ns=now_ns)
        if status.held:
            self._log.warning("Processes of the script still hold its output, they are not waited for", time_ns=now_ns)
        for remark in status.remarks:
            self._log.warning(remark, time_ns=now_ns)
        if status.leftovers:
            self._log.warning(f"The script left processes behind: {', '.join(status.leftovers)}", time_ns=now_ns)
        return status

    def _prelude(self, status: str) -> str:
        if self._scripted is not None:
            return self._scripted.prelude(status)
        go = self._plan.go
        defaults = go_defaults(go.defaults, go.proxied)
        return prelude(self._plan.exports(status), self._plan.env_file, xtrace=self._plan.settings.debug_trace, defaults=defaults)

    async def _write_file_variables(self) -> None:
        for variable in self._plan.variables.files():
            content = variable.value.encode(errors="surrogateescape")
            await self._environment.files.write(self._plan.variables.path(variable.key), content)

    # The end

    async def _clean_up(self, status: str) -> None:
        scripted = self._scripted

        async def work(step: Step) -> None:
            if scripted is not None:
                await scripted.clean_up(step, status)
                return
            await self.tidy()
            stage = self._log.open_stage()
            await self._sources.clean_up(stage, step.at_ns)
            stage.close(time.time_ns())

        try:
            await self.taker.take(Stage.CLEANUP_FILE_VARIABLES, work, script=scripted is not None)
        except JobFailure as failure:
            log.warning("cleanup of the job failed", error=failure.outcome.message)

    def _secret_files(self) -> list[str]:
        tmp = self._plan.directories.tmp
        files = [self._plan.variables.path(variable.key) for variable in self._plan.variables.files()]
        return [*files, self._plan.env_file, f"{tmp}/masking.db", f"{tmp}/.pyrunner-hook-env"]


def _status_of(failure: JobFailure | None) -> str:
    """``CI_JOB_STATUS`` behind the script."""
    if failure is None:
        return "success"
    return {Reason.CANCELED.value: "canceled", Reason.TIMEOUT.value: "timedout"}.get(failure.outcome.reason, "failed")
