"""A job as the server knows it, and the payload it hands out."""

from __future__ import annotations

import asyncio
import time
import zlib
from dataclasses import dataclass, field
from typing import Any

ENDED = ("success", "failed", "canceled")
EXECUTING = ("running", "canceling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One accepted upload; ``form``: what its query said (``artifact_type``, ``artifact_format``, ``expire_in``)."""

    form: dict[str, str]
    file_name: str
    content: bytes

    @property
    def kind(self) -> str:
        return self.form.get("artifact_type", "archive")


@dataclass
class Job:
    """``states`` is every state it was in, in order; ``updates`` every accepted update without ``info`` and token."""

    payload: dict[str, Any]
    runner_token: str | None = None
    state: str = "pending"
    states: list[str] = field(default_factory=lambda: ["pending"])
    failure_reason: str | None = None
    exit_code: int | None = None
    trace: bytearray = field(default_factory=bytearray)
    debug_trace: bool = False
    updates: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    finalize_202: int = 0
    job_status: str = ""  # what Job-Status says instead of the state
    assigned: bool = False
    cancels_gracefully: bool = True  # what the runner that took it has said of itself
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

    def move(self, state: str) -> None:
        self.state = state
        if self.states[-1] != state:
            self.states.append(state)

    def end(self, state: str) -> None:
        """The end as the server takes it: whatever a job reports while it is being canceled, it is canceled."""
        self.move("canceled" if self.state == "canceling" else state)
        self.ended_at = time.monotonic()
        self.ended.set()

    def log_is_whole(self) -> bool:
        """Whether size and checksum of the final update are those of the log."""
        output = self.updates[-1]["output"]
        checksum = f"crc32:{zlib.crc32(self.trace):08x}"
        return bool(output.get("checksum") == checksum and output.get("bytesize", 0) == len(self.trace))


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
