"""Sources by ``git clone`` (``FF_USE_GIT_NATIVE_CLONE``, ``job-lifecycle.md`` 11.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_hostile_workspace import ran
from tests.fakes import git_server, new_git
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon

Make = Callable[..., Daemon]


def payload(fake: FakeCoordinator, job_id: int, commit: str, script: list[str], *, ref: str, **variables: str) -> dict[str, Any]:
    settings = {"GIT_STRATEGY": "clone", "FF_USE_GIT_NATIVE_CLONE": "true", "FF_TIMESTAMPS": "false", **variables}
    found = job_payload(job_id, script, variables=settings)
    found["git_info"] |= fake.git_info(commit) | {"ref": ref, "depth": 20}
    login = f"://gitlab-ci-token:{found['token']}@"
    found["git_info"]["repo_url"] = found["git_info"]["repo_url"].replace("://", login)
    return found


@pytest.mark.parametrize("ref", ["main", "refs/merge-requests/7/head"])
async def test_a_ref_is_cloned(ref: str, fake: FakeCoordinator, make_daemon: Make, tmp_path: Path) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n", "a/b": "x\n"})
    git_server.git("update-ref", "refs/merge-requests/7/head", commit, cwd=fake.repositories / "app.git")
    daemon = make_daemon()
    new_git.put_first(daemon.home, tmp_path / "clones")
    daemon.start()
    script = ["cat README a/b", "git status --short --branch", "git remote get-url origin", "cat .git/config"]
    for number in (1, 2):
        job = await ran(fake, fake.add_job(payload(fake, number, commit, script, ref=ref)))
        assert f"Cloning repository for {ref} with git depth set to 20..." in job.log
        assert f"Checking out {commit[:8]} as detached HEAD (ref is {ref})..." in job.log
        assert "Fetching changes" not in job.log
        assert "\nhello\nx\n" in job.log
        assert "\n## HEAD (no branch)\n" in job.log
        assert job.token not in job.log


async def test_a_commit_that_the_ref_has_left_is_fetched(fake: FakeCoordinator, make_daemon: Make, tmp_path: Path) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    work = fake.repositories / "app-work"
    (work / "README").write_text("newer\n")
    git_server.git("commit", "--quiet", "--amend", "--all", "--message", "another", cwd=work)
    git_server.git("push", "--quiet", "--force", str(fake.repositories / "app.git"), "HEAD:main", cwd=work)
    git_server.git("update-ref", "refs/pipelines/1", commit, cwd=fake.repositories / "app.git")
    daemon = make_daemon()
    new_git.put_first(daemon.home, tmp_path / "clones")
    daemon.start()
    found = payload(fake, 1, commit, ["cat README"], ref="main")
    found["git_info"]["refspecs"] = ["+refs/pipelines/1:refs/pipelines/1"]
    job = await ran(fake, fake.add_job(found))
    assert "\nhello\n" in job.log


async def test_flags_of_the_job_reach_the_clone(fake: FakeCoordinator, make_daemon: Make, tmp_path: Path) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    git_server.git("tag", "v1", commit, cwd=fake.repositories / "app.git")
    daemon = make_daemon()
    new_git.put_first(daemon.home, tmp_path / "clones")
    daemon.start()
    job = await ran(
        fake, fake.add_job(payload(fake, 1, commit, ["git tag | wc -l"], ref="main", GIT_CLONE_EXTRA_FLAGS="--no-tags --quiet"))
    )
    assert "\n0\n" in job.log
    assert "Cloning into" not in job.log


@pytest.mark.parametrize("variables", [{"GIT_STRATEGY": "fetch"}, {"FF_USE_GIT_NATIVE_CLONE": "false"}])
async def test_without_strategy_or_flag_it_is_a_fetch(
    variables: dict[str, str], fake: FakeCoordinator, make_daemon: Make, tmp_path: Path
) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon()
    new_git.put_first(daemon.home, tmp_path / "clones")
    daemon.start()
    job = await ran(fake, fake.add_job(payload(fake, 1, commit, ["cat README"], ref="main", **variables)))
    assert "Fetching changes with git depth set to 20..." in job.log
