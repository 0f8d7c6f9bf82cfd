"""What a job leaves in its workspace never makes the runner, or the next job, do anything."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import files_below

PLANTS = {
    "fsmonitor": "git config core.fsmonitor 'touch $PWNED; false'",
    "hooks": "mkdir -p .git/hooks; printf '#!/bin/sh\\ntouch $PWNED\\n' > .git/hooks/post-checkout; "
    "cp .git/hooks/post-checkout .git/hooks/reference-transaction; chmod +x .git/hooks/*",
    "hooks-path": "mkdir h; printf '#!/bin/sh\\ntouch $PWNED\\n' > h/post-checkout; chmod +x h/*; "
    "git config core.hooksPath $PWD/h",
    "filter": "git config filter.x.smudge 'touch $PWNED; cat'; mkdir -p .git/info; echo '* filter=x' > .git/info/attributes",
    "include": "printf '[core]\\nfsmonitor = touch $PWNED; false\\n' > ../evil; git config include.path $PWD/../evil",
    "ssh-command": "git config core.sshCommand 'touch $PWNED'; git config core.gitProxy 'touch $PWNED'",
    "commondir": "cp -r .git ../elsewhere; git -C ../elsewhere config core.fsmonitor 'touch $PWNED; false'; "
    "echo $PWD/../elsewhere > .git/commondir",
    "git-file": "cp -r .git ../elsewhere; git -C ../elsewhere config core.fsmonitor 'touch $PWNED; false'; "
    'rm -rf .git; echo "gitdir: $PWD/../elsewhere" > .git',
    "git-link": "mv .git ../elsewhere; git -C ../elsewhere config core.fsmonitor 'touch $PWNED; false'; ln -s ../elsewhere .git",
    "locks": "touch .git/index.lock .git/shallow.lock .git/HEAD.lock .git/config.lock .git/refs/heads/x.lock",
}


def payload(fake: FakeCoordinator, job_id: int, commit: str, script: list[str]) -> dict[str, Any]:
    found = job_payload(job_id, script, variables={"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false"})
    found["git_info"] |= fake.git_info(commit)
    return found


async def ran(fake: FakeCoordinator, job: Job) -> Job:
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success", job.log
    return job


@pytest.mark.parametrize("plant", PLANTS)
async def test_the_next_job_is_not_touched(
    plant: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n", "a/b": "x\n"})
    pwned = tmp_path / "pwned"
    daemon = make_daemon()
    daemon.start()
    await ran(
        fake, fake.add_job(payload(fake, 1, commit, [PLANTS[plant].replace("$PWNED", str(pwned)), "rm README; echo y > a/b"]))
    )
    pwned.unlink(missing_ok=True)  # the job itself may set off what it planted
    second = await ran(fake, fake.add_job(payload(fake, 2, commit, ["cat README a/b"])))
    assert "hello\nx\n" in second.log
    assert not pwned.exists()


async def test_no_token_stays_in_the_workspace(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon()
    daemon.start()
    found = payload(fake, 1, commit, ["cat .git/config"])
    found["git_info"]["repo_url"] = f"{fake.url}/git/app.git".replace("://", f"://gitlab-ci-token:{found['token']}@")
    job = await ran(fake, fake.add_job(found))
    assert job.token not in job.log
    left = files_below(daemon.root / "builds")
    assert left
    assert not [path for path in left if job.token.encode() in path.read_bytes()]


async def test_a_link_in_the_place_of_the_project_is_not_followed(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    daemon = make_daemon()
    project = daemon.root / "builds" / "lab" / "0" / "git" / "app"
    project.parent.mkdir(parents=True)
    project.symlink_to(outside)
    daemon.start()
    job = fake.add_job(payload(fake, 1, commit, ["true"]))
    await asyncio.wait_for(job.ended.wait(), 20)
    assert os.listdir(outside) == ["keep"]
