"""What a job leaves in its workspace never makes the runner, or the next job, do anything."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import files_below

# A setting by which git would run something, in the repository or in a file of settings.
TOOLS = r"""evil() { git config "$@" core.fsmonitor 'touch $PWNED; false'; }
hook() { mkdir -p "$1"; printf '#!/bin/sh\ntouch $PWNED\n' > "$1/post-checkout"; chmod +x "$1/post-checkout"; }
as() { git -c user.name=evil -c user.email=evil@example.com "$@"; }
"""
PLANTS = {
    "fsmonitor": "evil",
    "hooks": "hook .git/hooks; cp .git/hooks/post-checkout .git/hooks/reference-transaction",
    "hooks-path": "hook h; git config core.hooksPath $PWD/h",
    "filter": "git config filter.x.smudge 'touch $PWNED; cat'; git config filter.x.clean 'touch $PWNED; cat'; "
    "mkdir -p .git/info; echo '* filter=x' > .git/info/attributes",
    "include": "evil --file ../evil; git config include.path $PWD/../evil",
    "include-if": "evil --file ../evil; git config includeIf.gitdir:/.path $PWD/../evil",
    "worktree-config": "git config extensions.worktreeConfig true; evil --worktree",
    "ssh-command": "git config core.sshCommand 'touch $PWNED'; git config core.gitProxy 'touch $PWNED'",
    "remote": "git config remote.origin.uploadpack 'touch $PWNED'; git config protocol.ext.allow always; "
    "git config url.'ext::touch $PWNED '.insteadOf http",
    "alternate-refs": "mkdir -p ../evil/objects; echo $PWD/../evil/objects > .git/objects/info/alternates; "
    "git config core.alternateRefsCommand 'touch $PWNED'",
    "commondir": "cp -r .git ../elsewhere; evil --file ../elsewhere/config; echo $PWD/../elsewhere > .git/commondir",
    "git-file": "cp -r .git ../elsewhere; evil --file ../elsewhere/config; rm -rf .git; echo gitdir: $PWD/../elsewhere > .git",
    "git-link": "mv .git ../elsewhere; evil --file ../elsewhere/config; ln -s ../elsewhere .git",
    "template": "hook ../app.tmp/git-template/hooks; evil --file ../app.tmp/git-template/config; "
    "mkdir ../app.tmp/git-template/info; echo '* filter=x' > ../app.tmp/git-template/info/attributes; "
    "git config --file ../app.tmp/git-template/config filter.x.smudge 'touch $PWNED; cat'",
    "locks": "touch .git/index.lock .git/shallow.lock .git/HEAD.lock .git/config.lock .git/packed-refs.lock "
    ".git/refs/heads/x.lock .git/objects/maintenance.lock",
    "replaced-commit": "echo y > a/b; as commit -qam evil; git replace HEAD~1 HEAD; git checkout -q --detach HEAD~1",
    "replaced-blob": "git replace $(git rev-parse HEAD:a/b) $(echo y | git hash-object -w --stdin)",
    "replaced-in-a-pack": "git replace $(git rev-parse HEAD:a/b) $(echo y | git hash-object -w --stdin); git pack-refs --all",
    "skip-worktree": "git update-index --skip-worktree a/b README",
    "skip-worktree-version-4": "git update-index --index-version 4; git update-index --skip-worktree a/b README",
    "split-index": "git update-index --skip-worktree a/b README; git update-index --split-index; touch x; git add x",
    "assume-unchanged": "git update-index --assume-unchanged a/b README",
    "sparse": "git sparse-checkout set --no-cone nothing",
    "head": "echo nonsense > .git/HEAD",
    "head-that-leads-out": "echo ref: ../../secret > .git/HEAD",
    "no-objects": "rm -rf .git/objects",
    "references-link": "mkdir ../evil; mv .git/refs ../evil/; ln -s $PWD/../evil/refs .git/refs",
    "objects-link": "mkdir ../evil; mv .git/objects ../evil/; ln -s $PWD/../evil/objects .git/objects",
}


def payload(fake: FakeCoordinator, job_id: int, commit: str, script: list[str]) -> dict[str, Any]:
    found = job_payload(job_id, script, variables={"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false"})
    found["git_info"] |= fake.git_info(commit)
    return found


async def ran(fake: FakeCoordinator, job: Job) -> Job:
    await asyncio.wait_for(job.ended.wait(), 20)
    assert job.state == "success", job.log
    return job


def planting(plant: str, pwned: Path) -> str:
    return (TOOLS + PLANTS[plant]).replace("$PWNED", str(pwned))


@pytest.fixture
def commit(fake: FakeCoordinator) -> str:
    return git_server.make_repository(fake.repositories, "app", {"README": "hello\n", "a/b": "x\n"})


@pytest.mark.parametrize("plant", PLANTS)
async def test_the_next_job_is_not_touched(
    plant: str, commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    pwned = tmp_path / "pwned"
    daemon = make_daemon()
    daemon.start()
    await ran(fake, fake.add_job(payload(fake, 1, commit, [planting(plant, pwned), "rm -f README; mkdir -p a; echo y > a/b"])))
    pwned.unlink(missing_ok=True)  # the job itself may set off what it planted
    script = ["git status --short", "git checkout -q --detach HEAD", "git show HEAD:a/b", "cat README a/b"]
    second = await ran(fake, fake.add_job(payload(fake, 2, commit, script)))
    assert "\nhello\nx\n" in second.log
    assert "\ny\n" not in second.log
    assert not pwned.exists()
    git_dir = daemon.root / "builds" / "lab" / "0" / "git" / "app" / ".git"
    assert not [path for path in (git_dir, *git_dir.iterdir()) if path.is_symlink()]


@pytest.mark.parametrize("plant", ["fsmonitor", "hooks", "filter", "include", "template"])
async def test_cleaning_up_behind_a_job_runs_nothing_of_it(
    plant: str, commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    pwned = tmp_path / "pwned"
    daemon = make_daemon()
    daemon.start()
    script = [planting(plant, pwned), "echo '* filter=x' > .gitattributes; rm -f README", f"rm -f {pwned}"]
    found = payload(fake, 1, commit, script)
    found["variables"].append({"key": "FF_ENABLE_JOB_CLEANUP", "value": "true"})
    await ran(fake, fake.add_job(found))
    assert not pwned.exists()
    assert (daemon.root / "builds" / "lab" / "0" / "git" / "app" / "README").read_text() == "hello\n"


@pytest.mark.parametrize("plant", ["fsmonitor", "hooks", "filter", "template", "locks"])
async def test_clearing_a_work_tree_runs_nothing_of_it(
    plant: str, commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    pwned = tmp_path / "pwned"
    daemon = make_daemon()
    daemon.start()
    await ran(fake, fake.add_job(payload(fake, 1, commit, [planting(plant, pwned), "echo '* filter=x' > .gitattributes"])))
    pwned.unlink(missing_ok=True)
    found = payload(fake, 2, "1" * 40, ["true"])
    settings = {"GET_SOURCES_ATTEMPTS": "2", "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY": "false"}
    found["variables"] += [{"key": key, "value": value} for key, value in settings.items()]
    job = fake.add_job(found)
    await asyncio.wait_for(job.ended.wait(), 30)
    assert job.log.count("Deleting tracked and untracked files...") == 1
    assert job.log.count("Checking out 11111111") == 2, job.log
    assert not pwned.exists()


async def test_odd_names_are_cleaned_away(commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.start()
    script = [
        r"""for name in -rf --exec=touch\ pwned $'new\nline' ' ' '*' '$(touch pwned)' ':(exclude)' $'\377'; do
