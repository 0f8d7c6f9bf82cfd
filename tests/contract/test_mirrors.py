"""Mirrors of repositories: fetched once, borrowed by checkouts, never written by jobs, thrown away when broken."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_artifacts import ended
from tests.contract.test_disk import bounded
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import until

Make = Callable[..., Daemon]
MIRROR = "  [runners.git]\n    mirror = true\n"
BORROWING = "Borrowing objects from the mirror of this repository..."
BIG = {f"d{number % 7}/f{number}": f"{number}\n" * 50 for number in range(300)}


@pytest.fixture
def commit(fake: FakeCoordinator) -> str:
    return git_server.make_repository(fake.repositories, "app", {"README": "hello\n", **BIG})


def add_job(fake: FakeCoordinator, number: int, commit: str, script: list[str], **changes: Any) -> Job:
    variables = {"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false", **changes.pop("variables", {})}
    payload = job_payload(number, script, variables=variables, **changes)
    payload["git_info"] |= fake.git_info(commit)
    payload["job_info"]["project_id"] = changes.get("project", 9)
    return fake.add_job(payload)


def mirrors(daemon: Daemon) -> list[Path]:
    return sorted(daemon.state.glob("mirrors/*/*/[0-9]*"))


def workspace(daemon: Daemon) -> Path:
    return daemon.root / "builds" / "lab" / "0" / "git" / "app"


async def test_a_checkout_borrows_what_the_mirror_has(fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    count = "git count-objects -v | grep -E '^(count|in-pack|alternate)'; cat README"
    first = await ended(add_job(fake, 1, commit, [count]))
    assert first.state == "success", first.log
    assert BORROWING in first.log
    assert "in-pack: 0\n" in first.log
    assert "hello\n" in first.log
    (mirror,) = mirrors(daemon)
    assert f"alternate: {mirror}/objects" in first.log
    shutil.rmtree(workspace(daemon))
    again = await ended(add_job(fake, 2, commit, [count, "git fsck --no-dangling && git status --short | wc -l"]))
    assert again.state == "success", again.log
    assert mirrors(daemon) == [mirror]
    assert not list(mirror.glob("**/*token*")), "no login stays"
    assert "glcbt" not in "".join(path.read_text(errors="replace") for path in mirror.rglob("*") if path.is_file())
    assert not list((daemon.state / "jobs").glob("*/mirror.conf"))


async def test_jobs_at_once_fetch_once(fake: FakeCoordinator, make_daemon: Make, commit: str, tmp_path: Path) -> None:
    """By the packs in the mirror: each fetch that brings something adds one."""
    daemon = make_daemon(extra=MIRROR)
    jobs = [add_job(fake, number, commit, ["cat README"]) for number in range(1, 5)]
    daemon.start()
    for job in jobs:
        await ended(job)
        assert job.state == "success", job.log
        assert BORROWING in job.log
    (mirror,) = mirrors(daemon)
    assert len(list(mirror.glob("objects/pack/*.pack"))) == 1


@pytest.mark.parametrize("share", [0.0, 0.5])
async def test_a_broken_mirror_is_thrown_away(share: float, fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    """Found by the runner before it is borrowed, where the job's own commit cannot be read, or by the checkout."""
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    await ended(add_job(fake, 1, commit, ["cat README"]))
    (mirror,) = mirrors(daemon)
    for pack in mirror.glob("objects/pack/*.pack"):
        content = bytearray(pack.read_bytes())
        begin = 20 + int(len(content) * share)
        content[begin:-30] = bytes(len(content) - begin - 30)
        pack.chmod(0o644)
        pack.write_bytes(content)
    shutil.rmtree(workspace(daemon))
    broken = await ended(add_job(fake, 2, commit, ["cat README"]))
    assert broken.state == "success", broken.log
    assert ("Trying again without the mirror of the repository..." in broken.log) is (share == 0.5)
    assert "hello\n" in broken.log
    last = await ended(add_job(fake, 3, commit, ["cat README"]))
    assert last.state == "success", last.log
    assert BORROWING in last.log
    assert "Trying again" not in last.log
    assert mirrors(daemon)[-1] != mirror


