"""One job, from its acceptance to the moment the coordinator has taken its end.

The same for the process that accepted the job and for one that adopts it: :mod:`runner.job.steps` passes over what has
been done.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from executors.base import Environment, Executor, JobSpec, ScriptedPlace
from executors.errors import ExecutorError
from executors.registry import Kind
from runner.coordinator.payload import JobPayload, unsupported_options
from runner.coordinator.port import JobCoordinator, JobState, JobUpdate, Verdict
from runner.gocache.access import NO_ACCESS, GoAccess
from runner.identity import NAME, REVISION, VERSION
from runner.job.company import Company
from runner.job.costs import Costs, decode_costs, encode_costs, show, sum_up, write_report
from runner.job.outcome import (
    EXIT_UNSUPPORTED_OPTIONS,
    JobFailure,
    Outcome,
    Reason,
    canceled,
    failure_of,
    interrupted,
    job_timed_out,
    system_failure,
)
from runner.job.path import JobPath
from runner.job.plan import JobPlan, make_plan
from runner.job.record import Acknowledged, Decided, JobRecord, PatchSent, ScopeStopped
from runner.job.scripts import ScriptRunner
from runner.job.secrets import SecretsStage
from runner.job.steps import Steps
from runner.mirrors.access import NO_MIRROR, MirrorAccess
from runner.scope import Stopped, StopReason, StopScope, finish
from runner.trace.log import JobLog
from runner.trace.spool import Spool
from runner.trace.upload import ReportResult, TraceUploader, UploadSettings

log = structlog.get_logger()

TIDY_S = 15.0
# The least that a driver gets to take a place down when this process stops, and how often that is looked at.
TAKE_DOWN_S = 5.0
LOOK_S = 0.2
RUN_AND_SCRIPT = "the `run` and `script` keywords cannot be used together"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What the process that hosts the job decides. ``interrupted_reason`` is what an interrupted job reports;
    ``orphan_grace_s`` how long its scripts go on without any daemon (None: to their end); ``keeps_logs`` whether log and
    report of a job that has ended stay."""

    interrupted_reason: str = Reason.SYSTEM
    orphan_grace_s: float | None = None
    keeps_logs: bool = False