touch -- "$name"; mkdir -p -- "d/$name"; touch -- "d/$name/$name"; done; ln -s / root; mkfifo fifo"""
    ]
    await ran(fake, fake.add_job(payload(fake, 1, commit, script)))
    second = await ran(fake, fake.add_job(payload(fake, 2, commit, ["ls -A | tr '\\n' ' '"])))
    assert "\n.git README a " in second.log


@pytest.mark.parametrize("strategy", ["fetch", "clone", "none", "empty"])
@pytest.mark.parametrize("place", ["app", "app.tmp", "app-empty"])
async def test_a_link_in_the_place_of_a_directory_is_taken_away(
    place: str, strategy: str, commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    daemon = make_daemon()
    link = daemon.root / "builds" / "lab" / "0" / "git" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    daemon.start()
    found = payload(fake, 1, commit, ["test -d $PWD"])
    found["variables"] += [{"key": "GIT_STRATEGY", "value": strategy}, {"key": "DATA", "value": "x", "file": True}]
    await ran(fake, fake.add_job(found))
    assert os.listdir(outside) == ["keep"]


@pytest.mark.parametrize("strategy", ["fetch", "clone", "none", "empty"])
@pytest.mark.parametrize("above", ["lab", "lab/0", "lab/0/git"])
async def test_a_link_above_the_project_leads_no_job_away(
    above: str, strategy: str, commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """A job puts a link to a directory with a project's name in it into the place of a directory above its project."""
    daemon = make_daemon()
    builds = daemon.root / "builds"
    outside = tmp_path / "outside"
    names = ("app", "app.tmp", "app-empty")
    inner = Path("lab/0/git").relative_to(above)
    for name in names:
        (outside / inner / name / ".git").mkdir(parents=True)
        (outside / inner / name / "keep").write_text("kept")
    daemon.start()
    plant = [f"mv {builds}/{above} {tmp_path}/moved; ln -s {outside} {builds}/{above}"]
    first = fake.add_job(payload(fake, 1, commit, plant))
    await asyncio.wait_for(first.ended.wait(), 30)
    before = sorted(files_below(outside))
    cache = {"key": "k", "paths": ["kept"], "policy": "pull-push", "when": "on_success"}
    artifact = {"paths": ["kept"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}
    found = payload(fake, 2, commit, ["pwd -P; echo x >kept; test ! -e keep"])
    found |= {"cache": [cache], "artifacts": [artifact]}
    found["variables"] += [{"key": "GIT_STRATEGY", "value": strategy}, {"key": "DATA", "value": "x", "file": True}]
    second = await ran(fake, fake.add_job(found))
    assert f"WARNING: {builds}/{above} was no directory and was taken away" in second.log
    assert f"\n{builds.resolve()}/lab/0/git/app" in second.log
    assert len(second.artifacts) == 1
    assert sorted(files_below(outside)) == before
    assert all((outside / inner / name / "keep").read_text() == "kept" for name in names)


async def test_no_token_stays_in_the_workspace(commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.start()
    found = payload(fake, 1, commit, ["cat .git/config"])
    found["git_info"]["repo_url"] = f"{fake.url}/git/app.git".replace("://", f"://gitlab-ci-token:{found['token']}@")
    job = await ran(fake, fake.add_job(found))
    assert job.token not in job.log
    left = files_below(daemon.root / "builds")
    assert left
    assert not [path for path in left if job.token.encode() in path.read_bytes()]


DEEP = """python3 -c "import os
for number in range(3000):
    os.mkdir('d')
    os.chdir('d')" """


@pytest.mark.parametrize("strategy", ["fetch", "clone", "empty"])
@pytest.mark.parametrize("place", ["$PWD", "$PWD/.git/refs", "$PWD.tmp/git-template"])
async def test_directories_of_any_depth_are_taken_away(
    place: str, strategy: str, commit: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    daemon.start()
    try:
        await ran(fake, fake.add_job(payload(fake, 1, commit, [f"cd {place}", DEEP])))
        found = payload(fake, 2, commit, ["ls -A | tr '\\n' ' '"])
        found["variables"].append({"key": "GIT_STRATEGY", "value": strategy})
        second = await ran(fake, fake.add_job(found))
        assert " d " not in second.log.split("ls -A")[-1]
    finally:
        # What is left in places that nobody looks at is too deep for whoever cleans up behind tests.
        subprocess.run(["rm", "-rf", daemon.root / "builds"], check=True)


async def test_a_sha256_repository_is_cleaned_and_cleared(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    made = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"}, object_format="sha256")
    daemon = make_daemon()
    daemon.start()
    found = payload(fake, 1, made, ["rm README; touch left"])
    found["git_info"] |= {"repo_object_format": "sha256", "before_sha": "0" * 64}
    found["variables"].append({"key": "FF_ENABLE_JOB_CLEANUP", "value": "true"})
    await ran(fake, fake.add_job(found))
    project = daemon.root / "builds" / "lab" / "0" / "git" / "app"
    assert sorted(os.listdir(project)) == [".git", "README"]
    missing = payload(fake, 2, "1" * 64, ["true"])
    missing["git_info"] |= {"repo_object_format": "sha256", "before_sha": "0" * 64}
    settings = {"GET_SOURCES_ATTEMPTS": "2", "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY": "false"}
    missing["variables"] += [{"key": key, "value": value} for key, value in settings.items()]
    job = fake.add_job(missing)
    await asyncio.wait_for(job.ended.wait(), 40)
    assert job.log.count("Checking out 11111111") == 2, job.log
    assert os.listdir(project) == [".git"]
