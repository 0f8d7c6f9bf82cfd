"""What the exit status of a driver's program means (``job-lifecycle.md`` 16)."""

from __future__ import annotations

import re
import signal
from pathlib import Path

from executors.base import ExitStatus
from executors.errors import ExecutorError, ReportedFailure

BUILD_FAILURE = 1
SYSTEM_FAILURE = 2
# The kernel's short names are not the reference's.
_SIGNALS = {signal.SIGKILL: "killed", signal.SIGTERM: "terminated", signal.SIGHUP: "hangup", signal.SIGINT: "interrupt"}


def failure_of(status: ExitStatus, exit_code_file: Path) -> ExecutorError | None:
    """None for success, :class:`ReportedFailure` where the job failed, anything else where the driver did."""
    if status.dormant is not None:
        return dormant(status.dormant)
    match status.exit_code:
        case 0:
            return None
        case 1:
            return _reported(exit_code_file)
        case 2:
            return ExecutorError("exit status 2")
        case None:
            return _unknown(-1, f"signal: {_signal_name(status.signal or 0)}")
        case code:
            return _unknown(code, f"exit status {code}")


def dormant(pid: int) -> ExecutorError:
    """A program that SIGKILL did not end, or whose output something else still holds."""
    return ExecutorError(f"failed to kill process PID={pid}, likely process is dormant")


def _reported(exit_code_file: Path) -> ExecutorError:
    """The job's own exit code, where the driver left it."""
    try:
        line = exit_code_file.read_text(errors="replace").partition("\n")[0].strip()
    except OSError:
        return ReportedFailure(1)
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", line):
        return _unknown(SYSTEM_FAILURE, "exit status 1")
    return ReportedFailure(int(line) or 1)


def _unknown(code: int, how: str) -> ExecutorError:
    text = f"unknown Custom executor executable exit code {code}; executable execution terminated with: {how}"
    return ExecutorError(text)


def _signal_name(number: int) -> str:
    try:
        known = signal.Signals(number)
    except ValueError:
        return f"signal {number}"
    return _SIGNALS.get(known) or (signal.strsignal(number) or str(number)).lower()
