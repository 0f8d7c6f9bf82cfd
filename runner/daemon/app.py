"""The daemon: builds every object, and lives from start to exit. Nothing else builds objects."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from executors.errors import ExecutorError
from runner import logs
from runner.config.model import Config, RunnerConfig
from runner.config.system_id import load_system_id
from runner.coordinator.registration import CallResult
from runner.daemon.connections import Connections
from runner.daemon.control import Control
from runner.daemon.disk import disk_budget
from runner.daemon.health import Health
from runner.daemon.jobs import Jobs
from runner.daemon.options import RunOptions
from runner.daemon.pages import Pages, snapshot
from runner.daemon.reload import ConfigFile, Watcher, log_changes
from runner.daemon.restart import KeptSignals, inherited_lock, problem_of_new_code
from runner.daemon.rotation import Rotation
from runner.daemon.scheduler import Scheduler
from runner.daemon.shutdown import PROGRESS_PERIOD_S, SIGNALS, Shutdown, ShutdownMode, State, captured_signals, hold_signals
from runner.daemon.status import StatusReport
from runner.disk.metrics import DiskMetrics
from runner.errors import RunnerError
from runner.gocache.disk import GoStores
from runner.gocache.keeper import Keeper, budgets
from runner.gocache.stores import Stores
from runner.identity import REVISION, VERSION, architecture, os_name
from runner.job.record import RecordStore
from runner.mirrors.store import Mirrors
from runner.ops.control import ControlServer
from runner.ops.http import Page, StatusServer, stacks
from runner.ops.metrics import Metrics, RequestMetrics
from runner.ops.notify import Notifier, host_is_stopping

log = structlog.get_logger()

EXIT_CONFIG = 78
ALIVE_S = 10.0
KILL_SHARE = 0.4
EXTEND_PERIOD_S = 20.0
# A restart lets git and the like end, so that they need not begin again.
TOOL_PATIENCE_S = 60.0


def run(options: RunOptions) -> int:
    """Run the daemon; its exit status. May replace the process by a new one of itself."""
    logs.configure(level=options.log_level or "info", form=options.log_format or "runner")
    hold_signals()
    log.info("Runtime platform", arch=architecture(), os=os_name(), pid=os.getpid(), revision=REVISION, version=VERSION)
    log.info(f"Starting multi-runner from {options.config}...")
    log.info("Running in system-mode." if os.geteuid() == 0 else "Running in user-mode.")
    path, started_in = options.config.absolute(), Path.cwd()  # as seen from where the command was given
    if options.working_directory is not None:
        try:
            os.chdir(options.working_directory)
        except OSError as error:
            log.critical("Service run failed", error=f"chdir {options.working_directory}: {error.strerror}")
            return 1
    file = ConfigFile(path, os.environ)
    config = _first_config(file)
    if config is None:
        return EXIT_CONFIG
    store = RecordStore(config.pyrunner.state_dir)
    try:
        store.open(inherited_lock_fd=inherited_lock())
    except RunnerError as error:
        log.critical("Service run failed", error=str(error))
        return 1
    daemon = Daemon(options, file, config, store, started_in)
    try:
        return asyncio.run(daemon.serve())
    finally:
        store.close()


def _first_config(file: ConfigFile) -> Config | None:
    try:
        loaded = file.read()
    except FileNotFoundError:
        log.warning("Failed to load config", error=f"{file.path}: no such file or directory")
        return file.empty()
    except OSError as error:
        log.critical("Service run failed", error=f"{file.path}: {error.strerror}")
        return None
    config = file.take(loaded, always=True)
    if config is None:
        log.critical("Service run failed", error=file.last_error)
    return config


def _own_argv(options: RunOptions) -> list[str]:
    """The command line of this process, without the interpreter."""
    return list(options.argv) or sys.argv


class Daemon:
    """The objects of a running daemon and the loops that keep it going."""

    def __init__(self, options: RunOptions, file: ConfigFile, config: Config, store: RecordStore, started_in: Path) -> None:
        self._started_in = started_in
        self._started_at = time.time()
        self._options = options
        self._file = file
        self._config = config
        self._store = store
        found = load_system_id(file.path, override=config.pyrunner.system_id or os.environ.get("PYRUNNER_SYSTEM_ID", ""))
        if found.created:
            log.info("Created missing unique system ID", system_id=found.value)
        if found.warning:
            log.warning(found.warning)
        self._system_id = found.value
        self._metrics = Metrics(self._system_id, lambda: snapshot(self._config, self._scheduler, self._jobs, self._shutdown))
        self._notifier = Notifier(os.environ)
        self._exit_status = 0
        self._ticked = time.monotonic()
        self._forced = asyncio.Event()
        self._host_stops = False
        self._services: asyncio.TaskGroup | None = None

    async def serve(self) -> int:
        """From start to exit."""
        self._build()
        # From here on a stop is a stop, however far start-up has come.
        with captured_signals(self._signals()):
            async with asyncio.TaskGroup() as services:
                self._services = services
                server = await self._live(services)
            if self._shutdown.restart:
                kept = KeptSignals(SIGNALS)
                await self._close(server)
                for _ in range(3):
                    await asyncio.sleep(0)  # a signal of just before is on its way through the loop
                os.chdir(self._started_in)  # names on the command line mean what they meant
                kept.execute_again(self._store.lock_fd, _own_argv(self._options), deferred=self._shutdown.deferred)
            await self._close(server)
        log.info("Can exit now!")
        return self._exit_status

    async def _live(self, services: asyncio.TaskGroup) -> StatusServer | None:
        """Work, with everything beside it, until there is nothing left to wait for."""
        self._stores.open()
        self._apply_logging(self._config)
        self._metrics.know(self._config.runners)
        self._metrics.slot("started", self._config.concurrent)
        server = await self._listen()
        has_started = await self._until_forced(self._start())
        self._shutdown.started()
        if not has_started:
            return server
        loops = [
            services.create_task(_keep_running(name, work), name=name)
            for name, work in (
                ("config", self._watcher.run),
                ("heartbeat", self._beat),
                ("progress", self._tell_progress),
                ("reports", self._jobs.report_later),
                ("rotation", self._rotation.run),
                ("disk", self._disk.run),
                ("mirrors", self._mirrors.run),
                ("go stores", self._stores.run),
                *self._control(),
            )
        ]
        if self._shutdown.state is State.RUNNING:
            self._notifier.ready()
        await self._until_forced(self._work())
        for loop in loops:
            loop.cancel()
        return server

    async def _start(self) -> None:
        await self._open_executors()
        log.info("Configuration loaded", max_builds=self._config.concurrent)
        self._metrics.configuration("loaded")
        await self._rotation.catch_up()

    async def _until_forced(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work, unless everything must be over before it is; False then."""
        task = asyncio.ensure_future(work)
        forced = asyncio.ensure_future(self._forced.wait())
        await asyncio.wait((task, forced), return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        await asyncio.wait((task,))
        log.error("Forceful shutdown not finished properly", error="shutdown timed out")
        self._exit_status = 1
        return False

    async def _close(self, server: StatusServer | None) -> None:
        await self._jobs.close()
        await self._connections.close()
        if server is not None:
            await server.close()

    def _build(self) -> None:
        config = self._config
        self._connections = Connections(
            system_id=self._system_id,
            config_dir=self._file.path.parent,
            connection_max_age_s=config.connection_max_age_s,
            observer=lambda runner: RequestMetrics(self._metrics, runner),
        )
        self._stores = Stores(config.pyrunner.state_dir, budgets=lambda: budgets(self._config.runners))
        self._disk = disk_budget(lambda: self._config)
        self._disk.on_change = self._jobs_changed
        self._disk.add(GoStores(self._stores))
        self._metrics.registry.register(DiskMetrics(self._disk))
        self._mirrors = Mirrors(config.pyrunner.state_dir, self._disk.holds)
        self._disk.add(self._mirrors.kind)
        self._jobs = Jobs(
            store=self._store,
            connections=self._connections,
            config=lambda: self._config,
            system_id=self._system_id,
            job_user=self._options.user,
            on_change=self._jobs_changed,
            events=self._metrics,
            disk=self._disk,
            go=Keeper(self._stores),
            mirrors=self._mirrors,
        )
        self._health = health = Health(time.monotonic)
        self._scheduler = Scheduler(
            config=config,
            request=lambda runner, *, hold: self._connections.of(runner).request_job(hold=hold),
            run_job=self._jobs.run_offer,
            health=health,
            events=self._metrics,
            has_room=self._disk.has_room,
        )
        self._watcher = Watcher(self._file, self._load, failed=lambda: self._metrics.configuration("loading_error"))
        self._rotation = Rotation(self._file, reset=self._reset_token, apply=self._apply)
        self._rotation.plan(config)
        self._shutdown = Shutdown(
            mode=self._shutdown_mode,
            graceful_timeout_s=self._graceful_timeout_s,
            shutdown_timeout_s=lambda: self._config.shutdown_timeout_s,
            on_drain=self._on_drain,
            on_abort=self._on_abort,
            on_detach=lambda patient: self._jobs.detach(patience_s=TOOL_PATIENCE_S if patient else 0.0),
            force_exit=self._force_exit,
        )

    def _shutdown_mode(self) -> ShutdownMode:
        return ShutdownMode.ABORT if self._host_stops else ShutdownMode(self._config.pyrunner.shutdown_mode)

    def _graceful_timeout_s(self) -> float:
        given = self._options.graceful_shutdown_timeout_s
        return self._config.pyrunner.graceful_shutdown_timeout_s if given is None else given

    async def _open_executors(self) -> None:
        try:
            await self._jobs.open()
        except ExecutorError as error:
            log.error("executor could not be opened", error=str(error))

    # Work

    async def _work(self) -> None:
        """Run jobs until there is nothing left to wait for."""
        adopted = []
        for adoption in self._jobs.adoptable():
            self._scheduler.counters(adoption.lease.token).take_back(adoption.lease, adoption.project_id)
            adopted.append((adoption.runner, adoption.lease, adoption.work()))
        await self._scheduler.run(adopted)
        if self._shutdown.state is State.ABORTING and self._jobs.unreported:
            self._exit_status = 1
        log.info("All workers stopped.")

    def _signals(self) -> dict[signal.Signals, Callable[[], None]]:
        stops = (signal.SIGINT, signal.SIGQUIT)
        found: dict[signal.Signals, Callable[[], None]] = {
            number: lambda number=number: self._shutdown.receive(number)  # type: ignore[misc]
            for number in stops
        }
        found[signal.SIGHUP] = self._hangup
        found[signal.SIGUSR1] = lambda: log.info("stacks", text=stacks())
        found[signal.SIGUSR2] = lambda: self._do(self._restart())
        found[signal.SIGTERM] = lambda: self._do(self._terminate())
        return found

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        """Work beside the services, which takes a moment."""
        assert self._services is not None
        self._services.create_task(work)

    async def _restart(self) -> None:
        """Execute again in place, unless the code that would run is broken: then this daemon goes on."""
        await self._shutdown.was_started.wait()
        if self._shutdown.state is not State.RUNNING:
            return
        problem = await asyncio.to_thread(problem_of_new_code, _own_argv(self._options)[0])
        if problem:
            log.error("restart refused: the new code does not start", error=problem)
        else:
            self._shutdown.begin_restart()

    async def _terminate(self) -> None:
        """Stop as SIGTERM wants it. On a host that shuts down nothing outlives the daemon: jobs are stopped and reported
        while there is time."""
        if self._shutdown.state in (State.STARTING, State.RUNNING):
            self._scheduler.drain()  # whatever comes of it, nothing more is asked for
            self._host_stops = await asyncio.to_thread(host_is_stopping)
        self._shutdown.receive(signal.SIGTERM)

    def _hangup(self) -> None:
        if self._shutdown.state is State.RUNNING:
            self._notifier.reloading()
            self._watcher.ask()
        elif self._shutdown.state is State.STARTING:
            self._watcher.ask()
        elif self._shutdown.state is State.DRAINING:
            log.warning("stopping: the configuration is not loaded again")

    def _on_drain(self) -> None:
        self._notifier.stopping()
        self._scheduler.drain()

    def _on_abort(self, signal_name: str) -> None:
        """Everything must be over within ``shutdown_timeout``."""
        limit_s = self._config.shutdown_timeout_s
        self._jobs.abort(signal_name, grace_s=limit_s * KILL_SHARE)
        loop = asyncio.get_running_loop()
        loop.call_later(limit_s * KILL_SHARE / 2, self._scheduler.cancel_requests)
        loop.call_later(limit_s * 0.95, self._forced.set)

    def _force_exit(self, signal_name: str) -> None:
        log.error("Forceful shutdown not finished properly", error=f"forced exit with stop signal: {signal_name}")
        self._exit_status = 1
        self._forced.set()

    # Configuration

    async def _load(self, config: Config) -> None:
        """Take over what somebody wrote."""
        await self._apply(config)
        log.info("Configuration loaded", max_builds=config.concurrent)
        self._metrics.configuration("loaded")
        self._notifier.ready()

    async def _reset_token(self, runner: RunnerConfig) -> CallResult:
        return await self._connections.of(runner).reset_token()

    async def _apply(self, config: Config) -> None:
        """Go over to another configuration at once; running jobs keep theirs."""
        before, self._config = self._config, config
        self._apply_logging(config)
        log_changes(before, config)
        for runner in before.runners:
            if not any(runner.short_token == other.short_token for other in config.runners):
                self._metrics.forget(runner)
        self._metrics.know(config.runners)
        change = config.concurrent - before.concurrent
        if change:
            self._metrics.slot("started" if change > 0 else "stopped", abs(change))
        await self._open_executors()
        self._scheduler.reload(config)
        await self._connections.keep_only(config.runners, {run.plan.runner.token for run in self._jobs.running.values()})
        self._rotation.plan(config)

    def _apply_logging(self, config: Config) -> None:
        logs.configure(
            level=self._options.log_level or config.log_level or "info",
            form=self._options.log_format or config.log_format or "runner",
            count=self._metrics.logged,
        )

    # What an operator looks at

    def _control(self) -> list[tuple[str, Callable[[], Awaitable[None]]]]:
        """The service at the control socket, if there is to be one."""
        path = self._config.pyrunner.control_path
        if path is None:
            return []
        report = StatusReport(
            config=lambda: self._config,
            file=self._file,
            scheduler=self._scheduler,
            health=self._health,
            jobs=self._jobs,
            disk=self._disk,
            shutdown=self._shutdown,
            system_id=self._system_id,
            started_at=self._started_at,
        )
        return [("control", ControlServer(path, Control(report, self._watcher, self._shutdown).commands).run)]

    async def _listen(self) -> StatusServer | None:
        address = self._options.listen_address or self._config.listen_address
        if not address:
            log.info("listen_address not defined, metrics & debug endpoints disabled")
            return None
        pages = Pages(self._jobs, self._shutdown, is_alive=lambda: time.monotonic() - self._ticked < ALIVE_S)
        server = StatusServer(
            {"/metrics": lambda: Page(body=self._metrics.page(), content_type=self._metrics.content_type), **pages.by_path()}
        )
        try:
            await server.start(address)
        except ValueError as error:
            log.error(str(error))
            return None
        except OSError as error:
            log.critical("Failed to create listener for metrics server", error=str(error))
            raise SystemExit(1) from error
        log.info("Metrics server listening", address=address)
        return server

    def _jobs_changed(self) -> None:
        behind = ", the disk is full: no jobs are requested" if self._disk.is_low else ""
        self._notifier.status(f"{len(self._jobs.running)} of {self._config.concurrent} jobs running{behind}")

    async def _beat(self) -> None:
        """Show that the event loop turns."""
        while True:
            self._ticked = time.monotonic()
            period_s = self._notifier.watchdog_period_s
            if period_s is not None:
                self._notifier.alive()
            await asyncio.sleep(min(period_s or ALIVE_S / 2, ALIVE_S / 2))

    async def _tell_progress(self) -> None:
        """While draining: say how many jobs are waited for, and ask for the time that it takes."""
        await self._shutdown.stopping.wait()
        said = float("-inf")
        while True:
            now = asyncio.get_running_loop().time()
            self._notifier.extend(EXTEND_PERIOD_S * 3)
            if now - said >= PROGRESS_PERIOD_S and self._jobs.running:
                said = now
                left = self._shutdown.drain_deadline
                behind = f", deadline in {left - now:.0f} s" if left is not None else ""
                log.info(f"draining: {len(self._jobs.running)} jobs{behind}")
                self._notifier.status(f"draining: {len(self._jobs.running)} jobs{behind}")
            await asyncio.sleep(EXTEND_PERIOD_S)


async def _keep_running(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """A service that fails is started again, later each time; no job suffers from it."""
    pause_s = 1.0
    while True:
        try:
            await work()
        except Exception as error:
            log.exception("service failed, it is started again", service=name, error=str(error), pause_s=pause_s)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, 300.0)
