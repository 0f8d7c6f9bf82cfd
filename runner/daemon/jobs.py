"""The jobs of this daemon: from the body of a 201, or from a record on disk, to a closed record."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import structlog
from structlog.contextvars import bound_contextvars

from executors.base import Executor, ExecutorError
from executors.registry import KINDS, HostSettings
from runner.config.model import Config, RunnerConfig, runner_from_json, runner_to_json
from runner.coordinator.client import Coordinator
from runner.coordinator.payload import JobPayload, decode, salvage
from runner.coordinator.port import EMPTY_LOG, JobState, JobUpdate
from runner.daemon.connections import Connections
from runner.daemon.counters import Lease
from runner.daemon.scheduler import Offer
from runner.errors import PayloadInvalid, RecordInvalid, RunnerError
from runner.job.git_config import remote_of
from runner.job.outcome import Reason
from runner.job.record import (
    MAX_ADOPTIONS_WITHOUT_PROGRESS,
    Accepted,
    Adopted,
    JobRecord,
    RecordStore,
    boot_id,
)
from runner.job.run import JobRun, RunSettings
from runner.trace.upload import ReportResult

log = structlog.get_logger()

RETRY_REPORT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """A job of an earlier daemon, to be run on: what it holds, and the work."""

    runner: RunnerConfig
    lease: Lease
    project_id: int
    work: Callable[[], Awaitable[None]]


class JobEvents(Protocol):
    """What is counted of jobs (``config-cli-daemon.md`` 12.1)."""

    def job_began(self, runner: RunnerConfig, queued_s: float, project_jobs: str) -> None:
        """A job was taken."""
        ...

    def job_ended(self, runner: RunnerConfig, reason: str, duration_s: float) -> None:
        """A job has its result."""
        ...


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
        orphan_grace_s: float | None = None,
    ) -> None:
        self._store = store
        self._connections = connections
        self._config = config
        self._system_id = system_id
        self._job_user = job_user
        self._on_change = on_change
        self._events = events
        self._orphan_grace_s = orphan_grace_s
        self._executors: dict[str, Executor] = {}
        self._signal = ""
        self._grace_s = 0.0
        self._detaching = False
        self.running: dict[str, JobRun] = {}
        self.unreported: dict[str, JobRun] = {}

    async def open(self) -> None:
        """Open the executors that the configuration names, so that the first job does not wait."""
        for runner in self._config().runners:
            if runner.disabled is None:
                await self._executor(runner.executor)

    async def close(self) -> None:
        """Close the executors; jobs that were detached go on."""
        for executor in self._executors.values():
            await executor.close()

    async def _executor(self, name: str) -> Executor:
        if name not in self._executors:
            config = self._config()
            hidden = frozenset(name for runner in config.runners for name in runner.token_reference)
            host = HostSettings(state_dir=str(config.pyrunner.state_dir), pass_env=config.pyrunner.pass_env, hidden_env=hidden)
            executor = KINDS[name].load(host)
            await executor.open()
            self._executors[name] = executor
        return self._executors[name]

    # Jobs that come from the coordinator

    async def run_offer(self, offer: Offer) -> None:
        """Run a job that was just received. Never raises."""
        try:
            await self._run_offer(offer)
        except (RunnerError, ExecutorError, OSError) as error:
            log.error("job could not be accepted", error=str(error), runner=offer.runner.short_token)

    async def _run_offer(self, offer: Offer) -> None:
        raw = offer.result.raw
        incoming = self._store.receive(raw, runner_to_json(offer.runner))
        coordinator = self._connections.of(offer.runner)
        try:
            payload = decode(raw)
        except PayloadInvalid as error:
            await self._refuse(coordinator, raw, error)
            self._store.discard(incoming)
            return
        offer.place(payload.job_info.project_id)
        tls = offer.result.tls
        accepted = self._accepted(
            offer.runner, payload, offer.lease, offer.result.correlation_id, (tls.ca_chain, tls.cert, tls.key)
        )
        record = self._store.accept(incoming, offer.runner.short_token, accepted, raw)
        self._log_received(offer, payload)
        await self._run(record, payload, offer.runner, coordinator, offer.accepted)

    def _accepted(
        self,
        runner: RunnerConfig,
        payload: JobPayload,
        lease: Lease,
        correlation_id: str,
        tls: tuple[str, str, str] = ("", "", ""),
    ) -> Accepted:
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

    async def _refuse(self, coordinator: Coordinator, raw: bytes, error: PayloadInvalid) -> None:
        """A job that cannot be read is reported failed, where at least its id and token can."""
        found = salvage(raw)
        log.error("Checking for jobs... failed", status=str(error), job=found[0] if found else None)
        if found is not None:
            update = JobUpdate(state=JobState.FAILED, failure_reason=Reason.SYSTEM, checksum=EMPTY_LOG)
            await coordinator.job(*found).update(update)

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

    # Jobs of an earlier daemon

    def adoptable(self) -> list[Adoption]:
        """Every job on disk. A record that cannot be read, or that broke its adoption before, is set aside."""
        found = [adoption for directory in self._store.directories() if (adoption := self._adoption(directory))]
        for directory in self._store.unfinished():
            adoption = self._unfinished(directory)
            if adoption is not None:
                found.append(adoption)
        return found

    def _adoption(self, directory: Path) -> Adoption | None:
        try:
            record = self._store.load(directory)
        except RecordInvalid as error:
            aside = self._store.set_aside(directory)
            log.error("job record cannot be read, it is set aside", error=str(error), path=str(aside))
            return None
        runner = runner_from_json(record.accepted.runner)
        tries = record.adoptions_without_progress()
        lease = Lease(
            token=runner.token,
            concurrent_id=record.accepted.concurrent_id,
            project_slot=record.accepted.project_slot,
        )
        try:
            payload = record.payload
        except PayloadInvalid as error:
            log.error("job record cannot be used, it is set aside", error=str(error))
            record.close()
            self._store.set_aside(directory)
            return None
        if tries >= MAX_ADOPTIONS_WITHOUT_PROGRESS:
            work = self._set_aside_work(record, payload, runner)
        else:
            work = self._adopted_work(record, payload, runner)
        return Adoption(runner=runner, lease=lease, project_id=payload.job_info.project_id, work=work)

    def _adopted_work(self, record: JobRecord, payload: JobPayload, runner: RunnerConfig) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            record.journal.append(Adopted(at_ns=time.time_ns(), pid=os.getpid()))
            log.info("job adopted", job=payload.id, runner=runner.short_token, record=record.directory.name)
            try:
                await self._run(record, payload, runner, self._connections.of(runner), lambda: None)
            except (RunnerError, ExecutorError, OSError, KeyError) as error:
                log.error("adopted job could not be run on", job=payload.id, error=str(error))

        return work

    def _set_aside_work(self, record: JobRecord, payload: JobPayload, runner: RunnerConfig) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            record.close()
            aside = self._store.set_aside(record.directory)
            log.error("adoption of the job failed repeatedly, it is set aside", job=payload.id, path=str(aside))
            update = JobUpdate(state=JobState.FAILED, failure_reason=Reason.SYSTEM, checksum=EMPTY_LOG)
            await self._connections.of(runner).job(payload.id, payload.token).update(update)

        return work

    def _unfinished(self, directory: Path) -> Adoption | None:
        """A body that was received and no more: the job has not begun, and begins now."""
        try:
            raw = (directory / "payload.json").read_bytes()
            runner = runner_from_json((directory / "runner.json").read_bytes())
            payload = decode(raw)
        except (OSError, PayloadInvalid, msgspec.DecodeError) as error:
            log.error("received job cannot be used", error=str(error))
            self._store.discard(directory)
            return None
        lease = Lease(token=runner.token, concurrent_id=0, project_slot=0)

        async def work() -> None:
            record = self._store.accept(directory, runner.short_token, self._accepted(runner, payload, lease, ""), raw)
            await self._adopted_work(record, payload, runner)()

        return Adoption(runner=runner, lease=lease, project_id=payload.job_info.project_id, work=work)

    # All jobs

    async def _run(
        self,
        record: JobRecord,
        payload: JobPayload,
        runner: RunnerConfig,
        coordinator: Coordinator,
        on_accepted: Callable[[], None],
    ) -> None:
        executor = await self._executor(runner.executor)
        run = JobRun(
            record=record,
            payload=payload,
            kind=KINDS[runner.executor],
            executor=executor,
            coordinator=coordinator.job(payload.id, payload.token),
            settings=RunSettings(interrupted_reason=self._interrupted_reason(payload), orphan_grace_s=self._orphan_grace_s),
            on_accepted=on_accepted,
        )
        name = record.directory.name
        self.running[name] = run
        self._on_change()
        if self._events is not None:
            info = payload.job_info
            counted = info.project_jobs_running_on_instance_runners_count
            self._events.job_began(runner, info.time_in_queue_seconds, counted)
        facts = {
            "job": payload.id,
            "project": payload.job_info.project_id,
            "runner": runner.short_token,
            "runner_name": runner.name,
        }
        try:
            with bound_contextvars(**facts):
                log.info("Added job to processing list", pipeline_id=payload.job_info.pipeline_id)
                if self._detaching:
                    run.detach()
                elif self._signal:
                    run.interrupt(self._signal, grace_s=self._grace_s)
                result = await run.run()
                if result is ReportResult.UNREPORTED:
                    self.unreported[name] = run
                if result is not None:
                    log.info("Removed job from processing list")
        finally:
            del self.running[name]
            self._on_change()
            if self._events is not None and run.outcome is not None:
                seconds = (time.time_ns() - record.accepted.accepted_at_ns) / 1e9
                self._events.job_ended(runner, run.outcome.reason, seconds)

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

    def detach(self) -> None:
        """Let go of every job."""
        self._detaching = True
        for run in list(self.running.values()):
            run.detach()

    async def report_later(self) -> None:
        """Try again, once an hour, to report what could not be reported."""
        while True:
            await asyncio.sleep(RETRY_REPORT_S)
            for name, run in list(self.unreported.items()):
                del self.unreported[name]
                record = self._store.load(run.record.directory)
                await self._adopted_work(record, run.payload, run.plan.runner)()
