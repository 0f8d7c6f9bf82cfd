"""The jobs of this daemon: from the body of a 201, or from a record on disk, to a closed record."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from executors.base import Executor
from executors.disk import KeepsOnDisk
from executors.registry import KINDS, HostSettings
from runner.config.model import Config, RunnerConfig, runner_from_json, runner_to_json
from runner.coordinator.payload import JobPayload, decode, salvage
from runner.daemon.connections import Connections
from runner.daemon.counters import Lease
from runner.daemon.disk import places_of
from runner.daemon.events import JobEvents
from runner.daemon.mirrors import mirror_access
from runner.daemon.own_account import remedy_for_own_account
from runner.daemon.refusal import refuse
from runner.daemon.scheduler import Offer
from runner.disk.budget import DiskBudget
from runner.disk.directories import HostTrees
from runner.errors import PayloadInvalid, RunnerError
from runner.gocache.access import NO_ACCESS, GoAccess
from runner.gocache.keeper import Keeper
from runner.job.containers import bare_spec
from runner.job.git_config import remote_of
from runner.job.outcome import Reason
from runner.job.plan import JobPlan, make_plan
from runner.job.record import (
    MAX_ADOPTIONS_WITHOUT_PROGRESS,
    Accepted,
    Adopted,
    JobRecord,
    RecordStore,
    boot_id,
)
from runner.job.run import JobRun, RunSettings
from runner.mirrors.access import NO_MIRROR, MirrorAccess
from runner.mirrors.store import Mirrors
from runner.ops.metrics import JobQueue
from runner.trace.upload import ReportResult

log = structlog.get_logger()

RETRY_REPORT_S = 3600.0
ADOPTION_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A job of an earlier daemon, to be run on: what it holds, and the work."""

    runner: RunnerConfig
    lease: Lease
    project_id: int
    work: Callable[[], Awaitable[None]]


