"""Becoming the new code in place (``design.md`` 4): same process id, and nothing that the old image held is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence

import structlog

log = structlog.get_logger()

LOCK_VARIABLE = "PYRUNNER_INHERITED_LOCK"
SIGNALS_VARIABLE = "PYRUNNER_INHERITED_SIGNALS"
PROBE_S = 5.0


def inherited_lock() -> int | None:
    """The lock of the state directory, where an image before this one held it."""
    text = os.environ.pop(LOCK_VARIABLE, "")
    return int(text) if text else None


def problem_of_new_code(program: str) -> str:
    """Why the code that would run does not start; empty when it does. Takes a moment."""
    argv = [sys.executable, program, "--version"]
    try:
        probe = subprocess.run(argv, capture_output=True, text=True, timeout=PROBE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (probe.stderr.strip()[-500:] or f"exit status {probe.returncode}") if probe.returncode else ""


class KeptSignals:
    """From now on signals are neither acted on nor lost: each leaves its number in a pipe for the next image.

    Blocking them would do for this thread alone. Whichever thread the kernel chooses runs the handler that is installed,
    and that writes into the pipe at once; so the handlers must stay in place until the end.
    """

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        # The thread that lives on leaves them to the next image's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)

    def execute_again(self, lock_fd: int, argv: Sequence[str], *, deferred: signal.Signals | None) -> None:
        """Replace this image; does not return. ``deferred`` is a signal that was heard before, and left to the next one."""
        if deferred is not None:
            os.write(self._write_fd, bytes([deferred]))
        for name, fd in ((LOCK_VARIABLE, lock_fd), (SIGNALS_VARIABLE, self._read_fd)):
            os.set_inheritable(fd, True)
            os.environ[name] = str(fd)
        log.info("Executing again")
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *argv])


def deliver_kept(signals: Iterable[signal.Signals]) -> None:
    """Act on the signals that came while one image gave way to the next. Their handlers must be installed."""
    text = os.environ.pop(SIGNALS_VARIABLE, "")
    if text:
        fd = int(text)
        numbers = os.read(fd, 64) if _has_some(fd) else b""
        os.close(fd)
        for number in dict.fromkeys(numbers):
            os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _has_some(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])
