"""What a job needs of a coordinator: the HTTP client implements it for GitLab, ``pipeline`` for a local run."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
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


class ArtifactVerdict(enum.Enum):
    """What an answer to an upload or a download of artifacts means (``runner-api.md`` 9.2, 10)."""

    OK = "ok"
    UNAUTHORIZED = "unauthorized"  # 401 on a download
    FORBIDDEN = "forbidden"  # 403
    NOT_FOUND = "not found"  # 404 on a download
    TOO_LARGE = "too large"  # 413
    UNAVAILABLE = "unavailable"  # 503
    REFUSED = "refused"  # a status that the same upload would get again
    FAILED = "failed"  # anything else: try again
    ERROR = "error"  # no answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactAnswer:
    """``text`` is for the log: what the server said, or why there was no answer; ``message`` the server's own words, if
    any. ``headers`` and ``body`` (its first bytes) are those of the answer to an upload."""

    verdict: ArtifactVerdict
    status: int
    text: str
    message: str = ""
    correlation_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferSettings:
    """``attempts``: requests for one try. ``on_wait`` hears of each pause between them: seconds, method, URL."""

    attempts: int
    on_wait: Callable[[float, str, str], None]
    total_timeout_s: float = 3600.0
    header_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactUpload:
    """One archive. ``content`` gives its bytes, from the first one, whenever it is called."""

    file_name: str
    content: Callable[[], AsyncIterator[bytes]]
    artifact_format: str = ""
    artifact_type: str = ""
    expire_in: str = ""


class JobReports(Protocol):
    """What a job tells of itself, bound to its id and token. No call raises for what a server can answer."""

    async def update(self, update: JobUpdate) -> Answer:
        """Report a state."""
        ...

    async def patch_trace(self, content: bytes, *, start: int, debug: bool) -> Answer:
        """Append ``content`` (1 … 1 MiB) at ``start``."""
        ...


class JobCoordinator(JobReports, Protocol):
    """All calls of one job."""

    async def upload_artifacts(self, upload: ArtifactUpload, settings: TransferSettings) -> ArtifactAnswer:
        """Send an archive; one try."""
        ...

    async def download_artifacts(
        self,
        job_id: int,
        token: str,
        *,
        direct: bool,
        sink: Callable[[bytes], None],
        on_store: Callable[[str, int], None],
        settings: TransferSettings,
    ) -> ArtifactAnswer:
        """Fetch the archive of another job with its own token; one try. With ``direct`` the server may send to its store:
        ``on_store`` hears host and status of that."""
        ...
