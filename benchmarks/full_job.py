"""A job with everything, the same for shell and Docker: a clone of 400 files, a cache of 400, artifacts, an after_script."""

from __future__ import annotations

from typing import Any

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.job import job_payload

FILES = 400
SERVE = "mkdir /w; echo up > /w/index.html; exec httpd -f -p 8080 -h /w"
SERVICE = {"name": "gold-exposed:local", "alias": "web", "entrypoint": ["sh", "-c"], "command": [SERVE]}


def make_repository(fake: FakeCoordinator) -> str:
    """The repository of the job; its commit."""
    files = {"README": "hello\n", **{f"dir{n % 20}/file{n}": f"{n}\n" * 20 for n in range(FILES)}}
    return git_server.make_repository(fake.repositories, "app", files)


def full_job(fake: FakeCoordinator, commit: str, number: int, *, service: bool = False) -> dict[str, Any]:
    """The payload; with ``service`` the script also asks one."""
    script = [f"mkdir -p c out; i=0; while [ $i -lt {FILES} ]; do i=$((i+1)); echo $i >c/$i; done; cp README out/"]
    payload = job_payload(
        number,
        [*script, "wget -qO- http://web:8080/"] if service else script,
        after_script=["echo after"],
        services=[SERVICE] if service else [],
        cache=[{"key": "k", "paths": ["c/"], "policy": "pull-push", "when": "on_success"}],
        artifacts=[{"paths": ["out/"], "when": "on_success", "artifact_type": "archive", "artifact_format": "zip"}],
        variables={"GIT_STRATEGY": "clone"},
    )
    payload["git_info"] |= fake.git_info(commit)
    return payload
