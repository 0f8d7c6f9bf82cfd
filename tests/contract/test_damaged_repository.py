"""A repository that a killed or hostile job left damaged is cloned anew: no later job fails for it, none trusts it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import CONFIG
from tests.contract.test_custom import PLAIN
from tests.contract.test_submodules import REPOSITORIES
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.fakes.driver import custom_table, write_program

FILES = {"README": "hello\n", "a/b": "x\n"}
EMPTY = "find .git/objects -type f{what} -exec chmod u+w {{}} + -exec truncate -s {size} {{}} +"
DAMAGES = {
    "index-garbage": "echo garbage >.git/index",
    "index-cut": "truncate -s 100 .git/index",
    "index-empty": ": >.git/index",
    "index-directory": "rm .git/index; mkdir -p .git/index/x",
    "index-flipped": "printf '\\377\\377' | dd of=.git/index bs=1 seek=40 conv=notrunc status=none",
    "index-of-other-objects": f"rm .git/index; git update-index --add --cacheinfo 100644,{'1' * 40},a",
    "objects-empty": EMPTY.format(what="", size=0),
    "objects-cut": EMPTY.format(what="", size=20),
    "objects-gone": "rm -rf .git/objects/*; mkdir .git/objects/pack",
    "objects-unpacked-and-empty": "mv .git/objects/pack ../pack; cat ../pack/*.pack | git unpack-objects -q; rm -rf ../pack; "
    + EMPTY.format(what="", size=0),
    "blobs-gone": "mv .git/objects/pack ../pack; cat ../pack/*.pack | git unpack-objects -q; rm -rf ../pack; "
    "for name in README a/b; do id=$(git rev-parse HEAD:$name); rm -f .git/objects/${id%${id#??}}/${id#??}; done; rm .git/index",
    "pack-without-index": "rm -f .git/objects/pack/*.idx",
    "pack-index-garbage": "chmod u+w .git/objects/pack/*; echo garbage | tee .git/objects/pack/*.idx",
    "refs-of-nothing": "for ref in $(git for-each-ref --format='%(refname)'); do echo "
    "1111111111111111111111111111111111111111 >.git/$ref; done",
    "refs-garbage": "for ref in $(git for-each-ref --format='%(refname)'); do echo garbage >.git/$ref; done",
    "refs-empty": "for ref in $(git for-each-ref --format='%(refname)'); do : >.git/$ref; done",
    "refs-in-the-way": "git update-ref -d refs/remotes/origin/main; git update-ref refs/remotes/origin/main/x HEAD",
    "refs-directories": "git update-ref -d refs/remotes/origin/main; mkdir -p .git/refs/remotes/origin/main/x/y; "
    "touch .git/refs/remotes/origin/main/x/y/z",
    "packed-refs-garbage": "echo garbage >.git/packed-refs",
    "packed-refs-directory": "rm -f .git/packed-refs; mkdir -p .git/packed-refs/x",
    "shallow-garbage": "echo garbage >.git/shallow",
    "shallow-of-nothing": "echo 1111111111111111111111111111111111111111 >.git/shallow",
    "fetch-head-directory": "rm -f .git/FETCH_HEAD; mkdir -p .git/FETCH_HEAD/x",
    "logs-file": "rm -rf .git/logs; touch .git/logs",
    "head-of-nothing": "echo 1111111111111111111111111111111111111111 >.git/HEAD",
    "orig-head-directory": "rm -f .git/ORIG_HEAD; mkdir -p .git/ORIG_HEAD/x",
    "lock-directories": "mkdir .git/index.lock .git/HEAD.lock .git/shallow.lock .git/packed-refs.lock",
}


def payload(fake: FakeCoordinator, job_id: int, commit: str, script: list[str], **variables: str) -> dict[str, Any]:
    variables = {"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false", **variables}
    found = job_payload(job_id, script, variables=variables)
    found["git_info"] |= fake.git_info(commit)
    return found


async def ended(job: Job) -> Job:
    await asyncio.wait_for(job.ended.wait(), 60)
    return job


@pytest.fixture(params=["shell", "custom"])
async def daemon(request: pytest.FixtureRequest, fake: FakeCoordinator, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon with a runner of each executor on this host; a driver gets the same work as scripts, for any shell."""
    root = tmp_path / "runner"
    text = CONFIG.format(url=fake.url, root=root)
    if request.param == "custom":
        shell = 'config) echo \'{"shell": "sh", "builds_dir_is_shared": true}\' ;;'
        driver = write_program(root / "driver.sh", PLAIN.replace('bash "$2"', 'dash "$2"') % shell)
        text = text.replace('executor = "shell"', 'executor = "custom"') + custom_table(driver)
    found = Daemon(root, text)
    yield found
    await found.stop()


