"""From a signal to the end of the process (``config-cli-daemon.md`` 7.3; the table of ``design.md`` 4)."""

from __future__ import annotations

import asyncio
import enum
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from runner.daemon.restart import deliver_kept

log = structlog.get_logger()

SIGNAL_NAMES = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupt", signal.SIGQUIT: "quit"}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PROGRESS_PERIOD_S = 30.0


class State(enum.StrEnum):
    """States of the process, by the names of the reference's metrics."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "graceful-shutdown"
    ABORTING = "forceful-shutdown"


class ShutdownMode(enum.StrEnum):
    """What SIGTERM does (``[pyrunner] shutdown_mode``)."""

    DRAIN = "drain"
    DETACH = "detach"
    ABORT = "abort"


class Shutdown:
    """The state machine. Callbacks do the work: ``on_drain`` stops asking, ``on_abort`` stops every job for the named
    signal, ``on_detach`` lets go of all jobs, with patience or at once. ``force_exit`` is called for a stop signal while
    aborting. ``was_started`` is set once start-up is over, ``stopping_since`` is the Unix time of the first stop signal.
    One that comes while the process is about to execute itself again is for the new image, as ``deferred``.
    """

    def __init__(
        self,
        *,
        mode: Callable[[], ShutdownMode],
        graceful_timeout_s: Callable[[], float],
        shutdown_timeout_s: Callable[[], float],
        on_drain: Callable[[], None],
        on_abort: Callable[[str], None],
        on_detach: Callable[[bool], None],
        force_exit: Callable[[str], None],
    ) -> None:
        self._mode = mode
        self._graceful_timeout_s = graceful_timeout_s
        self._shutdown_timeout_s = shutdown_timeout_s
        self._on_drain = on_drain
        self._on_abort = on_abort
        self._on_detach = on_detach
        self._force_exit = force_exit
        self._deadline: asyncio.TimerHandle | None = None
        self.state = State.STARTING
        self.signal = ""
        self.restart = False
        self.deferred: signal.Signals | None = None
        self.drain_deadline: float | None = None
        self.aborting = asyncio.Event()
        self.stopping = asyncio.Event()
        self.was_started = asyncio.Event()
        self.stopping_since: float | None = None

    def started(self) -> None:
        """Start-up is over."""
        if self.state is State.STARTING:
            self.state = State.RUNNING
        self.was_started.set()

    def receive(self, number: signal.Signals) -> None:
        """React to a stop signal."""
        name = SIGNAL_NAMES.get(number, number.name)
        log.warning("[runWait] received stop signal", **{"stop-signal": name})
        if self.restart:
            self.deferred = number
            self._on_detach(False)
        elif self.state is State.ABORTING:
            self._force_exit(name)
        elif number is signal.SIGQUIT:
            self.drain(name, deadline_s=math.inf)
        elif number is signal.SIGTERM and self.state is not State.DRAINING:
            self._terminate(name)
        else:
            self.abort(name)

    def _terminate(self, name: str) -> None:
        match self._mode():
            case ShutdownMode.DETACH:
                self.detach()
            case ShutdownMode.ABORT:
                self.abort(name)
            case ShutdownMode.DRAIN:
                deadline_s = self._graceful_timeout_s()
                if deadline_s <= 0:
                    self.abort(name)
                else:
                    self.drain(name, deadline_s=deadline_s)

    def drain(self, name: str, *, deadline_s: float) -> None:
        """Stop asking, let jobs end; abort at the deadline."""
        if self.state in (State.DRAINING, State.ABORTING):
            return
        self.state = State.DRAINING
        self.signal = name
        self._note_stopping()
        log.info("Starting graceful shutdown, waiting for builds to finish", StopSignal=name)
        if math.isfinite(deadline_s):
            loop = asyncio.get_running_loop()
            self.drain_deadline = loop.time() + deadline_s
            self._deadline = loop.call_later(deadline_s, self.abort, name)
        self._on_drain()

    def abort(self, name: str) -> None:
        """Stop every job and report it, within the shutdown timeout."""
        if self.state is State.ABORTING:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self.state = State.ABORTING
        self.signal = name
        self.drain_deadline = None
        self._note_stopping()
        self.aborting.set()
        timeout_s = self._shutdown_timeout_s()
        log.warning("Starting forceful shutdown", StopSignal=name, **{"shutdown-timeout": f"{timeout_s:g}s"})
        self._on_drain()
        self._on_abort(name)

    def detach(self) -> None:
        """Let go of all jobs: they go on, the next daemon adopts them."""
        self.state = State.DRAINING
        self._note_stopping()
        log.info("Letting go of running jobs, the next daemon adopts them")
        self._on_drain()
        self._on_detach(self.restart)

    def _note_stopping(self) -> None:
        if self.stopping_since is None:
            self.stopping_since = time.time()
        self.stopping.set()

    @property
    def drain_left_s(self) -> float | None:
        """Seconds until jobs are aborted, None where no time is set."""
        return None if self.drain_deadline is None else self.drain_deadline - asyncio.get_running_loop().time()

    def begin_restart(self) -> None:
        """Re-execute this process once everything is let go."""
        if self.state is State.RUNNING:
            self.restart = True
            self.detach()


def hold_signals() -> None:
    """Leave signals for :func:`captured_signals`: none ends a process that is only just beginning. For a process of one
    thread."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


@contextmanager
def captured_signals(handlers: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Route signals to the running loop: those that were held back, here or by a former image of this process, at once.
    Afterwards they mean nothing: the process is about to end, as it wants to."""
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    deliver_kept(SIGNALS)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)
