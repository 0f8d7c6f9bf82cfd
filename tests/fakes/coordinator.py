"""A GitLab for tests, over real sockets and as strict as the server (``runner-api.md`` 14)."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.fakes import git_server
from tests.fakes.artifacts import ArtifactStore, Bucket
from tests.fakes.faults import Faults, broken_off, cut, scripted
from tests.fakes.job import ENDED, EXECUTING, Job, job_payload
from tests.fakes.protocol import patch_violations, unmet_needs, update_violations

__all__ = ["ENDED", "FakeCoordinator", "Job", "Recorded", "job_payload"]

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
LAST_UPDATE = "X-GitLab-Last-Update"
UPDATE_INTERVAL = "X-GitLab-Trace-Update-Interval"
LAB = "lab"


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


class FakeCoordinator:
    """``async with FakeCoordinator(root) as fake``: listens on ``fake.url``, serves repositories below ``root``.

    What GitLab would let pass but the protocol forbids a runner is collected in ``violations`` and fails the test at
    the end. ``strict=False`` is the server of the recordings: it gives any job to any runner and takes any artifact.
    ``before`` and ``after`` hear of every request: before it acts, and once it has acted but is not answered.
    ``address`` is where it listens. ``two_phase``: a job becomes running with the update that says so (``runner-api.md`` 13.2).
    """

    def __init__(
        self,
        root: Path,
        *,
        faults: list[list[Any]] | None = None,
        trace_interval: int | None = None,
        trace_limit_bytes: int = 100 << 20,
        long_poll_s: float = 0.0,
        context: ssl.SSLContext | None = None,
        strict: bool = True,
        two_phase: bool = False,
        git_auth: bool = False,
        redirect_artifacts: bool = False,
        store_takes_tokens: bool = False,
        address: str = "127.0.0.1",
    ) -> None:
        self.address = address
        self.repositories = root / "repositories"
        self.repositories.mkdir(parents=True, exist_ok=True)
        self.faults = Faults(faults)
        self.trace_interval = trace_interval
        self.trace_limit_bytes = trace_limit_bytes
        self.long_poll_s = long_poll_s
        self.holds_always = False  # without ``last_update`` too, as the server of the recordings
        self.git_delay_s = 0.0
        self.large_files: dict[str, bytes] = {}
        self.resets = 0
        self.reset_expires: str | None = None
        self.jobs: dict[int, Job] = {}
        self.queue: list[int] = []
        self.requests: list[Recorded] = []
        self.violations: list[str] = []
        self.places: dict[str, str] = {}
        self.polled = asyncio.Event()
        self.before: Callable[[Recorded], None] = lambda request: None
        self.after: Callable[[Recorded], None] = lambda request: None
        self.moved = asyncio.Condition()
        self.artifacts = ArtifactStore(self.jobs, strict=strict, redirects=redirect_artifacts, takes_tokens=store_takes_tokens)
        self.bucket = Bucket()
        self._strict = strict
        self._two_phase = two_phase
        self._git_auth = git_auth
        self._queue_value = LAB
        self._context = context
        self._site: web.AppRunner | None = None
        self._started = time.monotonic()
        self.url = ""

    async def __aenter__(self) -> FakeCoordinator:
        app = web.Application(middlewares=[self._record], client_max_size=1 << 30)
        add = app.router.add_route
        add("*", "/git/{path:.*}", self._git)
        add("GET", "/large/{oid}", self._large_file)
        add("*", "/objects/{name:.*}", self.artifacts.object)
        add("*", "/bkt/{key:.*}", self.bucket.serve)
        for prefix in ("/api/v4", "/gitlab/api/v4"):
            add("POST", prefix + "/jobs/request", self._request_job)
            add("PUT", prefix + r"/jobs/{id:\d+}", self._update)
            add("PATCH", prefix + r"/jobs/{id:\d+}/trace", self._patch)
            add("POST", prefix + r"/jobs/{id:\d+}/artifacts", self._upload)
            add("GET", prefix + r"/jobs/{id:\d+}/artifacts", self.artifacts.download)
            add("POST", prefix + "/runners/verify", self._verify)
            add("POST", prefix + "/runners/reset_authentication_token", self._reset_token)
        add("*", "/{path:.*}", self._not_found)
        self._site = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._site.setup()
        await web.TCPSite(self._site, self.address, 0, ssl_context=self._context).start()
        port = self._site.addresses[0][1]
        scheme = "https" if self._context else "http"
        self.url = self.artifacts.base = f"{scheme}://{self.address}:{port}"
        self.places |= {"URL": self.url, "ALT": f"{scheme}://localhost:{port}", "HOST": f"{self.address}:{port}"}
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._site is not None
        await self._site.shutdown()
        await self._site.cleanup()
        if kind is None:
            assert not self.violations, self.violations

    # What tests do

    def add_job(self, payload: dict[str, Any], *, runner_token: str | None = None, finalize_202: int = 0) -> Job:
        job = Job(payload, runner_token, finalize_202=finalize_202)
        self.jobs[job.id] = job
        self.queue.append(job.id)
        self._queue_value = f"{LAB}-{len(self.jobs)}"
        return job

    def git_info(self, commit: str, *, branch: str = "main") -> dict[str, Any]:
        """What a payload says of the repository ``app``."""
        refspecs = [f"+refs/heads/{branch}:refs/remotes/origin/{branch}"]
        return {"repo_url": f"{self.url}/git/app.git", "ref": branch, "sha": commit, "refspecs": refspecs}

    def cancel(self, job: Job) -> None:
        """A user cancels; the runner hears of it with its next call."""
        if job.state == "running" and job.cancels_gracefully:
            job.move("canceling")
        elif job.state not in ENDED:
            job.end("canceled")

    async def wait_finished(self, job_id: int, timeout_s: float = 30.0) -> Job:
        job = self.jobs[job_id]
        await asyncio.wait_for(job.ended.wait(), timeout_s)
        return job

    async def until(self, condition: Any, timeout_s: float = 30.0) -> None:
        """Wait until ``condition()`` holds; looked at after every request."""
        async with asyncio.timeout(timeout_s):
            async with self.moved:
                await self.moved.wait_for(condition)

    def requests_of(self, job: Job) -> list[Recorded]:
        """Every call of one job, oldest first."""
        return [request for request in self.requests if f"/jobs/{job.id}" in f"{request.path}/"]

    # Requests

    @web.middleware
    async def _record(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith("/git/"):
            fault = self.faults.find(f"{request.method} {request.path}", "")
            return scripted(fault, request, self.places) if fault is not None else await handler(request)
        raw = await request.read()
        now = time.monotonic() - self._started
        headers, body = dict(request.headers), _body(request, raw)
        recorded = Recorded(now, request.method, request.path, request.query_string, headers, body)
        self.requests.append(recorded)
        self.before(recorded)
        try:
            response = await self._answer(request, handler, raw)
            recorded.status = response.status
            self.after(recorded)
            return response
        finally:
            async with self.moved:
                self.moved.notify_all()

    async def _answer(self, request: web.Request, handler: Handler, raw: bytes) -> web.StreamResponse:
        fault = self.faults.find(f"{request.method} {request.path}", raw.decode(errors="replace"))
        if fault is None:
            return await handler(request)
        match fault.kind:
            case "status" | "file":
                return scripted(fault, request, self.places)
            case "reset":
                return await cut(request)
            case "lost":
                await handler(request)
                return await cut(request)
            case "short":
                return await broken_off(request, await handler(request), fault.details["bytes"])
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
        """With ``git_auth`` only for who knows the token of a job that executes."""
        await asyncio.sleep(self.git_delay_s)
        tokens = [job.token for job in self.jobs.values() if job.state in EXECUTING]
        known = [f"Basic {base64.b64encode(f'gitlab-ci-token:{token}'.encode()).decode()}" for token in tokens]
        if self._git_auth and request.headers.get("Authorization") not in known:
            return web.Response(
                status=401, headers={"WWW-Authenticate": 'Basic realm="GitLab"'}, text="HTTP Basic: Access denied"
            )
        if request.path.endswith("/info/lfs/objects/batch"):
            return self._large_files(await request.json())
        return await git_server.serve(request, self.repositories)

    def _large_files(self, asked: dict[str, Any]) -> web.Response:
        """Where each of the files is to be had (the batch call of git-lfs)."""
        found = []
        for about in asked["objects"]:
            entry: dict[str, Any] = {"oid": about["oid"], "size": about["size"]}
            if about["oid"] in self.large_files:
                entry["actions"] = {"download": {"href": f"{self.url}/large/{about['oid']}"}}
            else:
                entry["error"] = {"code": 404, "message": "no such file"}
            found.append(entry)
        kind = "application/vnd.git-lfs+json"
        return web.json_response({"transfer": "basic", "objects": found}, content_type=kind)

    async def _large_file(self, request: web.Request) -> web.Response:
        return web.Response(body=self.large_files[request.match_info["oid"]])

    async def _verify(self, request: web.Request) -> web.Response:
        token = (await request.json()).get("token", "")
        return web.json_response({"id": 7, "token": token, "token_expires_at": None})

    async def _reset_token(self, request: web.Request) -> web.Response:
        self.resets += 1
        token = f"glrt-new-token-{self.resets:04}"
        return web.json_response({"token": token, "token_expires_at": self.reset_expires}, status=201)

    async def _not_found(self, request: web.Request) -> web.Response:
        return web.json_response({"error": "404 Not Found"}, status=404)

    async def _request_job(self, request: web.Request) -> web.Response:
        body = _object(await request.read())
        token = body.get("token")
        if not token:
            return web.json_response({"error": "token is missing"}, status=400)
        if "bad" in token:
            return web.json_response({"message": "403 Forbidden"}, status=403)
        self.polled.set()
        known = body.get("last_update")
        if self.holds_always or (self.long_poll_s and known == self._queue_value):
            await self._hold(token)
            if not self.holds_always:
                return web.Response(status=204, headers={"Gitlab-Ci-Builds-Polling": "yes"})
        value = self._queue_value
        job = None if known == value and self._strict else self._next_job(token, body.get("info") or {})
        if job is None:
            return web.Response(status=204, headers={LAST_UPDATE: value})
        job.picked_at = time.monotonic()
        job.assigned = True
        job.cancels_gracefully = bool((body.get("info") or {}).get("features", {}).get("cancel_gracefully"))
        if not self._two_phase:
            job.move("running")
        return web.json_response(job.payload, status=201)

    async def _hold(self, token: str) -> None:
        """Keep a request until the queue changes or the time is over."""
        deadline, value = time.monotonic() + self.long_poll_s, self._queue_value
        while time.monotonic() < deadline and self._queue_value == value and not self._waiting(token):
            await asyncio.sleep(0.05)

    def _waiting(self, token: str) -> list[Job]:
        waiting = [self.jobs[job_id] for job_id in self.queue]
        return [job for job in waiting if job.state == "pending" and job.runner_token in (None, token)]

    def _next_job(self, token: str, info: dict[str, Any]) -> Job | None:
        for job in self._waiting(token):
            self.queue.remove(job.id)
            if self._strict and unmet_needs(job.payload, info.get("features") or {}):
                job.failure_reason = "runner_unsupported"
                job.end("failed")
                continue
            return job
        return None

    def _job(self, request: web.Request, token: str | None) -> Job | web.Response:
        """The job of a call, or the refusal: unknown jobs and foreign tokens look alike."""
        job = self.jobs.get(int(request.match_info["id"]))
        if job is None or not token or token != job.token:
            return web.json_response({"message": "403 Forbidden"}, status=403)
        if job.state not in EXECUTING:
            headers = {"Job-Status": job.state}
            return web.json_response({"message": "403 Forbidden - Job is not running"}, status=403, headers=headers)
        return job

    async def _update(self, request: web.Request) -> web.Response:
        body = _object(await request.read())
        if "token" not in body:
            return web.json_response({"error": "token is missing"}, status=400)
        self._commit(request, body)
        job = self._job(request, body["token"])
        if isinstance(job, web.Response):
            return job
        if body.get("state") not in ("running", "success", "failed"):
            return web.json_response({"error": "state is missing"}, status=400)
        self.violations += update_violations(job, body)
        job.updates.append({key: value for key, value in body.items() if key not in ("info", "token")})
        if body["state"] == "running":
            return self._updated(job, 200)
        if job.finalize_202 > 0:
            job.finalize_202 -= 1
            return self._updated(job, 202)
        job.failure_reason = body.get("failure_reason")
        job.exit_code = body.get("exit_code")
        job.end(body["state"])
        return self._updated(job, 200)

    def _commit(self, request: web.Request, body: dict[str, Any]) -> None:
        """The second phase: the runner says that it runs what it was given."""
        job = self.jobs.get(int(request.match_info["id"]))
        waits = job is not None and self._two_phase and job.assigned and job.state == "pending"
        if job is not None and waits and body["token"] == job.token and body.get("state") == "running":
            job.move("running")

    def _updated(self, job: Job, status: int) -> web.Response:
        headers = self._headers(job) | ({UPDATE_INTERVAL: "1"} if status == 202 else {})
        if job.state in ENDED:
            headers["Job-Status"] = job.state
        return web.Response(status=status, text=str(status), headers=headers, content_type="application/json")

    async def _patch(self, request: web.Request) -> web.Response:
        job = self._job(request, request.headers.get("JOB-TOKEN"))
        if isinstance(job, web.Response):
            return job
        content = await request.read()
        if "Content-Range" not in request.headers:
            return web.json_response({"error": "400 Missing header Content-Range"}, status=400)
        self.violations += patch_violations(request, content)
        start = int(request.headers["Content-Range"].partition("-")[0])
        if start != len(job.trace):
            return self._appended(job, 416)
        job.trace += content
        job.first_byte_at = job.first_byte_at or time.monotonic()
        if start == 0:
            job.debug_trace = request.query.get("debug_trace") == "true"
        if len(job.trace) > self.trace_limit_bytes:
            job.failure_reason = "trace_size_exceeded"
            job.end("failed")
            return web.json_response({"message": "403 Forbidden"}, status=403, headers={"Job-Status": job.state})
        return self._appended(job, 202)

    def _appended(self, job: Job, status: int) -> web.Response:
        headers = {**self._headers(job), "Range": f"0-{len(job.trace)}"}
        return web.Response(status=status, text=str(status), headers=headers)

    async def _upload(self, request: web.Request) -> web.Response:
        job = self._job(request, request.headers.get("JOB-TOKEN"))
        return job if isinstance(job, web.Response) else await self.artifacts.upload(request, job)

    def _headers(self, job: Job) -> dict[str, str]:
        headers = {"Job-Status": job.job_status or job.state}
        if self.trace_interval is not None:
            headers[UPDATE_INTERVAL] = str(self.trace_interval)
        return headers


def _object(raw: bytes) -> dict[str, Any]:
    """The fields of a body; what is no JSON object has none, as for the server."""
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _body(request: web.Request, raw: bytes) -> Any:
    if request.content_type == "application/json" and raw:
        return json.loads(raw)
    return raw.decode(errors="surrogateescape")
