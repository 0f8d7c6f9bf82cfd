"""A runner entry's calls to GitLab: asking for jobs, and the calls of each job (``runner-api.md`` 3, 5, 6)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from runner.coordinator import registration
from runner.coordinator.artifacts import ArtifactCalls
from runner.coordinator.http import HttpClient
from runner.coordinator.port import Answer, JobState, JobUpdate, Verdict
from runner.coordinator.response import JSON, NO_CLIENT, Response
from runner.coordinator.tls import TlsData, job_data

log = structlog.get_logger()

LAST_UPDATE = "X-GitLab-Last-Update"
INTERVAL = "X-GitLab-Trace-Update-Interval"
JOB_STATUS = "Job-Status"
MAX_INTERVAL_S = 900
NO_TLS = TlsData()


class JobRequestKind(enum.StrEnum):
    """What came of asking for a job."""

    JOB = "job"
    NONE = "none"
    FORBIDDEN = "forbidden"
    FAILED = "failed"
    CLIENT_ERROR = "client error"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequestResult:
    """An answer to a job request. ``raw`` is the body of a 201, not yet looked into; ``healthy`` counts for 5.5."""

    kind: JobRequestKind
    status: int
    raw: bytes = b""
    correlation_id: str = ""
    tls: TlsData = NO_TLS
    retried: bool = False

    @property
    def healthy(self) -> bool:
        """Only a refusal and an unusable client make a runner unhealthy."""
        return self.kind not in (JobRequestKind.FORBIDDEN, JobRequestKind.CLIENT_ERROR)


class Coordinator:
    """GitLab, as one runner entry sees it. ``info`` is the object of :func:`runner.coordinator.info.runner_info`."""

    def __init__(
        self,
        http: HttpClient,
        *,
        token: str,
        system_id: str,
        info: dict[str, Any],
        runner: str = "",
        runner_name: str = "",
    ) -> None:
        self._http = http
        self._token = token
        self._system_id = system_id
        self._info = msgspec.Raw(msgspec.json.encode(info))
        self._last_update = ""
        self._log = log.bind(runner=runner, runner_name=runner_name)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def reset_token(self) -> registration.CallResult:
        """A new token for this runner; this object goes on with the former one."""
        return await registration.reset_token(self._http, self._token)

    async def request_job(self, *, hold: bool = True) -> JobRequestResult:
        """Ask for a job. Not cancel-safe: the server may have handed one out already.

        ``hold`` lets the server keep the request open until there is something new.
        """
        body: dict[str, Any] = {"info": self._info, "token": self._token}
        if self._system_id:
            body["system_id"] = self._system_id
        if hold and self._last_update:
            body["last_update"] = self._last_update
        response = await self._http.request(
            "POST",
            "jobs/request",
            headers={"Accept": JSON, "RUNNER-TOKEN": self._token},
            body=msgspec.json.encode(body),
            endpoint="request_job",
        )
        self._last_update = response.headers.get(LAST_UPDATE) or self._last_update
        return self._classify(response)

    def _classify(self, response: Response) -> JobRequestResult:
        kind = JobRequestKind.FAILED
        match response.status:
            case 201 if response.is_json:
                kind = JobRequestKind.JOB
            case 204:
                kind = JobRequestKind.NONE
                self._log.debug("Checking for jobs... no content")
            case 403:
                kind = JobRequestKind.FORBIDDEN
                self._log.error("Checking for jobs... forbidden", status=response.line)
            case 503:
                self._log.warning("Checking for jobs... GitLab instance currently unavailable", status=response.line)
            case 201:
                self._log.warning("Checking for jobs... failed", status="201 without JSON")
            case status if status == NO_CLIENT:
                kind = JobRequestKind.CLIENT_ERROR
                self._log.error("Checking for jobs... client error", status=response.reason)
            case _:
                self._log.warning("Checking for jobs... failed", status=response.line)
        got = kind is JobRequestKind.JOB
        return JobRequestResult(
            kind=kind,
            status=response.status,
            raw=response.body if got else b"",
            correlation_id=response.correlation_id,
            tls=job_data(self._http.tls, response.ssl) if got else NO_TLS,
            retried=response.retried,
        )

    def job(self, job_id: int, job_token: str) -> JobCalls:
        """The calls of one job."""
        return JobCalls(self._http, self._info, job_id, job_token, self._log)


class JobCalls(ArtifactCalls):
    """The calls of one job; see :class:`runner.coordinator.port.JobCoordinator`."""

    def __init__(
        self,
        http: HttpClient,
        info: msgspec.Raw,
        job_id: int,
        job_token: str,
        logger: structlog.typing.FilteringBoundLogger,
    ) -> None:
        super().__init__(http, job_id, job_token)
        self._info = info
        self._log = logger.bind(job=job_id)

    async def update(self, update: JobUpdate) -> Answer:
        """``PUT /jobs/:id`` (``runner-api.md`` 5)."""
        self._log.info("Updating job...", checksum=update.checksum, bytesize=update.bytesize)
        response = await self._http.request(
            "PUT",
            f"jobs/{self._job_id}",
            headers={"JOB-TOKEN": self._token},
            body=msgspec.json.encode(self._update_body(update)),
            endpoint="update_job",
        )
        verdict = _update_verdict(response)
        answer = self._answer(response, verdict)
        facts = {
            "code": response.status,
            "checksum": update.checksum,
            "bytesize": update.bytesize,
            "job-status": answer.job_status,
            "correlation_id": response.correlation_id,
        }
        if verdict in (Verdict.OK, Verdict.NOT_COMPLETE):
            self._log.info("Submitting job to coordinator...ok", **facts)
        elif verdict is Verdict.ABORT and response.status == 200 and update.state is not JobState.RUNNING:
            # The answer to a final update carries the final state: the update was taken.
            if update.state is JobState.FAILED:
                self._log.warning("Submitting job to coordinator... job failed", status=response.line, **facts)
            else:
                self._log.info("Submitting job to coordinator...ok", **facts)
        else:
            self._log.warning("Submitting job to coordinator... failed", status=response.line, **facts)
        return answer

    def _update_body(self, update: JobUpdate) -> dict[str, Any]:
        body: dict[str, Any] = {"info": self._info, "token": self._token, "state": update.state.value}
        if update.failure_reason:
            body["failure_reason"] = update.failure_reason
        output: dict[str, Any] = {}
        if update.checksum:
            body["checksum"] = output["checksum"] = update.checksum
        if update.bytesize:
            output["bytesize"] = update.bytesize
        body["output"] = output
        if update.exit_code:
            body["exit_code"] = update.exit_code
        return body

    async def patch_trace(self, content: bytes, *, start: int, debug: bool) -> Answer:
        """``PATCH /jobs/:id/trace`` (``runner-api.md`` 6)."""
        end = start + len(content) - 1
        response = await self._http.request(
            "PATCH",
            f"jobs/{self._job_id}/trace",
            query=f"debug_trace={'true' if debug else 'false'}",
            headers={"JOB-TOKEN": self._token, "Content-Range": f"{start}-{end}"},
            body=content,
            content_type="text/plain",
            endpoint="patch_trace",
        )
        verdict = _patch_verdict(response)
        answer = self._answer(response, verdict)
        facts = {
            "code": response.status,
            "sent-log": f"{start}-{end}",
            "job-log": response.headers.get("Range", ""),
            "job-status": answer.job_status,
            "correlation_id": response.correlation_id,
            "status": response.line,
        }
        if verdict is Verdict.OK:
            self._log.info("Appending trace to coordinator...ok", **facts)
        elif verdict is Verdict.RANGE_MISMATCH:
            self._log.warning("Appending trace to coordinator... range mismatch", **facts)
        else:
            self._log.warning("Appending trace to coordinator... failed", **facts)
        return answer

    def _answer(self, response: Response, verdict: Verdict) -> Answer:
        status = response.headers.get(JOB_STATUS, "")
        return Answer(
            verdict=verdict,
            status=response.status,
            offset=_held_bytes(response) if verdict is Verdict.RANGE_MISMATCH else 0,
            interval_s=self._interval_s(response),
            canceling=status == "canceling",
            job_status=status,
        )

    def _interval_s(self, response: Response) -> int | None:
        text = response.headers.get(INTERVAL)
        if not text:
            return None
        try:
            seconds = int(text.strip())
        except ValueError:
            self._log.warning("update interval of the server cannot be read", value=text)
            return None
        return min(seconds, MAX_INTERVAL_S) if seconds > 0 else None


def _update_verdict(response: Response) -> Verdict:
    if response.headers.get(JOB_STATUS) in ("canceled", "failed"):
        return Verdict.ABORT
    match response.status:
        case 200:
            return Verdict.OK
        case 202:
            return Verdict.NOT_COMPLETE
        case 403:
            return Verdict.ABORT
        case 404:
            return Verdict.GONE
        case 412:
            return Verdict.TRACE_INVALID
        case status if status == NO_CLIENT:
            return Verdict.ABORT
        case _:
            return Verdict.FAILED


def _patch_verdict(response: Response) -> Verdict:
    if response.headers.get(JOB_STATUS) in ("canceled", "failed"):
        return Verdict.ABORT
    match response.status:
        case 202:
            return Verdict.OK
        case 403:
            return Verdict.ABORT
        case 404:
            return Verdict.GONE
        case 416:
            return Verdict.RANGE_MISMATCH
        case _:
            return Verdict.FAILED


def _held_bytes(response: Response) -> int:
    """The number behind the dash of ``Range``; 0 where it cannot be read."""
    text = response.headers.get("Range", "").partition("-")[2].strip()
    return int(text) if text.isascii() and text.isdigit() else 0
