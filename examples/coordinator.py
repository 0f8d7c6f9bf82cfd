"""A coordinator for demonstrations: it hands out one job, keeps its log and prints it as it comes.

It speaks just enough of the runner API for one runner on this machine, and serves one repository over HTTP.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

RUNNER_TOKEN = "glrt-demonstration"
JOB_TOKEN = "glcbt-demonstration"
JOB_ID = 1


@dataclass
class DemoJob:
    """What the coordinator knows of its job."""

    payload: dict[str, Any]
    state: str = "pending"
    trace: bytearray = field(default_factory=bytearray)
    final: dict[str, Any] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def is_whole(self) -> bool:
        """Whether the log has the size and the checksum that the runner gave with its result."""
        output = self.final.get("output", {})
        checksum = f"crc32:{binascii.crc32(self.trace):08x}"
        return bool(output.get("bytesize") == len(self.trace) and output.get("checksum") == checksum)


class DemoCoordinator:
    """Serves the bare repositories below ``root`` and one job. ``on_log`` sees every piece of log that is new."""

    def __init__(self, root: Path, on_log: Callable[[bytes], None]) -> None:
        self._root = root
        self._on_log = on_log
        self._site: web.AppRunner | None = None
        self.job: DemoJob | None = None
        self.url = ""

    async def start(self) -> None:
        """Listen on a free port of this machine."""
        app = web.Application(client_max_size=8 * 1024 * 1024)
        app.router.add_post("/api/v4/runners/verify", self._verify)
        app.router.add_post("/api/v4/jobs/request", self._request)
        app.router.add_put("/api/v4/jobs/{id}", self._update)
        app.router.add_patch("/api/v4/jobs/{id}/trace", self._patch)
        app.router.add_static("/git", self._root)
        self._site = web.AppRunner(app, access_log=None)
        await self._site.setup()
        site = web.TCPSite(self._site, "127.0.0.1", 0)
        await site.start()
        host, port = self._site.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """Stop listening."""
        if self._site is not None:
            await self._site.cleanup()

    def offer(self, payload: dict[str, Any]) -> DemoJob:
        """Queue the job."""
        self.job = DemoJob(payload=payload)
        return self.job

    async def _verify(self, _: web.Request) -> web.Response:
        return web.json_response({"id": 1, "token": RUNNER_TOKEN, "token_expires_at": None})

    async def _request(self, _: web.Request) -> web.Response:
        if self.job is None or self.job.state != "pending":
            return web.Response(status=204)
        self.job.state = "running"
        return web.json_response(self.job.payload, status=201)

    async def _update(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        update = json.loads(await request.read())
        if update["state"] in ("success", "failed"):
            job.state, job.final = update["state"], update
            job.ended.set()
        return web.Response(text="200", headers={"Job-Status": job.state})

    async def _patch(self, request: web.Request) -> web.Response:
        job = self._job_of(request)
        content = await request.read()
        start = int(request.headers["Content-Range"].partition("-")[0])
        headers = {"Job-Status": job.state, "X-GitLab-Trace-Update-Interval": "1"}
        if start != len(job.trace):
            return web.Response(status=416, headers={**headers, "Range": f"0-{len(job.trace)}"})
        job.trace += content
        self._on_log(content)
        return web.Response(status=202, headers={**headers, "Range": f"0-{len(job.trace)}"})

    def _job_of(self, request: web.Request) -> DemoJob:
        if self.job is None or self.job.state != "running" or request.headers.get("JOB-TOKEN") != JOB_TOKEN:
            raise web.HTTPForbidden
        return self.job


def job_payload(url: str, repository: str, sha: str, script: list[str]) -> dict[str, Any]:
    """What GitLab would send for a job of this repository with this script."""
    variables = {
        "CI": "true",
        "CI_JOB_ID": str(JOB_ID),
        "CI_JOB_NAME": "test",
        "CI_PROJECT_PATH": "demo/" + repository,
        "CI_COMMIT_SHA": sha,
        "CI_SERVER_URL": url,
        "FF_TIMESTAMPS": "false",
    }
    return {
        "id": JOB_ID,
        "token": JOB_TOKEN,
        "allow_git_fetch": True,
        "job_info": {"name": "test", "stage": "test", "project_id": 1, "project_name": repository},
        "git_info": {
            "repo_url": f"{url}/git/{repository}.git",
            "ref": "main",
            "sha": sha,
            "before_sha": "0" * 40,
            "ref_type": "branch",
            "refspecs": ["+refs/heads/*:refs/remotes/origin/*"],
            "depth": 0,
        },
        "runner_info": {"timeout": 600},
        "variables": [{"key": key, "value": value, "public": True, "masked": False} for key, value in variables.items()],
        "steps": [
            {"name": "script", "script": script, "timeout": 600, "when": "on_success"},
            {"name": "after_script", "script": ['echo "job status: $CI_JOB_STATUS"'], "timeout": 600, "when": "always"},
        ],
        "features": {"trace_sections": False, "failure_reasons": []},
    }


def print_log(content: bytes) -> None:
    """Show a piece of job log on the terminal."""
    sys.stdout.buffer.write(content)
    sys.stdout.flush()
