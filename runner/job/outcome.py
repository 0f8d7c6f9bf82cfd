"""How a job ended: its failures, their reasons, and what the log and the server are told (``job-lifecycle.md`` 4)."""

from __future__ import annotations

import enum
import signal
from collections.abc import Iterable

import msgspec

from executors.base import ExitStatus
from executors.errors import EnvironmentLost, ExecutorError, ExternalFailure, ImagePullError, InvalidSpec, ReportedFailure
from runner.config.duration import format_duration
from runner.coordinator.port import JobState, JobUpdate

EXIT_UNSUPPORTED_OPTIONS = 3


class Reason(enum.StrEnum):
    """Failure reasons of the wire (``runner-api.md`` 5.3)."""

    SCRIPT = "script_failure"
    SYSTEM = "runner_system_failure"
    TIMEOUT = "job_execution_timeout"
    IMAGE_PULL = "image_pull_failure"
    CONFIGURATION = "runner_configuration_error"
    EXTERNAL = "runner_external_dependency_failure"
    INTERRUPTED = "runner_interrupted"
    CANCELED = "job_canceled"
    UNKNOWN = "unknown_failure"


ALWAYS_ALLOWED = frozenset({Reason.SCRIPT, Reason.SYSTEM, Reason.TIMEOUT})
REPLACEMENTS = {
    Reason.IMAGE_PULL: Reason.SYSTEM,
    Reason.CONFIGURATION: Reason.SCRIPT,
    Reason.EXTERNAL: Reason.SYSTEM,
}
SIGNAL_TEXTS = {
    signal.SIGKILL: "killed",
    signal.SIGTERM: "terminated",
    signal.SIGHUP: "hangup",
    signal.SIGINT: "interrupt",
    signal.SIGQUIT: "quit",
    signal.SIGSEGV: "segmentation fault",
    signal.SIGABRT: "aborted",
    signal.SIGBUS: "bus error",
    signal.SIGFPE: "floating point exception",
    signal.SIGILL: "illegal instruction",
    signal.SIGPIPE: "broken pipe",
    signal.SIGTRAP: "trace/breakpoint trap",
    signal.SIGALRM: "alarm clock",
    signal.SIGUSR1: "user defined signal 1",
    signal.SIGUSR2: "user defined signal 2",
}


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a job or of one of its steps. ``reason`` is empty for success; ``message`` is for the log."""

    reason: str = ""
    message: str = ""
    exit_code: int = 0

    @property
    def succeeded(self) -> bool:
        """Whether nothing failed."""
        return not self.reason

    @property
    def last_line(self) -> str:
        """The final line of the log, without colours and the word ERROR."""
        if self.succeeded:
            return "Job succeeded"
        system = " (system failure)" if self.reason == Reason.SYSTEM else ""
        return f"Job failed{system}: {self.message}"

    def final_update(self, supported: Iterable[str]) -> JobUpdate:
        """What the server is told; reasons it does not know are replaced (4.2)."""
        if self.succeeded:
            return JobUpdate(state=JobState.SUCCESS)
        return JobUpdate(state=JobState.FAILED, failure_reason=supported_reason(self.reason, supported), exit_code=self.exit_code)


def supported_reason(reason: str, supported: Iterable[str]) -> str:
    """The reason itself, or the one that stands in for it."""
    if reason in ALWAYS_ALLOWED or reason in set(supported):
        return reason
    return REPLACEMENTS.get(Reason(reason), Reason.UNKNOWN)


class JobFailure(Exception):
    """The job, or a step of it, failed; carries the outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


def script_failed(status: ExitStatus) -> JobFailure:
    """A script ended badly."""
    code = status.exit_code
    if code is None:
        number = status.signal or 0
        try:
            text = SIGNAL_TEXTS.get(signal.Signals(number), f"signal {number}")
        except ValueError:
            text = f"signal {number}"
        return JobFailure(Outcome(reason=Reason.SCRIPT, message=f"signal: {text}", exit_code=-1))
    return JobFailure(Outcome(reason=Reason.SCRIPT, message=f"exit status {code}", exit_code=code))


def tool_failed(exit_code: int) -> JobFailure:
    """Work of the runner's own in a stage ended with this status."""
    return JobFailure(Outcome(reason=Reason.SCRIPT, message=f"exit status {exit_code}", exit_code=exit_code))


def canceled() -> JobFailure:
    """The server wants the job to end."""
    return JobFailure(Outcome(reason=Reason.CANCELED, message="canceled"))


def job_timed_out(timeout_s: float) -> JobFailure:
    """The job's own limit."""
    text = f"execution took longer than {format_duration(timeout_s)} seconds"
    return JobFailure(Outcome(reason=Reason.TIMEOUT, message=text))


def script_timed_out() -> JobFailure:
    """``RUNNER_SCRIPT_TIMEOUT``."""
    return JobFailure(Outcome(reason=Reason.TIMEOUT, message="script timeout: context deadline exceeded"))


def stage_timed_out(what: str, timeout_s: float) -> JobFailure:
    """``prepare_timeout`` or ``get_sources_timeout`` of the configuration."""
    text = f"{what} timeout: exceeded timeout of {format_duration(timeout_s)}"
    return JobFailure(Outcome(reason=Reason.TIMEOUT, message=text))


def interrupted(signal_name: str, reason: str) -> JobFailure:
    """This process stops."""
    return JobFailure(Outcome(reason=reason, message=f"aborted: {signal_name}"))


def misconfigured(text: str) -> JobFailure:
    """The job or the runner asks for what cannot be."""
    return JobFailure(Outcome(reason=Reason.CONFIGURATION, message=text))


def system_failure(text: str) -> JobFailure:
    """Anything that is the runner's own fault."""
    return JobFailure(Outcome(reason=Reason.SYSTEM, message=text))


def failure_of(error: ExecutorError) -> JobFailure:
    """What an executor's error means for the job."""
    match error:
        case ReportedFailure(exit_code=code):
            return tool_failed(code)
        case InvalidSpec():
            reason = Reason.CONFIGURATION
        case ImagePullError():
            reason = Reason.IMAGE_PULL
        case ExternalFailure():
            reason = Reason.EXTERNAL
        case EnvironmentLost():
            reason = Reason.SYSTEM
        case _:
            reason = Reason.SYSTEM
    return JobFailure(Outcome(reason=reason, message=str(error)))
