"""What git gets of a job's variables, and what keepers of logins keep of its token (``job-lifecycle.md`` 11.5, 11.7)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import CONFIG
from tests.contract.test_hostile_workspace import ran
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import until

Make = Callable[..., Daemon]


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[FakeCoordinator]:
    """A server whose repositories are for jobs only."""
    async with FakeCoordinator(tmp_path / "server", trace_interval=1, git_auth=True) as fake:
        yield fake


@pytest.fixture
async def daemon(guarded: FakeCoordinator, tmp_path: Path) -> AsyncIterator[Daemon]:
    root = tmp_path / "runner"
    found = Daemon(root, CONFIG.format(url=guarded.url, root=root))
    yield found
    await found.stop()


def payload(fake: FakeCoordinator, commit: str, script: list[str]) -> dict[str, Any]:
    found = job_payload(1, script, variables={"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false"})
    found["git_info"] |= fake.git_info(commit)
    login = f"://gitlab-ci-token:{found['token']}@"
    found["git_info"]["repo_url"] = f"{fake.url}/git/app.git".replace("://", login)
    return found


async def test_a_keeper_of_logins_forgets_that_of_the_job(guarded: FakeCoordinator, daemon: Daemon) -> None:
    commit = git_server.make_repository(guarded.repositories, "app", {"README": "hello\n"})
    kept = daemon.home / "kept"
    (daemon.home / ".gitconfig").write_text(f"[credential]\n\thelper = store --file {kept}\n")
    kept.write_text("https://somebody:secret@example.com\n")
    kept.chmod(0o600)
    daemon.start()
    found = payload(guarded, commit, ["git fetch -q origin", f"grep -c gitlab-ci-token {kept}"])
    job = await ran(guarded, guarded.add_job(found))
    assert "\n1\n" in job.log, "the script's own git had nothing to keep"
    await until(lambda: not list((daemon.state / "jobs").iterdir()))
    assert kept.read_text() == "https://somebody:secret@example.com\n"


async def test_keepers_that_the_project_names_are_not_asked(guarded: FakeCoordinator, daemon: Daemon, tmp_path: Path) -> None:
    commit = git_server.make_repository(guarded.repositories, "app", {"README": "hello\n"})
    pwned = tmp_path / "pwned"
    plant = f"git config credential.helper '!touch {pwned}; true'; cp -r .git $PWD.tmp/; cp -r .git ../"
    daemon.start()
    await ran(guarded, guarded.add_job(payload(guarded, commit, [plant])))
    await until(lambda: not list((daemon.state / "jobs").iterdir()))
    assert not pwned.exists()


async def test_files_for_git_are_named_to_it(guarded: FakeCoordinator, daemon: Daemon) -> None:
    commit = git_server.make_repository(guarded.repositories, "app", {"README": "hello\n"})
    found = payload(guarded, commit, ["cat README"])
    found["variables"].append({"key": "GIT_TRACE", "value": "", "file": True})
    found["hooks"] = [{"name": "post_get_sources_script", "script": ["grep -c 'built-in: git fetch' $GIT_TRACE"]}]
    daemon.start()
    job = await ran(guarded, guarded.add_job(found))
    assert "\n1\n" in job.log