@pytest.mark.parametrize("damage", DAMAGES)
async def test_the_next_job_gets_its_sources(damage: str, fake: FakeCoordinator, daemon: Daemon) -> None:
    commit = git_server.make_repository(fake.repositories, "app", FILES)
    daemon.start()
    job = await ended(fake.add_job(payload(fake, 1, commit, [f"set +e; {DAMAGES[damage]}", "true"])))
    assert job.state == "success", job.log
    for number in (2, 3):
        found = payload(fake, number, commit, ["cat README a/b", "git status --short", "git rev-parse HEAD"])
        job = await ended(fake.add_job(found))
        assert job.state == "success", job.log
        assert "\nhello\nx\n" in job.log
        assert "?? " not in job.log
        assert commit in job.log.split("git rev-parse HEAD")[-1]


@pytest.mark.parametrize("damage", ["objects-gone", "objects-empty", "pack-index-garbage", "shallow-garbage", "index-cut"])
async def test_the_next_job_gets_a_commit_by_its_id(damage: str, fake: FakeCoordinator, daemon: Daemon) -> None:
    commit = git_server.make_repository(fake.repositories, "app", FILES)
    daemon.start()
    for number, script in ((1, f"set +e; {DAMAGES[damage]}\ntrue"), (2, "cat README a/b"), (3, "git status --short")):
        found = payload(fake, number, commit, [script])
        found["git_info"]["refspecs"] = [f"+{commit}:refs/pipelines/{number}"]
        job = await ended(fake.add_job(found))
        assert job.state == "success", job.log
        assert "?? " not in job.log


async def test_what_the_server_cannot_give_is_no_damage(fake: FakeCoordinator, daemon: Daemon) -> None:
    """Neither a server that is down, nor a commit or a branch that is gone, costs what is there."""
    commit = git_server.make_repository(fake.repositories, "app", FILES)
    daemon.start()
    first = await ended(fake.add_job(payload(fake, 1, commit, ["touch .git/kept"])))
    assert first.state == "success", first.log
    gone = payload(fake, 2, "1" * 40, ["echo never"])
    branch = payload(fake, 3, commit, ["echo never"])
    branch["git_info"]["refspecs"] = ["+refs/heads/gone:refs/remotes/origin/gone"]
    flags = payload(fake, 4, commit, ["echo never"], GIT_FETCH_EXTRA_FLAGS="--no-such-flag")
    by_id = payload(fake, 7, "1" * 40, ["echo never"])
    by_id["git_info"]["refspecs"] = [f"+{'1' * 40}:refs/pipelines/7"]
    for found in (gone, branch, flags, by_id):
        job = await ended(fake.add_job(found))
        assert (job.state, job.failure_reason) == ("failed", "script_failure"), job.log
        assert "Beginning anew" not in job.log
    (fake.repositories / "app.git").rename(fake.repositories / "away.git")
    job = await ended(fake.add_job(payload(fake, 5, commit, ["echo never"])))
    assert job.state == "failed"
    (fake.repositories / "away.git").rename(fake.repositories / "app.git")
    last = await ended(fake.add_job(payload(fake, 6, commit, ["ls .git/kept"])))
    assert last.state == "success", last.log


@pytest.mark.parametrize("place", ["lib/sub", "lib/sub/modules/leaf"])
@pytest.mark.parametrize("damage", ["index-garbage", "index-cut", "objects-empty", "pack-index-garbage"])
async def test_submodules_are_cloned_anew(damage: str, place: str, fake: FakeCoordinator, daemon: Daemon) -> None:
    commit = git_server.make_repositories(fake.repositories, REPOSITORIES)["app"]
    daemon.start()
    settings = {"GIT_SUBMODULE_STRATEGY": "recursive"}
    script = ["set +e; " + DAMAGES[damage].replace(".git/", f".git/modules/{place}/"), "true"]
    job = await ended(fake.add_job(payload(fake, 1, commit, script, **settings)))
    assert job.state == "success", job.log
    for number in (2, 3):
        found = payload(fake, number, commit, ["cat lib/sub/sub.txt lib/sub/leaf/leaf.txt"], **settings)
        job = await ended(fake.add_job(found))
        assert job.state == "success", job.log
        assert "\nsub\nleaf\n" in job.log
