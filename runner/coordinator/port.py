"""What a job needs of a coordinator: the HTTP client implements it for GitLab, ``pipeline`` for a local run."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol


class JobState(enum.StrEnum):
    """The states that a runner reports; nothing else is ever sent."""

    RUNNING = "running"
    SUCCESS = "success"
    FAILED = "failed"


class Verdict(enum.Enum):
    """What an answer of the coordinator means (``runner-api.md`` 5.2, 6)."""

    OK = "ok"  # taken
    NOT_COMPLETE = "not complete"  # 202 on an update: ask again later
    TRACE_INVALID = "trace invalid"  # 412: send the whole log again
    RANGE_MISMATCH = "range mismatch"  # 416: go on at ``offset``
    GONE = "gone"  # 404
    ABORT = "abort"  # 403, Job-Status canceled or failed: stop everything
    FAILED = "failed"  # anything else: try again later


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A coordinator's answer to an update or a patch.

    ``status`` is the HTTP status (-1: no answer, -100: no usable client). ``offset`` is the number of bytes the server
    holds after a 416 (0 where it did not say). ``interval_s`` is a new update interval, None where unchanged.
    ``canceling`` asks for a graceful cancel. ``job_status`` is the ``Job-Status`` header, empty when absent.
    """

    verdict: Verdict
    status: int
    offset: int = 0
    interval_s: int | None = None
    canceling: bool = False
    job_status: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobUpdate:
    """``PUT /jobs/:id``. ``checksum`` is ``crc32:%08x`` of all bytes so far, empty in the acceptance update."""

    state: JobState
    failure_reason: str = ""
    exit_code: int = 0
    checksum: str = ""
    bytesize: int = 0


class JobCoordinator(Protocol):
    """The calls of one job, bound to its id and token. None of them raises for what a server can answer."""

    async def update(self, update: JobUpdate) -> Answer:
        """Report a state."""
        ...

    async def patch_trace(self, content: bytes, *, start: int, debug: bool) -> Answer:
        """Append ``content`` (1 … 1 MiB) at ``start``."""
        ...
