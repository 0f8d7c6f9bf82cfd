"""Runs a recorded scenario against pyrunner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.contract import golden
from tests.contract.differences import MOMENTS
from tests.fakes import git_server
from tests.fakes.coordinator import ENDED, FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.waiting import until


@dataclass
class Replay:
    """What came of a scenario: the jobs as the server saw them, and the placeholders of this run."""

    fake: FakeCoordinator
    jobs: list[Job]
    places: dict[str, str]
    daemon_log: str


def tokens(count: int) -> dict[str, str]:
    return {f"JOB_TOKEN_{number}": f"glcbt-65_lab{number:04d}tokentoken" for number in range(count)}


async def replay(
    scenario: dict[str, Any],
    root: Path,
    *,
    timeout_s: float = 60.0,
    ends: Sequence[tuple[str, str | None, int | None]] = (),
    before: Callable[[int, Path], None] = lambda number, root: None,
    address: str = "127.0.0.1",
    own_keys: str = "",
) -> Replay:
    """Run all jobs. ``before`` is what somebody did to the runner's files before the job of a number. ``address`` is
    where the server listens, ``own_keys`` go into the daemon's table."""
    server = scenario.get("server") or {}
    recorded = scenario["jobs"]
    fake = FakeCoordinator(
        root / "server",
        trace_interval=server.get("trace_interval"),
        strict=False,
        git_auth=server.get("git_auth", False),
        redirect_artifacts=server.get("redirect_artifacts", False),
        store_takes_tokens=server.get("store_takes_tokens", False),
        address=address,
    )
    async with fake:
        home = root / "runner"
        places = {"ROOT": str(home), "HOST": fake.places["HOST"], **tokens(len(recorded))}
        fake.places |= {"ROOT": str(home)}
        fake.faults.all = type(fake.faults)(golden.fill(server.get("faults") or [], places)).all
        for number, moment in MOMENTS.get(scenario["name"], {}).items():
            fake.faults.all[number].details |= moment
        commits = _make_repositories(scenario, fake)
        environment = golden.fill(scenario.get("environment") or {}, places)
        config = golden.without_costs(golden.fill(scenario["config_toml"], places))
        daemon = Daemon(home, config, environment=environment, own_keys=own_keys)
        if server.get("profile"):
            (home / "home" / ".bash_profile").write_text(server["profile"] + "\n")
        for path, content in (scenario.get("helper_files") or {}).items():
            target = home / golden.fill(path, places)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(golden.fill(content, places))
            if content.startswith("#!"):
                target.chmod(0o755)
        daemon.start()
        try:
            jobs = await _run_jobs(scenario, fake, daemon, places, commits, timeout_s, ends, before)
        finally:
            await daemon.stop()
        return Replay(fake, jobs, places, daemon.log)


def _make_repositories(scenario: dict[str, Any], fake: FakeCoordinator) -> str:
    several = scenario.get("repos")
    if several:
        return git_server.make_repositories(fake.repositories, golden.fill(several, fake.places))["app"]
    files = scenario.get("repo")
    return git_server.make_repository(fake.repositories, "app", files) if files else ""


async def _run_jobs(
    scenario: dict[str, Any],
    fake: FakeCoordinator,
    daemon: Daemon,
    places: dict[str, str],
    commit: str,
    timeout_s: float,
    ends: Sequence[tuple[str, str | None, int | None]],
    before: Callable[[int, Path], None],
) -> list[Job]:
    server = scenario.get("server") or {}
    recorded = scenario["jobs"]
    jobs: list[Job] = []
    together = server.get("together") or scenario["name"].endswith("-slots")
    states = [end[0] for end in ends] or [entry["state"] for entry in recorded]
    for number, (entry, state) in enumerate(zip(recorded, states, strict=True)):
        before(number, Path(places["ROOT"]))
        payload = _with_commit(golden.fill(entry["payload"], places), commit)
        jobs.append(fake.add_job(payload, finalize_202=server.get("finalize_202", 0)))
        if not together:
            await _until_over(fake, jobs[-1], state, timeout_s)
            if state in ENDED and number + 1 < len(recorded):
                # Its slot is free only then, and the next job gets the same one.
                await until(lambda: not any((daemon.state / "jobs").iterdir()))
    if together:
        for job, state in zip(jobs, states, strict=True):
            await _until_over(fake, job, state, timeout_s)
    return jobs


async def _until_over(fake: FakeCoordinator, job: Job, state: str, timeout_s: float) -> None:
    """Until the server has the end; a job that never ends for it is over when its runner asks for another."""
    async with asyncio.timeout(timeout_s):
        if state in ENDED:
            await job.ended.wait()
            return
        await fake.until(lambda: job.state == "running", timeout_s)
        await asyncio.sleep(12)


def _with_commit(payload: dict[str, Any], commit: str) -> dict[str, Any]:
    """The recorded commit ids are of another repository."""
    sha = payload.get("git_info", {}).get("sha", "")
    if not commit or not sha or set(sha) == {"0"} or set(sha) == {"1"}:
        return payload
    text = __import__("json").dumps(payload).replace(sha, commit)
    filled: dict[str, Any] = __import__("json").loads(text)
    return filled
