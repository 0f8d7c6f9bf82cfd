"""A GitLab for tests, over real sockets and as strict as the server (``runner-api.md`` 14)."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.fakes import git_server
from tests.fakes.faults import Faults, cut, scripted

ENDED = ("success", "failed", "canceled")
LAST_UPDATE = "X-GitLab-Last-Update"


@dataclass
class Recorded:
    """A request and its answer; ``status`` is None where the connection was cut."""

    t: float
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any
    status: int | None = None


@dataclass
class Job:
    """A job as the server knows it."""

    payload: dict[str, Any]
    runner_token: str | None = None
    state: str = "pending"
    failure_reason: str | None = None
    exit_code: int | None = None
    trace: bytearray = field(default_factory=bytearray)
    updates: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    finalize_202: int = 0
    job_status: str = ""  # what Job-Status says instead of the state
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    picked_at: float = 0.0
    ended_at: float = 0.0
    first_byte_at: float = 0.0

    @property
    def id(self) -> int:
        return int(self.payload["id"])

    @property
    def token(self) -> str:
        return str(self.payload["token"])

    @property
    def log(self) -> str:
        return self.trace.decode(errors="surrogateescape")

    def end(self, state: str) -> None:
        self.state = "canceled" if self.state == "canceling" else state
        self.ended_at = time.monotonic()
        self.ended.set()

    def log_is_whole(self) -> bool:
        """Whether size and checksum of the final update are those of the log."""
        output = self.updates[-1]["output"]
        checksum = f"crc32:{zlib.crc32(self.trace):08x}"
        return bool(output.get("checksum") == checksum and output.get("bytesize", 0) == len(self.trace))


class FakeCoordinator:
    """``async with FakeCoordinator(root) as fake``: listens on ``fake.url``, serves repositories below ``root``."""

    def __init__(
        self,
        root: Path,
        *,
        faults: list[list[Any]] | None = None,
        trace_interval: int | None = None,
        long_poll_s: float = 0.0,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.repositories = root / "repositories"
        self.repositories.mkdir(parents=True, exist_ok=True)
        self.faults = Faults(faults)
        self.trace_interval = trace_interval
        self.long_poll_s = long_poll_s
        self.holds_always = False  # without ``last_update`` too, as the server of the recordings
        self.jobs: dict[int, Job] = {}
        self.queue: list[int] = []
        self.requests: list[Recorded] = []
        self.places: dict[str, str] = {}
        self.polled = asyncio.Event()
        self.moved = asyncio.Condition()
        self._context = context
        self._site: web.AppRunner | None = None
        self._started = time.monotonic()
        self.url = ""

    async def __aenter__(self) -> FakeCoordinator:
        app = web.Application(middlewares=[self._record], client_max_size=1 << 30)
        add = app.router.add_route
        add("*", "/git/{path:.*}", self._git)
        for prefix in ("/api/v4", "/gitlab/api/v4"):
            add("POST", prefix + "/jobs/request", self._request_job)
            add("PUT", prefix + "/jobs/{id}", self._update)
            add("PATCH", prefix + "/jobs/{id}/trace", self._patch)
            add("POST", prefix + "/runners/verify", self._verify)
        add("*", "/{path:.*}", self._not_found)
        self._site = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._site.setup()
        await web.TCPSite(self._site, "127.0.0.1", 0, ssl_context=self._context).start()
        port = self._site.addresses[0][1]
        scheme = "https" if self._context else "http"
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.places |= {"URL": self.url, "ALT": f"{scheme}://localhost:{port}", "HOST": f"127.0.0.1:{port}"}
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._site is not None
        await self._site.shutdown()
        await self._site.cleanup()

    # What tests do

    def add_job(self, payload: dict[str, Any], *, runner_token: str | None = None, finalize_202: int = 0) -> Job:
        job = Job(payload, runner_token, finalize_202=finalize_202)
        self.jobs[job.id] = job
        self.queue.append(job.id)
        return job

    def cancel(self, job: Job) -> None:
        """A user cancels; the runner hears of it with its next call."""
        job.state = "canceling" if job.state == "running" else "canceled"

    async def until(self, condition: Any, timeout_s: float = 30.0) -> None:
        """Wait until ``condition()`` holds; looked at after every request."""
        async with asyncio.timeout(timeout_s):
            async with self.moved:
                await self.moved.wait_for(condition)

    # Requests

    @web.middleware
    async def _record(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path.startswith("/git/"):
            response: web.StreamResponse = await handler(request)
            return response
        raw = await request.read()
        body = _body(request, raw)
        now = time.monotonic() - self._started
        recorded = Recorded(now, request.method, request.path, request.query_string, dict(request.headers), body)
        self.requests.append(recorded)
        try:
            response = await self._answer(request, handler, raw)
            recorded.status = response.status
            return response
        finally:
            async with self.moved:
                self.moved.notify_all()

    async def _answer(self, request: web.Request, handler: Any, raw: bytes) -> web.StreamResponse:
        fault = self.faults.find(f"{request.method} {request.path}", raw.decode(errors="replace"))
        if fault is None:
            response: web.StreamResponse = await handler(request)
            return response
        match fault.kind:
            case "status" | "file":
                return scripted(fault, request, self.places)
            case "reset":
                return await cut(request)
            case "lost":
                await handler(request)
                return await cut(request)
            case "delay":
                await asyncio.sleep(fault.details.get("seconds", fault.details.get("delay", 1)))
            case "truncate":
                job = self.jobs[int(request.match_info["id"])]
                del job.trace[fault.details["to"] :]
            case _:
                pass
        response = await handler(request)
        if fault.kind == "headers":
            response.headers.update({name: str(value) for name, value in fault.details["headers"].items()})
        return response

    async def _git(self, request: web.Request) -> web.StreamResponse:
        return await git_server.serve(request, self.repositories)

    async def _verify(self, request: web.Request) -> web.Response:
        token = (await request.json()).get("token", "")
        return web.json_response({"id": 7, "token": token, "token_expires_at": None})

    async def _not_found(self, request: web.Request) -> web.Response:
        return web.json_response({"error": "404 Not Found"}, status=404)

    async def _request_job(self, request: web.Request) -> web.Response:
        body = await request.json()
        token = body.get("token")
        if not token:
            return web.json_response({"error": "token is missing"}, status=400)
        if "bad" in token:
            return web.json_response({"message": "403 Forbidden"}, status=403)
        self.polled.set()
        deadline = time.monotonic() + self.long_poll_s
        while (
            (job := self._next_job(token)) is None
            and time.monotonic() < deadline
            and (self.holds_always or body.get("last_update"))
        ):
            await asyncio.sleep(0.05)
        if job is None:
            return web.Response(status=204, headers={LAST_UPDATE: "lab"})
        job.state, job.picked_at = "running", time.monotonic()
        return web.json_response(job.payload, status=201)

    def _next_job(self, token: str) -> Job | None:
        for job_id in self.queue:
            job = self.jobs[job_id]
            if job.state == "pending" and job.runner_token in (None, token):
                self.queue.remove(job_id)
                return job
        return None

    def _job(self, request: web.Request, token: str | None) -> Job | web.Response:
        """The job of a call, or the refusal: unknown jobs and foreign tokens look alike."""
        job = self.jobs.get(int(request.match_info["id"]))
        if job is None or not token or token != job.token:
            return web.json_response({"message": "403 Forbidden"}, status=403)
        if job.state not in ("running", "canceling"):
            headers = {"Job-Status": job.state}
            return web.json_response({"message": "403 Forbidden - Job is not running"}, status=403, headers=headers)
        return job

    async def _update(self, request: web.Request) -> web.Response:
        body = await request.json()
        if "token" not in body:
            return web.json_response({"error": "token is missing"}, status=400)
        job = self._job(request, body["token"])
        if isinstance(job, web.Response):
            return job
        if body.get("state") not in ("running", "success", "failed"):
            return web.json_response({"error": "state is missing"}, status=400)
        job.updates.append({key: value for key, value in body.items() if key not in ("info", "token")})
        headers = self._headers(job)
        if body["state"] != "running":
            if job.finalize_202 > 0:
                job.finalize_202 -= 1
                return web.Response(status=202, text="202", headers={**headers, "X-GitLab-Trace-Update-Interval": "1"})
            job.failure_reason = body.get("failure_reason")
            job.exit_code = body.get("exit_code")
            job.end(body["state"])
            headers["Job-Status"] = job.state
        return web.Response(text="200", headers=headers, content_type="application/json")

    async def _patch(self, request: web.Request) -> web.Response:
        job = self._job(request, request.headers.get("JOB-TOKEN"))
        if isinstance(job, web.Response):
            return job
        content = await request.read()
        spread = request.headers.get("Content-Range")
        if spread is None or request.headers.get("Content-Type") != "text/plain":
            return web.json_response({"error": "400 Missing header Content-Range"}, status=400)
        start, _, end = spread.partition("-")
        assert int(end) - int(start) + 1 == len(content), "Content-Range and body differ"
        headers = self._headers(job)
        if int(start) != len(job.trace):
            return web.Response(status=416, headers={**headers, "Range": f"0-{len(job.trace)}"})
        job.trace += content
        job.first_byte_at = job.first_byte_at or time.monotonic()
        return web.Response(status=202, text="202", headers={**headers, "Range": f"0-{len(job.trace)}"})

    def _headers(self, job: Job) -> dict[str, str]:
        headers = {"Job-Status": job.job_status or job.state}
        if self.trace_interval is not None:
            headers["X-GitLab-Trace-Update-Interval"] = str(self.trace_interval)
        return headers


def _body(request: web.Request, raw: bytes) -> Any:
    if request.content_type == "application/json" and raw:
        return json.loads(raw)
    return raw.decode(errors="surrogateescape")


def job_payload(job_id: int, script: list[str], **changes: Any) -> dict[str, Any]:
    """What GitLab would send for a job without sources; ``variables`` and ``after_script`` are shortcuts."""
    variables = {"CI_JOB_ID": str(job_id), "GIT_STRATEGY": "none", **changes.pop("variables", {})}
    steps = [{"name": "script", "script": script, "timeout": 3600, "when": "on_success", "allow_failure": False}]
    after = changes.pop("after_script", None)
    if after is not None:
        steps.append({"name": "after_script", "script": after, "when": "always", "allow_failure": True})
    payload = {
        "id": job_id,
        "token": f"glcbt-job-{job_id}",
        "allow_git_fetch": True,
        "job_info": {"id": job_id, "name": "test", "stage": "test", "project_id": 9, "project_name": "project"},
        "git_info": {"repo_url": "http://127.0.0.1/group/project.git", "ref": "main", "sha": "0" * 40, "depth": 20},
        "runner_info": {"timeout": 3600},
        "variables": [{"key": key, "value": value, "public": True} for key, value in variables.items()],
        "steps": steps,
        "features": {"trace_sections": True, "failure_reasons": ["unknown_failure", "runner_interrupted"]},
    }
    return {**payload, **changes}