async def test_a_checkout_whose_mirror_is_gone_is_made_anew(fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    """Also where the mirror is turned off."""
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    await ended(add_job(fake, 1, commit, ["echo left > left"], variables={"GIT_CLEAN_FLAGS": "none"}))
    shutil.rmtree(daemon.state / "mirrors")
    job = await ended(add_job(fake, 2, commit, ["cat README"]))
    assert job.state == "success", job.log
    await daemon.stop()
    daemon.write_config(daemon.config.read_text().replace("mirror = true", "mirror = false"))
    daemon.start()
    job = await ended(add_job(fake, 3, commit, ["cat README; git fsck; test ! -e .git/objects/info/alternates"]))
    assert job.state == "success", job.log
    assert BORROWING not in job.log


@pytest.mark.parametrize("planted", ["/etc/objects\n", "{other}\n{own}\n", "{own}\n{other}\n"])
async def test_nothing_else_is_ever_borrowed(planted: str, fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    """What a job writes in the place of the mirror is gone for the next one."""
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    await ended(add_job(fake, 1, commit, ["cat README"]))
    own = f"{mirrors(daemon)[0]}/objects"
    (workspace(daemon) / ".git/objects/info/alternates").write_text(planted.format(own=own, other=daemon.root / "other"))
    job = await ended(add_job(fake, 2, commit, ["echo [$(cat .git/objects/info/alternates)]"]))
    assert job.state == "success", job.log
    assert f"[{own}]" in job.log


async def test_jobs_that_could_write_to_it_lend_nothing_to_protected_refs(
    fake: FakeCoordinator, make_daemon: Make, commit: str
) -> None:
    """Where jobs run as the daemon itself nothing keeps them from its files."""
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    job = add_job(fake, 1, commit, ["cat README"])
    job.payload["git_info"]["protected"] = True
    await ended(job)
    assert job.state == "success", job.log
    assert BORROWING not in job.log


async def test_a_mirror_is_kept_within_its_budget(fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    await ended(add_job(fake, 1, commit, ["cat README"]))
    assert len(mirrors(daemon)) == 1
    await daemon.stop()
    bounded(daemon, "mirrors = 0")
    daemon.start()
    await until(lambda: not mirrors(daemon))
    job = await ended(add_job(fake, 2, commit, ["cat README"]))
    assert job.state == "success", job.log
    assert BORROWING in job.log


async def test_a_killed_daemon_and_its_mirror(fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    """Killed while git is at work in the mirror: the next one goes on with the job, with a mirror or without."""
    fake.git_delay_s = 1.0
    daemon = make_daemon(extra=MIRROR)
    job = add_job(fake, 1, commit, ["cat README"])
    daemon.start()
    await until(lambda: list(daemon.state.glob("mirrors/*/*/1/pyrunner.lock")))
    daemon.kill()
    daemon.start()
    await ended(job, 60)
    assert job.state == "success", job.log
    assert "hello\n" in job.log
    fake.git_delay_s = 0.0
    again = await ended(add_job(fake, 2, commit, ["cat README"]))
    assert again.state == "success", again.log


@pytest.mark.skipif(os.geteuid() != 0, reason="jobs of another user need root")
async def test_a_job_user_reads_and_does_not_write(fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    user = pwd.getpwuid(65534).pw_name
    daemon = make_daemon(extra=MIRROR + f'  [runners.pyrunner]\n    job_user = "{user}"\n')
    for path in (*daemon.root.parents, daemon.root):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    (daemon.root / "builds").mkdir(exist_ok=True)
    shutil.chown(daemon.root / "builds", user)
    daemon.start()
    script = [
        "id -u; cat README",
        "own=$(cat .git/objects/info/alternates); ls $own/pack/*.pack | wc -l",
        "touch $own/pack/x || echo kept out; rm -f $own/pack/*.pack || echo kept in; chmod 777 $own || echo kept as it is",
        f"ls {daemon.state}/mirrors || echo not seen",
    ]
    job = add_job(fake, 1, commit, script)
    job.payload["git_info"]["protected"] = True
    await ended(job)
    assert job.state == "success", job.log
    assert BORROWING in job.log
    lines = job.log.splitlines()
    for line in ("65534", "hello", "kept out", "kept in", "kept as it is", "not seen"):
        assert line in lines, job.log
    (mirror,) = mirrors(daemon)
    assert subprocess.run(["git", f"--git-dir={mirror}", "fsck"], check=False, capture_output=True).returncode == 0
    assert re.search(r"/mirrors/closed/", str(mirror))


async def test_what_is_new_at_the_server_comes(fake: FakeCoordinator, make_daemon: Make, commit: str) -> None:
    daemon = make_daemon(extra=MIRROR)
    daemon.start()
    await ended(add_job(fake, 1, commit, ["cat README"]))
    work = fake.repositories / "app-work"
    (work / "README").write_text("changed\n")
    git_server.git("commit", "-qam", "change", cwd=work)
    git_server.git("push", "-q", str(fake.repositories / "app.git"), "main", cwd=work)
    new = git_server.git("rev-parse", "HEAD", cwd=work)
    job = await ended(add_job(fake, 2, new, ["cat README"]))
    assert job.state == "success", job.log
    assert "changed\n" in job.log