class JobRun:
    """Runs one job. ``run`` never raises for what can happen to a job; it returns how the report ended, None when the
    job was handed to another process."""

    def __init__(
        self,
        *,
        record: JobRecord,
        payload: JobPayload,
        kind: Kind,
        executor: Executor,
        coordinator: JobCoordinator,
        settings: RunSettings,
        go: GoAccess = NO_ACCESS,
        mirror: MirrorAccess = NO_MIRROR,
        on_accepted: Callable[[], None] = lambda: None,
        on_stage: Callable[[str, float], None] = lambda stage, seconds: None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.record = record
        self.payload = payload
        self._coordinator = coordinator
        self._settings = settings
        self._on_accepted = on_accepted
        self._on_stage = on_stage
        self._clock_ns = clock_ns
        self._kind = kind
        self._executor = executor
        self._go = go
        self.mirror = mirror
        self.plan: JobPlan = make_plan(record, payload, kind, go)
        self._environment: Environment = self._make_environment()
        self._spool = Spool(record.trace_path, self.plan.runner.output_limit * 1024)
        self._log = JobLog(self._spool, self.plan.trace_settings())
        self._steps = Steps(record, self._log, clock_ns)
        self._secrets = SecretsStage(self.plan, self._log, self._steps, clock_ns)
        self.job_scope = StopScope(on_stop=lambda reason: self._note_stop("job", reason))
        self.script_scope = StopScope(on_stop=lambda reason: self._note_stop("script", reason))
        self._signal = ""
        self._early_failure: ExecutorError | None = None
        self._is_let_go = False
        record.journal.on_broken = self._spool.on_broken = self._note_full_disk
        self._restore_stops()
        self._grace_s = self.plan.term_grace_s
        self.path: JobPath | None = None
        self.outcome: Outcome | None = None
        self._uploader = TraceUploader(
            coordinator=coordinator,
            spool=self._spool,
            settings=UploadSettings(
                debug_trace=self.plan.settings.debug_trace or self.plan.settings.debug_services,
                dynamic_force_send=self.plan.runner.feature_flags.get("FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", False),
                attempts=self.plan.runner.job_status_final_update_retry_limit,
            ),
            on_cancel=self.cancel,
            on_abort=lambda: self._stop_job(StopReason.ABORTED),
            on_send=lambda end: record.journal.append(PatchSent(end=end)),
            promised=record.highest_sent,
        )

    def _spec(self) -> JobSpec:
        return self.plan.spec(orphan_grace_s=self._settings.orphan_grace_s, mounts=self.mirror.mounts)

    def _make_environment(self) -> Environment:
        environment = self._executor.environment(self._spec())
        self._company = Company(self.record.directory, environment) if self.plan.settings.debug_services else None
        if self._company is not None:
            self._company.resume()
        return environment

    # What may happen to a running job

    def cancel(self) -> None:
        """The server asks for a graceful cancel: it ends the script, or everything when that has not begun."""
        if self.path is None or not (self.path.in_script or self.path.script_over):
            self._stop_job(StopReason.CANCELED)
        elif self.path.in_script:
            self.script_scope.stop(StopReason.CANCELED)

    def interrupt(self, signal_name: str, *, grace_s: float) -> None:
        """This process stops: end the job within the given time, then report it."""
        self._signal = signal_name
        self._grace_s = min(self._grace_s, grace_s)
        self._uploader.hurry()
        self._stop_job(StopReason.INTERRUPTED)

    def detach(self, *, patience_s: float = 0.0) -> None:
        """Let go of the job without touching it. ``patience_s`` is how long it may take to end a stage that the next
        process would have to begin again."""
        if patience_s > 0 and self.path is not None and self.path.taker.in_tools:
            self.path.taker.on_tools_end = self.detach
            asyncio.get_running_loop().call_later(patience_s, self.detach)
            return
        self._is_let_go = True
        self.job_scope.stop(StopReason.DETACHED)
        self._uploader.end()

    def _note_full_disk(self, text: str) -> None:
        log.error(text, job=self.payload.id)

    @property
    def stage(self) -> str:
        """Where the job is; empty before its first stage."""
        return self.path.taker.stage if self.path is not None else ""

    @property
    def log_progress(self) -> tuple[int, int]:
        """Bytes of the log, and those of them that the coordinator does not have yet."""
        return self._spool.size, max(self._spool.size - self._uploader.offset, 0)

    @property
    def is_detached(self) -> bool:
        """Whether another process goes on with the job."""
        return self.job_scope.reason is StopReason.DETACHED

    def _stop_job(self, reason: StopReason) -> None:
        self.job_scope.stop(reason)

    def _note_stop(self, scope: str, reason: StopReason) -> None:
        if reason is not StopReason.DETACHED:
            self.record.journal.append(ScopeStopped(scope=scope, reason=reason.value, signal=self._signal))

    def _restore_stops(self) -> None:
        for fact in list(self.record.journal.facts):
            if isinstance(fact, ScopeStopped):
                scope = self.job_scope if fact.scope == "job" else self.script_scope
                scope.reason = scope.reason or StopReason(fact.reason)
                self._signal = fact.signal or self._signal

    # From acceptance to report

    async def run(self) -> ReportResult | None:
        """See the class."""
        decided = self.record.outcome or await self._decide()
        if decided is None:
            self._steps.settle()
            await self._environment.detach()
            return None
        self.outcome = decided.outcome
        return await self._close(decided)

    async def _decide(self) -> Decided | None:
        """Work until the job has a result; None when it is handed on."""
        try:
            rejected = self._reject()
            decided = rejected or await self._accept_and_work()
        except Exception as error:
            log.exception("job broke the runner", error=str(error))
            decided = self._conclude(system_failure(f"panic: {_names(error)}").outcome)
        if decided is not None:
            self.record.journal.append(decided)
        return decided

    def _reject(self) -> Decided | None:
        """Refuse what no executor can do: the whole log is the message (``job-lifecycle.md`` 2.5)."""
        text = unsupported_options(self.payload)
        if not text and self.payload.run and any(step.script for step in self.payload.steps):
            text = RUN_AND_SCRIPT
        if not text:
            return None
        self._log.bare(f"{text}\n", time_ns=self._clock_ns())
        self._log.finish()
        outcome = Outcome(reason=Reason.SYSTEM, message=text, exit_code=EXIT_UNSUPPORTED_OPTIONS)
        return Decided(outcome=outcome)

    async def _accept_and_work(self) -> Decided | None:
        async with asyncio.TaskGroup() as group:
            # The supervisor starts while the coordinator hears that the job runs.
            ready = group.create_task(self._prepare_early(), name="prepare")
            decided = await self._acknowledge()
            await ready
        if decided is not None:
            return decided
        async with asyncio.TaskGroup() as group:
            group.create_task(self._upload(), name="trace")
            try:
                outcome = await self._work()
            finally:
                self._uploader.end()
        if outcome is None:
            return None
        if self.path is not None:
            await self._sum_up()
        return self._conclude(outcome)

    async def _sum_up(self) -> None:
        """What the job cost, found out once: whoever writes the end of the log again writes the same."""
        if self._steps.known("costs") is None:
            now_ns = self._steps.moment("concluded")
            costs = await sum_up(self.record, self._environment, log_bytes=self._spool.size, now_ns=now_ns)
            self._steps.note("costs", lambda: encode_costs(costs))

    @functools.cached_property
    def costs(self) -> Costs | None:
        """What the job cost, once it has ended; None for one that never began."""
        text = self._steps.known("costs")
        return decode_costs(text) if text is not None else None

    async def _upload(self) -> None:
        if self.record.adopted:
            await self._uploader.find_offset()
        await self._uploader.run()

    async def _prepare_early(self) -> None:
        """Begin with the preparation; its errors are shown in its stage."""
        # Secrets may name the image and the directories.
        if self.plan.misconfigured is not None or self._secrets.is_due:
            return
        try:
            await self._environment.prepare()
        except ExecutorError as error:
            log.debug("early preparation failed", error=str(error))
            self._early_failure = error

    async def _acknowledge(self) -> Decided | None:
        """Tell the coordinator that the job runs; a result where it does not want that (``runner-api.md`` 3.6)."""
        if any(isinstance(fact, Acknowledged) for fact in self.record.journal.facts):
            return None
        answer = await self._coordinator.update(JobUpdate(state=JobState.RUNNING))
        if answer.verdict in (Verdict.ABORT, Verdict.GONE):
            return Decided(outcome=canceled().outcome, quiet=True)
        if answer.canceling:
            return Decided(outcome=canceled().outcome, as_is=True)
        self.record.journal.append(Acknowledged(at_ns=self._clock_ns()))
        self._on_accepted()
        return None

    async def _work(self) -> Outcome | None:
        """The header and the path of the job; None when it was detached."""
        if self.plan.refused is not None:
            return self.plan.refused.outcome
        self._header()
        failure: JobFailure | None
        try:
            async with self.job_scope:
                await self._resolve_secrets()
                self._warn_of_settings()
                deadline = self._deadline()
                self.job_scope.set_deadline(deadline)
                self.path = self._make_path(deadline)
                await self.path.run()
        except Stopped as stop:
            if stop.reason is StopReason.DETACHED:
                return None
            failure = self._stopped(stop.reason)
        except JobFailure as error:
            failure = error
        except ExecutorError as error:
            failure = failure_of(error)
        else:
            failure = None
        finally:
            # Before the secrets are there nothing is.
            if not self.is_detached and not self._secrets.is_due:
                await finish(self._tidy(self.path or self._make_path(self._deadline())), within_s=TIDY_S)
        if self.is_detached or not await self._take_down():
            # Let go at the very end: the next process finds the stages ended, and concludes.
            return None
        return Outcome() if failure is None else self.plan.worded(failure.outcome)

    def _make_path(self, deadline: float) -> JobPath:
        scripts = ScriptRunner(
            self._environment,
            self._log,
            self._steps,
            is_detached=lambda: self.is_detached,
            grace_s=lambda: self._grace_s,
            force_s=self.plan.force_kill_s,
            company=self._company,
        )
        return JobPath(
            plan=self.plan,
            environment=self._environment,
            coordinator=self._coordinator,
            job_log=self._log,
            steps=self._steps,
            scripts=scripts,
            job_scope=self.job_scope,
            script_scope=self.script_scope,
            is_detached=lambda: self.is_detached,
            deadline=deadline,
            replan=lambda place: make_plan(self.record, self.payload, self._kind, self._go, place),
            lender=self.mirror.lender,
            on_stage=self._stage_ended,
            early_failure=self._early_failure,
        )

    def _stage_ended(self, stage: str, seconds: float) -> None:
        if self.plan.flags["FF_EXPORT_HIGH_CARDINALITY_METRICS"]:
            self._on_stage(stage, seconds)

    async def _take_down(self) -> bool:
        """Have the driver of the place, where there is one, take it down: the log still hears how that went. False when
        another process is to do it."""
        place = self._environment
        if not isinstance(place, ScriptedPlace) or self._steps.ended("take down") is not None:
            return True
        step = self._steps.begin("take down", replayable=False)
        work = asyncio.create_task(place.tear_down(), name="take-down")
        loop = asyncio.get_running_loop()
        interrupted_at: float | None = None
        while not work.done():
            await asyncio.wait([work], timeout=LOOK_S)
            if self._is_let_go:
                await self._environment.detach()
                work.cancel()
            elif self.job_scope.reason is StopReason.INTERRUPTED:
                interrupted_at = interrupted_at or loop.time()
                if loop.time() >= interrupted_at + max(self._grace_s, TAKE_DOWN_S):
                    work.cancel()
        if self._is_let_go and work.cancelled():
            return False
        problem = "it took too long" if work.cancelled() else work.result()
        if problem:
            text = f"Cleanup script failed: {problem}"
            self._log.warning(text, time_ns=self._clock_ns())
            log.warning(text)
        self._steps.end(step)
        return True

    async def _tidy(self, path: JobPath) -> None:
        try:
            async with asyncio.timeout(TIDY_S):
                await path.tidy()
        except TimeoutError:
            log.warning("files of the job could not be removed in time")

    def _header(self) -> None:
        """The first lines of the log (``job-lifecycle.md`` 6.4)."""
        if self._steps.ended("header") is not None:
            return
        step = self._steps.begin("header", replayable=True)
        now_ns = step.at_ns
        runner = self.plan.runner
        self._log.plain(f"Running with {NAME} {VERSION} ({REVISION})", time_ns=now_ns)
        if runner.token:
            text = f"  on {runner.name} {runner.short_token}, system ID: {self.record.accepted.system_id}"
            self._log.plain(text, time_ns=now_ns)
        flags = self.plan.flags.header()
        if flags:
            self._log.plain(f"  {flags}", time_ns=now_ns)
        self._steps.end(step)

    async def _resolve_secrets(self) -> None:
        """Stage 0; what comes out counts for everything behind it, the masks of the log included."""
        if not self._secrets.is_due:
            return
        await self._secrets.take()
        self.plan = make_plan(self.record, self.payload, self._kind, self._go)
        self._log.mask(self.plan.variables.masks())
        self._environment = self._make_environment()

    def _warn_of_settings(self) -> None:
        if self._steps.ended("settings") is not None:
            return
        step = self._steps.begin("settings", replayable=True)
        if self.plan.warnings:
            self._log.warning("\n".join(self.plan.warnings), time_ns=step.at_ns)
        self._steps.end(step)

    def _deadline(self) -> float:
        """When the job's time is over, on the loop's clock, whoever runs it."""
        began_s = self._steps.moment("job began") / 1e9
        return asyncio.get_running_loop().time() + began_s + self.payload.timeout_s - time.time()

    def _stopped(self, reason: StopReason) -> JobFailure:
        match reason:
            case StopReason.TIMEOUT:
                return job_timed_out(self.payload.timeout_s)
            case StopReason.INTERRUPTED:
                self._say_unfinished()
                return interrupted(self._signal, self._settings.interrupted_reason)
            case _:
                return canceled()

    def _say_unfinished(self) -> None:
        """An interrupted script is not followed by its after_script: say so where there is one."""
        has_one = any(step.name == "after_script" and step.script for step in self.payload.steps)
        if has_one and self.path is not None and self.path.script_over and self.path.taker.stage != "after_script":
            text = "after_script failed, but job will continue unaffected: context canceled"
            self._log.warning(text, time_ns=self._steps.moment("unfinished"))

    def _conclude(self, outcome: Outcome) -> Decided:
        """The last lines of the log."""
        now_ns = self._steps.moment("concluded")
        self._log.begin_anew()
        costs = self.costs
        if costs is not None and self.plan.runner.pyrunner.job_costs:
            show(self._log, costs, time_ns=now_ns)
        if outcome.succeeded:
            self._log.info(outcome.last_line, time_ns=now_ns)
        else:
            self._log.error(outcome.last_line, time_ns=now_ns)
        self._log.finish()
        return Decided(outcome=outcome)

    async def _close(self, decided: Decided) -> ReportResult:
        """Report the result, and take the place of the job down beside it."""
        async with asyncio.TaskGroup() as group:
            cleanup = group.create_task(self._environment.cleanup(), name="cleanup")
            result = ReportResult.REFUSED if decided.quiet else await self._report(decided)
            await cleanup
        self._log_end(decided.outcome)
        self._spool.close()
        if result is ReportResult.UNREPORTED or self._settings.keeps_logs:
            write_report(self.record, self.costs, decided.outcome, project_id=self.payload.job_info.project_id)
        if result is ReportResult.UNREPORTED:
            self.record.close()
        else:
            self.record.remove(keeps_log=self._settings.keeps_logs)
        return result

    async def _report(self, decided: Decided) -> ReportResult:
        if self.record.adopted:
            await self._uploader.find_offset()
        known = [decided.outcome.reason] if decided.as_is else self.payload.features.failure_reasons
        return await self._uploader.report(decided.outcome.final_update(known))

    def _log_end(self, outcome: Outcome) -> None:
        seconds = (self._clock_ns() - self.record.accepted.accepted_at_ns) / 1e9
        facts = {"duration_s": seconds, "job-status": "success" if outcome.succeeded else "failed"}
        if outcome.succeeded:
            log.info("Job succeeded", **facts)
        else:
            log.warning(outcome.last_line, failure_reason=outcome.reason, exit_code=outcome.exit_code, **facts)


def _names(error: BaseException) -> str:
    """The kinds of an unexpected error, without any of its values."""
    if isinstance(error, BaseExceptionGroup):
        return ", ".join(sorted({_names(part) for part in error.exceptions}))
    return type(error).__name__
