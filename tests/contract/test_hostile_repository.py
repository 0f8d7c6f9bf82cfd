"""What is in a repository itself runs nothing and leads nowhere, however its submodules are described."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import files_below

MODULE = '[submodule "{name}"]\n\tpath = {path}\n\turl = {url}\n{more}'
DESCRIBED = {
    "external-transport": {"url": "ext::touch% $PWNED"},
    "option-as-address": {"url": "-u./payload.sh"},
    "option-as-path": {"path": "-u./payload.sh"},
    "update-command": {"more": "\tupdate = !touch $PWNED\n"},
    "name-that-leads-out": {"name": "../../hooks"},
    "name-that-is-absolute": {"name": "/tmp/pwned"},
    "path-that-leads-out": {"path": "../outside"},
    "path-of-git": {"path": ".git/hooks"},
    "path-behind-a-link": {"path": "link/hooks"},
    "local-address": {"url": "file:///etc"},
    "line-end-in-the-address": {"url": '"http://x/\\n[core]\\n\\tfsmonitor = touch $PWNED"'},
}


def make_repository(fake: FakeCoordinator, described: dict[str, str], pwned: Path) -> str:
    """A repository with a submodule that is described like this, and whatever it could run."""
    git_server.make_repository(fake.repositories, "sub", {"hooks/post-checkout": f"#!/bin/sh\ntouch {pwned}\n"})
    sub = git_server.git("rev-parse", "HEAD", cwd=fake.repositories / "sub-work")
    about = {"name": "sub", "path": "sub", "url": "../sub.git", "more": "", **described}
    text = MODULE.format(**about).replace("$PWNED", str(pwned))
    files = {".gitmodules": text, "payload.sh": f"#!/bin/sh\ntouch {pwned}\n", "README": "hello\n"}
    git_server.make_repository(fake.repositories, "app", files)
    work = fake.repositories / "app-work"
    (work / "link").symlink_to(".git")
    git_server.git("add", "link", cwd=work)
    place = about["path"] if about["path"] not in ("../outside", ".git/hooks", "link/hooks") else "sub"
    git_server.git("update-index", "--add", "--cacheinfo", f"160000,{sub},{place}", cwd=work)
    git_server.git("commit", "--quiet", "--message", "hostile", cwd=work)
    git_server.git("push", "--quiet", str(fake.repositories / "app.git"), "HEAD:main", cwd=work)
    return git_server.git("rev-parse", "HEAD", cwd=work)


@pytest.mark.parametrize("described", DESCRIBED)
async def test_submodules_run_nothing(
    described: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    pwned = tmp_path / "pwned"
    commit = make_repository(fake, DESCRIBED[described], pwned)
    daemon = make_daemon()
    daemon.start()
    settings: dict[str, Any] = {"GIT_STRATEGY": "fetch", "GIT_SUBMODULE_STRATEGY": "recursive", "FF_TIMESTAMPS": "false"}
    for number in (1, 2):
        found = job_payload(number, ["cat README"], variables=settings)
        found["git_info"] |= fake.git_info(commit)
        job = fake.add_job(found)
        await asyncio.wait_for(job.ended.wait(), 30)
        assert job.state in ("success", "failed")
        assert f"Checking out {commit[:8]}" in job.log
    assert not pwned.exists()
    project = daemon.root / "builds" / "lab" / "0" / "git" / "app"
    assert not files_below(project / ".git" / "hooks")
    assert not (project.parent / "outside").exists()
