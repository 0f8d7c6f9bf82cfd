"""Submodules where no recording helps: what a job leaves in them, odd names, large files."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import CONFIG
from tests.contract.test_hostile_workspace import ran
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import files_below

# Shell functions of the planting scripts: a setting by which git would run something, in a repository or a file of it.
TOOLS = r"""evil() { git -C "$1" config core.fsmonitor 'touch $PWNED; false'; }
evil_file() { git config --file "$1" core.fsmonitor 'touch $PWNED; false'; }
module=.git/modules/lib/sub
"""
PLANTS = {
    "configuration": "evil lib/sub; evil lib/sub/leaf",
    "filter": "git -C lib/sub config filter.x.smudge 'touch $PWNED; cat'; mkdir -p $module/info; "
    "echo '* filter=x' > $module/info/attributes; rm lib/sub/sub.txt",
    "hooks": "for place in $module $module/modules/leaf; do mkdir -p $place/hooks; "
    r"printf '#!/bin/sh\ntouch $PWNED\n' > $place/hooks/post-checkout; chmod +x $place/hooks/*; done",
    "git-file": "cp -r $module ../evil; evil_file ../evil/config; echo gitdir: $PWD/../evil > lib/sub/.git",
    "git-file-inside": "cp -r $module/modules/leaf ../evil; evil_file ../evil/config; "
    "echo gitdir: $PWD/../evil > lib/sub/leaf/.git",
    "git-directory": "rm lib/sub/.git; cp -r $module lib/sub/.git; git config --file lib/sub/.git/config --unset core.worktree; "
    "evil_file lib/sub/.git/config",
    "linked-module": "mv $module ../evil; evil_file ../evil/config; ln -s $PWD/../evil $module",
    "linked-tree": "mkdir ../evil; cp -r lib ../evil/; rm -rf lib; ln -s ../evil/lib lib",
    "commondir": "cp -r $module ../evil; evil_file ../evil/config; echo $PWD/../evil > $module/commondir",
    "alternates": "mkdir -p ../evil/objects; echo $PWD/../evil/objects > $module/objects/info/alternates",
    "locks": "touch $module/index.lock $module/modules/leaf/HEAD.lock",
    "url": "git config submodule.lib/sub.url ext::touch%20$PWNED; git -C lib/sub remote set-url origin ext::touch%20$PWNED; "
    "git config protocol.ext.allow always; rm -rf lib/sub $module",
    "update-command": "git config submodule.lib/sub.update '!touch $PWNED'; git -C lib/sub checkout -q --detach",
    "replaced": "cd lib/sub; git replace $(git rev-parse HEAD:sub.txt) $(echo dirty | git hash-object -w --stdin); "
    "git pack-refs --all; cd ../..",
    "skip-worktree": "for place in lib/sub/leaf lib/sub; do (cd $place; git update-index --skip-worktree *.txt; "
    "for name in *.txt; do echo dirty > $name; done); done",
    "references-link": "mkdir ../evil; mv $module/refs ../evil/; ln -s $PWD/../evil/refs $module/refs",
    "unborn-branch": "git -C lib/sub checkout -q --orphan unborn; git -C lib/sub/leaf checkout -q --orphan unborn",
    "lost-module": "rm -rf $module",
    "false-repository": "touch .git/modules/lib/HEAD .git/modules/HEAD",
}
REPOSITORIES = {
    "leaf": {"files": {"leaf.txt": "leaf\n"}},
    "sub": {"files": {"sub.txt": "sub\n"}, "submodules": {"leaf": "../leaf.git"}},
    "app": {"files": {"README": "hello\n"}, "submodules": {"lib/sub": "../sub.git"}},
}


def payload(fake: FakeCoordinator, job_id: int, commit: str, script: list[str], **variables: str) -> dict[str, Any]:
    settings = {"GIT_STRATEGY": "fetch", "GIT_SUBMODULE_STRATEGY": "recursive", "FF_TIMESTAMPS": "false", **variables}
    found = job_payload(job_id, script, variables=settings)
    found["git_info"] |= fake.git_info(commit)
    return found


@pytest.mark.parametrize("plant", PLANTS)
async def test_the_next_job_is_not_touched(
    plant: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    commit = git_server.make_repositories(fake.repositories, REPOSITORIES)["app"]
    pwned = tmp_path / "pwned"
    daemon = make_daemon()
    daemon.start()
    script = [(TOOLS + PLANTS[plant]).replace("$PWNED", str(pwned)), "[ ! -e lib/sub ] || echo dirty > lib/sub/sub.txt"]
    await ran(fake, fake.add_job(payload(fake, 1, commit, script)))
    pwned.unlink(missing_ok=True)  # the job itself may set off what it planted
    second = await ran(fake, fake.add_job(payload(fake, 2, commit, ["cat lib/sub/sub.txt lib/sub/leaf/leaf.txt"])))
    assert "\nsub\nleaf\n" in second.log
    assert not pwned.exists()
    project = daemon.root / "builds" / "lab" / "0" / "git" / "app"
    assert not (project / "lib").is_symlink()


@pytest.mark.parametrize("name", ["- dash", "quote'\"", "$(touch pwned)", "é", "config", "hooks"])
async def test_odd_names_are_names(name: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    described = {**REPOSITORIES, "app": {"files": {"README": "x"}, "submodules": {f"lib/{name}": "../sub.git"}}}
    commit = git_server.make_repositories(fake.repositories, described)["app"]
    daemon = make_daemon()
    daemon.start()
    for number in (1, 2):
        job = await ran(fake, fake.add_job(payload(fake, number, commit, ["cat lib/*/sub.txt"])))
        assert "\nsub\n" in job.log
    assert files_below(daemon.root, "pwned") == []


async def test_a_sha256_repository_has_submodules_of_its_kind(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    described = {name: {**about, "object_format": "sha256"} for name, about in REPOSITORIES.items()}
    commit = git_server.make_repositories(fake.repositories, described)["app"]
    daemon = make_daemon()
    daemon.start()
    for number in (1, 2):
        found = payload(fake, number, commit, ["cat lib/sub/leaf/leaf.txt; echo dirty > lib/sub/sub.txt"])
        found["git_info"] |= {"repo_object_format": "sha256", "before_sha": "0" * 64}
        job = await ran(fake, fake.add_job(found))
        assert "\nleaf\n" in job.log


async def test_large_files_are_pulled_with_the_login_of_the_job(guarded: FakeCoordinator, tmp_path: Path) -> None:
    assert subprocess.run(["git", "lfs", "version"], capture_output=True).returncode == 0, "git-lfs is missing: see .ci/run"
    fake = guarded
    content = b"large content\n"
    oid = hashlib.sha256(content).hexdigest()
    fake.large_files[oid] = content
    files = {
        "d/.gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
        "d/a.bin": f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n",
    }
    described = {"large": {"files": files}, "app": {"files": files, "submodules": {"lib/large": "../large.git"}}}
    commit = git_server.make_repositories(fake.repositories, described)["app"]
    daemon = Daemon(tmp_path / "runner", CONFIG.format(url=fake.url, root=tmp_path / "runner"))
    daemon.start()
    try:
        jobs = []
        for number, skips in ((1, "false"), (2, "true")):
            found = payload(fake, number, commit, ["cat d/a.bin lib/large/d/a.bin"], GIT_LFS_SKIP_SMUDGE=skips)
            login = f"://gitlab-ci-token:{found['token']}@"
            found["git_info"]["repo_url"] = f"{fake.url}/git/app.git".replace("://", login)
            found["variables"].append({"key": "GIT_STRATEGY", "value": "clone"})
            jobs.append(await ran(fake, fake.add_job(found)))
        assert "large content\nlarge content\n" in jobs[0].log
        assert "Pulling LFS files..." in jobs[0].log
        assert "large content" not in jobs[1].log
        assert f"oid sha256:{oid}" in jobs[1].log
    finally:
        await daemon.stop()


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[FakeCoordinator]:
    """A server whose repositories are for jobs only."""
    async with FakeCoordinator(tmp_path / "server", trace_interval=1, git_auth=True) as fake:
        yield fake