class Jobs:
    """Owns every job of the process. ``running`` is keyed by the record's directory name."""

    def __init__(
        self,
        *,
        store: RecordStore,
        connections: Connections,
        config: Callable[[], Config],
        system_id: str,
        job_user: str | None,
        on_change: Callable[[], None] = lambda: None,
        events: JobEvents | None = None,
        disk: DiskBudget | None = None,
        go: Keeper | None = None,
        mirrors: Mirrors | None = None,
        orphan_grace_s: float | None = None,
    ) -> None:
        self._store = store
        self._connections = connections
        self._config = config
        self._system_id = system_id
        self._job_user = job_user
        self._on_change = on_change
        self._events = events
        self._disk = disk
        self._go = go
        self._mirrors = mirrors
        self._orphan_grace_s = orphan_grace_s
        self._executors: dict[str, Executor] = {}
        self._opening = asyncio.Lock()
        self._signal = ""
        self._grace_s = 0.0
        self._detaching = False
        self._said_account = False
        self.running: dict[str, JobRun] = {}
        self.unreported: dict[str, Callable[[], Awaitable[None]]] = {}

    async def open(self) -> None:
        """Open the executors that the configuration names, so that the first job does not wait."""
        for runner in self._config().runners:
            if runner.disabled is None:
                await self._executor(runner.executor)
                self._warn_of_account(runner)
        for name, executor in self._executors.items():
            table = KINDS[name].table
            entries = [runner for runner in self._config().runners if runner.executor == name and runner.disabled is None]
            if table is not None:
                executor.sweep([entry.tables.get(table, {}) for entry in entries], self._record_names)

    def _warn_of_account(self, runner: RunnerConfig) -> None:
        if not self._said_account and (remedy := remedy_for_own_account(runner, self._job_user)):
            self._said_account = True
            text = f"Jobs run under the account of the runner itself and can read its tokens: {remedy}"
            log.warning(text, runner=runner.short_token, executor=runner.executor)

    def _record_names(self) -> list[str]:
        return [directory.name for directory in self._store.directories()]

    async def close(self) -> None:
        """Close the executors; jobs that were detached go on."""
        for executor in self._executors.values():
            await executor.close()

    async def _executor(self, name: str) -> Executor:
        async with self._opening:
            if name not in self._executors:
                settings = self._config().pyrunner
                host = HostSettings(
                    state_dir=str(settings.state_dir),
                    pass_env=settings.pass_env,
                    hidden_env=self._secret_variables,
                    records=self._store.directories,
                    trees=HostTrees(),
                )
                executor = KINDS[name].load(host)
                await executor.open()
                self._executors[name] = executor
                if self._disk is not None and isinstance(executor, KeepsOnDisk):
                    self._disk.add(*executor.disk_kinds(), places=executor.disk_places)
        return self._executors[name]

    def _secret_variables(self) -> frozenset[str]:
        """Variables of this process that hold tokens: no job sees them."""
        return frozenset(name for runner in self._config().runners for name in runner.token_reference)

    # Jobs that come from the coordinator

    async def run_offer(self, offer: Offer) -> None:
        """Run a job that was just received, or report that it cannot be run."""
        raw = offer.result.raw
        try:
            incoming = self._store.receive(raw, runner_to_json(offer.runner))
        except OSError as error:
            await self._refuse(None, offer.runner, raw, f"the job cannot be recorded: {error.strerror}")
            return
        try:
            payload = decode(raw)
            offer.place(payload.job_info.project_id)
            record = self._accept(incoming, offer, payload)
        except PayloadInvalid as error:
            await self._refuse(incoming, offer.runner, raw, str(error))
            return
        except OSError as error:
            await self._refuse(incoming, offer.runner, raw, f"the job cannot be recorded: {error.strerror}")
            return
        self._log_received(offer, payload)
        try:
            await self._run(record, payload, offer.runner, offer.accepted)
        except Exception as error:
            log.exception("job could not be run", job=payload.id, error=str(error))
            record.close()
            await self.adopt(record.directory)

    def _accept(self, incoming: Path, offer: Offer, payload: JobPayload) -> JobRecord:
        tls = offer.result.tls
        facts = self._accepted(offer.runner, payload, offer.lease, offer.result.correlation_id, (tls.ca_chain, tls.cert, tls.key))
        return self._store.accept(incoming, offer.runner.short_token, facts, offer.result.raw)

    def _accepted(
        self,
        runner: RunnerConfig,
        payload: JobPayload,
        lease: Lease,
        correlation_id: str,
        tls: tuple[str, str, str] = ("", "", ""),
    ) -> Accepted:
        """What a record keeps of the moment of acceptance. ``tls``: chain, certificate and key for the job's own use."""
        return Accepted(
            job_id=payload.id,
            runner=msgspec.Raw(runner_to_json(runner)),
            system_id=self._system_id,
            accepted_at_ns=time.time_ns(),
            concurrent_id=lease.concurrent_id,
            project_slot=lease.project_slot,
            correlation_id=correlation_id,
            boot_id=boot_id(),
            working_dir=str(Path.cwd()),
            job_user=self._job_user,
            ca_chain=tls[0],
            client_cert=tls[1],
            client_key=tls[2],
        )

    async def _refuse(self, directory: Path | None, runner: RunnerConfig, raw: bytes, text: str) -> None:
        """Report a job failed that cannot be run, again each hour until the coordinator has heard it. ``directory`` is
        what is on disk of it, to be kept until then."""
        found = salvage(raw)
        log.error("Checking for jobs... failed", status=text, job=found[0] if found else None, runner=runner.short_token)
        trace = directory / "trace" if directory is not None else None
        if found is not None and not await refuse(self._connections.of(runner).job(*found), text, trace=trace):
            key = directory.name if directory is not None else f"{runner.short_token}-{found[0]}"
            self.unreported[key] = lambda: self._refuse(directory, runner, raw, text)
        elif directory is not None:
            await self._take_down(directory, runner)
            self._store.set_aside(directory)

    async def _take_down(self, directory: Path, runner: RunnerConfig) -> None:
        """End whatever still runs of a job that nobody follows any more."""
        executor = await self._executor(runner.executor)
        await executor.environment(bare_spec(runner, KINDS[runner.executor], directory)).cleanup()

    def _log_received(self, offer: Offer, payload: JobPayload) -> None:
        remote = remote_of(payload.git_info.repo_url, token="", clone_url="", project_path="")
        log.info(
            "Checking for jobs... received",
            job=payload.id,
            repo_url=remote.clean_url,
            runner=offer.runner.short_token,
            runner_name=offer.runner.name,
            correlation_id=offer.result.correlation_id,
        )

    # Jobs of an earlier daemon, and of this one once they broke

    def adoptable(self) -> list[Adoption]:
        """Every job on disk, in the order in which their slots are taken: those that had none come last. None when the
        next process is to have them."""
        if self._detaching:
            return []
        found = [self._adoption(directory) for directory in self._store.directories()]
        found += [self._unfinished(directory) for directory in self._store.unfinished()]
        return [adoption for adoption in found if adoption is not None]

    def _adoption(self, directory: Path) -> Adoption | None:
        try:
            record = self._store.load(directory)
            payload, runner, accepted = record.payload, runner_from_json(record.accepted.runner), record.accepted
            places = self._places(record, payload, runner)
            record.close()
        except (RunnerError, msgspec.DecodeError) as error:
            return self._unusable(directory, str(error))
        lease = Lease(token=runner.token, concurrent_id=accepted.concurrent_id, project_slot=accepted.project_slot)
        if self._disk is not None:
            self._disk.holds.hold(places)  # from here on, whenever the job's turn comes

        async def work() -> None:
            try:
                await self.adopt(directory)
            finally:
                if self._disk is not None:
                    self._disk.holds.release(places)

        return Adoption(runner=runner, lease=lease, project_id=payload.job_info.project_id, work=work)

    def _places(self, record: JobRecord, payload: JobPayload, runner: RunnerConfig) -> Sequence[str]:
        """Directories that the job of a record works in; none where nobody can say."""
        try:
            plan = make_plan(record, payload, KINDS[runner.executor])
            return places_of(plan, self._mirrors.places(plan.sources().remote.clean_url) if self._mirrors is not None else ())
        except Exception as error:
            log.exception("directories of a job are unknown", record=record.directory.name, error=str(error))
            return ()

    def _unfinished(self, directory: Path) -> Adoption | None:
        """A body that was received and no more: the job has not begun, and begins now."""
        try:
            raw = (directory / "payload.json").read_bytes()
            runner = runner_from_json((directory / "runner.json").read_bytes())
            payload = decode(raw)
        except (OSError, RunnerError, msgspec.DecodeError) as error:
            return self._unusable(directory, str(error))
        lease = Lease(token=runner.token)

        async def work() -> None:
            record = self._store.accept(directory, runner.short_token, self._accepted(runner, payload, lease, ""), raw)
            record.close()
            await self.adopt(record.directory)

        return Adoption(runner=runner, lease=lease, project_id=payload.job_info.project_id, work=work)

    def _unusable(self, directory: Path, text: str) -> Adoption | None:
        """What cannot be read is reported failed, where its body and its runner still can, and set aside."""
        log.error("job record cannot be used, it is set aside", error=text, record=directory.name)
        try:
            runner = _runner_of(directory)
        except (OSError, RunnerError, msgspec.DecodeError):
            self._store.set_aside(directory)
            return None
        try:
            raw = (directory / "payload.json").read_bytes()
        except OSError:
            raw = b""
        return Adoption(
            runner=runner,
            lease=Lease(token=runner.token),
            project_id=0,
            work=lambda: self._refuse(directory, runner, raw, f"the record of the job cannot be used: {text}"),
        )

    async def adopt(self, directory: Path) -> None:
        """Run a job on from its record. One whose adoption breaks again and again is reported failed and set aside."""
        while True:
            record = self._store.load(directory)
            payload, runner = record.payload, runner_from_json(record.accepted.runner)
            if record.adoptions_without_progress() >= MAX_ADOPTIONS_WITHOUT_PROGRESS:
                record.close()
                text = "the runner cannot go on with this job: see its own log"
                await self._refuse(directory, runner, record.raw_payload, text)
                return
            record.journal.append(Adopted(at_ns=time.time_ns(), pid=os.getpid()))
            log.info("job adopted", job=payload.id, runner=runner.short_token, record=directory.name)
            try:
                await self._run(record, payload, runner, lambda: None)
            except Exception as error:
                log.exception("adopted job could not be run on", job=payload.id, error=str(error))
                record.close()
                await asyncio.sleep(ADOPTION_PAUSE_S)
            else:
                return

    # All jobs

    async def _run(
        self,
        record: JobRecord,
        payload: JobPayload,
        runner: RunnerConfig,
        on_accepted: Callable[[], None],
    ) -> None:
        executor = await self._executor(runner.executor)
        if record.outcome is None:
            executor.expect(record.directory)
        coordinator = self._connections.of(runner)
        run = JobRun(
            record=record,
            payload=payload,
            kind=KINDS[runner.executor],
            executor=executor,
            coordinator=coordinator.job(payload.id, payload.token),
            settings=RunSettings(
                interrupted_reason=self._interrupted_reason(payload),
                orphan_grace_s=self._orphan_grace_s,
                keeps_logs=bool(self._config().pyrunner.disk.budget("records")),
            ),
            go=await self._go_access(record, payload, runner, executor),
            mirror=await self._mirror_access(record, payload, runner, executor),
            on_accepted=on_accepted,
            on_stage=lambda stage, seconds: self._stage_ended(runner, stage, seconds),
        )
        name = record.directory.name
        self.running[name] = run
        self._on_change()
        self._began(runner, run)
        facts = {
            "job": payload.id,
            "project": payload.job_info.project_id,
            "runner": runner.short_token,
            "runner_name": runner.name,
        }
        try:
            with bound_contextvars(**facts):
                log.info("Added job to processing list", pipeline_id=payload.job_info.pipeline_id)
                _log_images(run.plan)
                if self._detaching:
                    run.detach()
                elif self._signal:
                    run.interrupt(self._signal, grace_s=self._grace_s)
                async with self._held(run):
                    result = await run.run()
                if result is ReportResult.UNREPORTED:
                    self.unreported[name] = lambda: self.adopt(record.directory)
                if result is not None:
                    log.info("Removed job from processing list")
                    if self._go is not None:
                        self._go.take_back(record.directory)
        finally:
            del self.running[name]
            self._on_change()
            self._ended(runner, run)

    def _began(self, runner: RunnerConfig, run: JobRun) -> None:
        if self._events is None:
            return
        info = run.payload.job_info
        queue = JobQueue(
            waited_s=info.time_in_queue_seconds,
            project_jobs=info.project_jobs_running_on_instance_runners_count,
            size=info.queue_size,
            depth=info.queue_depth,
        )
        self._events.job_began(runner, queue)
        if run.plan.uses_inputs:
            self._events.inputs_used()

    def _ended(self, runner: RunnerConfig, run: JobRun) -> None:
        if self._events is None or run.outcome is None:
            return
        seconds = (time.time_ns() - run.record.accepted.accepted_at_ns) / 1e9
        self._events.job_ended(runner, run.outcome.reason, seconds)
        if run.costs is not None:
            self._events.job_cost(runner, run.costs)

    def _stage_ended(self, runner: RunnerConfig, stage: str, duration_s: float) -> None:
        if self._events is not None:
            self._events.stage_ended(runner, stage, duration_s)

    def _held(self, run: JobRun) -> contextlib.AbstractAsyncContextManager[None]:
        """The time in which nothing that the job works with is trimmed."""
        return (
            contextlib.nullcontext()
            if self._disk is None
            else self._disk.held(places_of(run.plan, [run.mirror.place] if run.mirror.place else []))
        )

    async def _mirror_access(
        self, record: JobRecord, payload: JobPayload, runner: RunnerConfig, executor: Executor
    ) -> MirrorAccess:
        if self._mirrors is None or not runner.git.mirror:
            return NO_MIRROR
        return await mirror_access(self._mirrors, make_plan(record, payload, KINDS[runner.executor]), executor)

    async def _go_access(self, record: JobRecord, payload: JobPayload, runner: RunnerConfig, executor: Executor) -> GoAccess:
        if self._go is None:
            return NO_ACCESS
        user = runner.pyrunner.job_user or record.accepted.job_user
        return await self._go.give(record.directory, payload, runner, executor, user)

    def _interrupted_reason(self, payload: JobPayload) -> str:
        reason = self._config().pyrunner.interrupted_failure_reason
        if reason == "auto":
            known = Reason.INTERRUPTED in payload.features.failure_reasons
            return Reason.INTERRUPTED if known else Reason.SYSTEM
        return reason

    def abort(self, signal_name: str, *, grace_s: float) -> None:
        """Stop every job, also one that is only just being accepted."""
        self._signal, self._grace_s = signal_name, grace_s
        for run in list(self.running.values()):
            run.interrupt(signal_name, grace_s=grace_s)

    def detach(self, *, patience_s: float = 0.0) -> None:
        """Let go of every job; of one that is in a stage of the runner's own within ``patience_s``."""
        self._detaching = True
        for run in list(self.running.values()):
            run.detach(patience_s=patience_s)

    async def report_later(self) -> None:
        """Try again, once an hour, to report what could not be reported."""
        while True:
            await asyncio.sleep(RETRY_REPORT_S)
            due, self.unreported = self.unreported, {}
            async with asyncio.TaskGroup() as group:
                for name, work in due.items():
                    group.create_task(self._report_again(name, work), name=f"report-{name}")

    async def _report_again(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            log.exception("job could not be reported", record=name, error=str(error))
            self.unreported[name] = work


def _runner_of(directory: Path) -> RunnerConfig:
    """The runner entry that got a job, from whatever is left of its record."""
    try:
        return runner_from_json((directory / "runner.json").read_bytes())
    except FileNotFoundError:
        return runner_from_json(msgspec.json.decode((directory / "accepted.json").read_bytes(), type=Accepted).runner)


def _log_images(plan: JobPlan) -> None:
    if not plan.flags["FF_LOG_IMAGES_CONFIGURED_FOR_JOB"]:
        return
    if plan.payload.image.name:
        log.info("Image configured for job", image_name=plan.variables.expand(plan.payload.image.name))
    for service in plan.payload.services:
        log.info("Service image configured for job", image_name=plan.variables.expand(service.name))
