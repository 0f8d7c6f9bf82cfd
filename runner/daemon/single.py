"""Jobs of one runner in the foreground: ``run-single``."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from runner.config.model import Config, DaemonSettings, RunnerConfig
from runner.config.system_id import load_system_id, make_system_id
from runner.coordinator.client import JobRequestKind, JobRequestResult
from runner.daemon.connections import Connections
from runner.daemon.counters import Lease, TokenCounters
from runner.daemon.jobs import Jobs
from runner.daemon.scheduler import Offer
from runner.daemon.shutdown import SIGNAL_NAMES, captured_signals, hold_signals
from runner.gocache.keeper import Keeper, budgets
from runner.gocache.stores import Stores
from runner.job.record import RecordStore

log = structlog.get_logger()

POLL_S = 3.0
UNHEALTHY_PAUSE_S = 300.0
SHUTDOWN_S = 30.0
ORPHAN_GRACE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleOptions:
    """Options of ``run-single``; zero means no limit."""

    runner: RunnerConfig
    config: Path
    state_dir: Path
    use_saved_id: bool = False
    max_builds: int = 0
    wait_timeout_s: int = 0


def run_single(options: SingleOptions) -> int:
    """Run jobs until a limit or a signal; the exit status."""
    hold_signals()
    log.info(f"Starting runner for {options.runner.url} with token {options.runner.short_token} ...")
    return asyncio.run(_Single(options).serve())


class _Single:
    def __init__(self, options: SingleOptions) -> None:
        self._options = options
        self._runner = options.runner
        self._stop = asyncio.Event()
        self._builds = 0
        settings = DaemonSettings(state_dir=options.state_dir)
        config = Config(path=options.config, runners=(options.runner,), pyrunner=settings)
        system_id = load_system_id(options.config).value if options.use_saved_id else make_system_id()
        self._connections = Connections(
            system_id=system_id, config_dir=options.config.parent, connection_max_age_s=config.connection_max_age_s
        )
        self._store = RecordStore(options.state_dir)
        self._stores = Stores(options.state_dir, budgets=lambda: budgets([options.runner]))
        self._jobs = Jobs(
            store=self._store,
            connections=self._connections,
            config=lambda: config,
            system_id=system_id,
            job_user=None,
            go=Keeper(self._stores),
            orphan_grace_s=ORPHAN_GRACE_S,
        )
        self._counters = TokenCounters()

    async def serve(self) -> int:
        """Ask and run, one job at a time."""
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: lambda: self._abort(signal.SIGTERM),
            signal.SIGINT: lambda: self._abort(signal.SIGINT),
            signal.SIGQUIT: self._quit,
        }
        with captured_signals(handlers):
            self._store.open()
            try:
                self._stores.open()
                await self._jobs.open()
                await self._loop()
            finally:
                await self._jobs.close()
                await self._connections.close()
                self._store.close()
        return 0

    async def _loop(self) -> None:
        loop = asyncio.get_running_loop()
        waiting_since = loop.time()
        while not self._stop.is_set():
            result = await self._connections.of(self._runner).request_job()
            pause_s = POLL_S
            if result.kind is JobRequestKind.JOB:
                await self._run(result)
                self._builds += 1
                waiting_since, pause_s = loop.time(), 0.0
            elif not result.healthy:
                log.error("Runner is not healthy!")
                pause_s = UNHEALTHY_PAUSE_S
            if self._options.max_builds and self._builds >= self._options.max_builds:
                log.info("This runner has processed its build limit, so now exiting")
                return
            limit_s = self._options.wait_timeout_s
            if limit_s and int(loop.time() - waiting_since) > limit_s:
                log.info(f"This runner has not received a job in {limit_s} seconds, so now exiting")
                return
            try:
                await asyncio.wait_for(self._stop.wait(), pause_s)
            except TimeoutError:
                continue

    async def _run(self, result: JobRequestResult) -> None:
        lease = Lease(token=self._runner.token)
        await self._jobs.run_offer(
            Offer(
                runner=self._runner,
                result=result,
                lease=lease,
                accepted=lambda: None,
                place=lambda project_id: self._counters.place(lease, project_id),
            )
        )
        self._counters.free(lease)
        await self._stores.settle()

    def _quit(self) -> None:
        log.warning("Requested quit, waiting for builds to finish")
        self._stop.set()

    def _abort(self, number: signal.Signals) -> None:
        if self._stop.is_set() and self._jobs.running:
            os._exit(1)
        name = SIGNAL_NAMES[number]
        log.warning(f"Requested exit: {name}")
        self._stop.set()
        self._jobs.abort(name, grace_s=SHUTDOWN_S * 0.4)
