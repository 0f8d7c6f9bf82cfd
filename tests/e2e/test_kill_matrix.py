"""The daemon dies at every point of a job's life: the result is true, the log the same to the byte, the script ran once.

Points are the facts of the job's journal (before one is written, in the middle of its line), the calls to the coordinator
(before they act, after they acted and before the answer arrives), and moments of the scripts.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import re
import signal
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.bucket import bucket
from tests.fakes.coordinator import FakeCoordinator, Job, Recorded, job_payload
from tests.fakes.daemon import Daemon
from tests.fakes.job import Artifact
from tests.killing import KILLER, RESTART_LINE, KilledCase, without_places
from tests.waiting import processes_below, until

Make = Callable[..., Daemon]
UPLOADED = (
    "out/: found 2 matching artifact files and directories\x1b[0;m \n"
    'Uploading artifacts as "archive" to coordinator... 201 Created\x1b[0;m  '
    "correlation_id\x1b[0;m=ID id\x1b[0;m=1 status\x1b[0;m=201 token\x1b[0;m=job-1\n"
)
# What is in its place already is not moved again.
FETCHED = "Downloading cache from http://HOST/bkt/runner/lab/project/9/in\x1b[0;m \n"
STORED = (
    "Using presigned URL for cache upload              \x1b[0;m \n"
    "Uploading cache.zip to http://HOST/bkt/runner/lab/project/9/k\x1b[0;m \n"
)
RESULT = ("failed", "script_failure", 7)
STAGES = (
    "prepare_executor",
    "prepare_script",
    "get_sources 1",
    "restore_cache 1",
    "download_artifacts 1",
    "step_script 0",
    "after_script",
    "archive_cache_on_failure",
    "upload_artifacts_on_failure",
    "cleanup_file_variables",
)
STEPS = ("header", "settings", *STAGES[:5], "announce", *STAGES[5:])
FACTS = (
    "acknowledged",
    *itertools.chain.from_iterable((f"step_started {step}", f"step_ended {step}") for step in STEPS),
    *(f"note end {stage}" for stage in STAGES),
    "note job began",
    "note script began",
    "note script timeout",
    "note after_script timeout",
    "note after_script began",
    "note upload_artifacts_on_failure 0 sending",
    "note upload_artifacts_on_failure 0 stored",
    "note concluded",
    "note costs",
    "outcome",
    "patch 1",
    "patch 2",
)
TORN = [fact for fact in FACTS if not fact.startswith("note")]
CALLS = {
    "cache down": ("GET", "/bkt/runner/lab/project/9/in", ""),
    "cache up": ("PUT", "/bkt/runner/lab/project/9/k", ""),
    "artifacts down": ("GET", "/jobs/9/artifacts", ""),
    "acceptance": ("PUT", "", '"running"'),
    "first patch": ("PATCH", "/trace", "Running with"),
    "artifacts up": ("POST", "/artifacts", ""),
    "last patch": ("PATCH", "/trace", "Job failed"),
    "final update": ("PUT", "", '"failed"'),
}
MARKS = ("begun", "between", "ending", "after")
SCRIPT = [
    "mark begun; sleep 0.1; echo one",
    "printf 'two '; mark between; sleep 0.1; echo secret-word three",
    "cat in/file built/file; mkdir -p out; echo result > out/file; echo run >> ../runs; mark ending; sleep 0.1",
    "exit 7",
]


def archive_of(name: str, content: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, content)
    return out.getvalue()


class Case(KilledCase):
    """One job, whose daemon is to die, and what is known of the place where it runs."""

    def __init__(self, fake: FakeCoordinator, daemon: Daemon) -> None:
        super().__init__(fake, daemon)
        commit = fake.places.get("COMMIT") or git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
        fake.places["COMMIT"] = commit
        mark = f"mark() {{ : > {daemon.root}/$1; }}; "
        found: dict[str, Any] = job_payload(
            1,
            [mark + SCRIPT[0], *SCRIPT[1:]],
            after_script=[mark + "mark after; sleep 0.1; echo after $CI_JOB_STATUS"],
            variables={"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false"},
            cache=[
                {"key": "in", "paths": ["in/"], "policy": "pull", "when": "always"},
                {"key": "k", "paths": ["out/"], "policy": "push", "when": "always"},
            ],
            dependencies=[{"id": 9, "token": "glcbt-job-9", "name": "build", "artifacts_file": {"filename": "artifacts.zip"}}],
            artifacts=[{"paths": ["out/"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}],
        )
        found["variables"].append({"key": "S", "value": "secret-word", "masked": True})
        found["git_info"] |= fake.git_info(commit)
        self.payload = found
        fake.bucket.objects = {}
        fake.bucket.put("runner/lab/project/9/in", archive_of("in/file", "restored\n"), {})
        content = archive_of("built/file", "built\n")
        earlier = Artifact(form={"artifact_type": "archive"}, file_name="artifacts.zip", content=content)
        fake.jobs[9] = Job(payload=job_payload(9, []), state="success", artifacts=[earlier])

    async def over(self, job: Job) -> Job:
        await asyncio.wait_for(job.ended.wait(), 30)
        jobs = self.daemon.state / "jobs"
        await until(lambda: not list(jobs.iterdir()))
        assert (job.state, job.failure_reason, job.exit_code) == RESULT
        assert job.log_is_whole(), "size and checksum are those of what the server holds"
        runs = self.daemon.root / "builds" / "lab" / "0" / "git" / "runs"
        assert runs.read_text() == "run\n", "the script ran once"
        assert [artifact.kind for artifact in job.artifacts] == ["archive"], f"{job.log}\n{self.daemon.log}"
        with zipfile.ZipFile(io.BytesIO(self.fake.bucket.objects["runner/lab/project/9/k"])) as archive:
            assert archive.read("out/file") == b"result\n"
        assert not processes_below(self.daemon.root / "builds")
        assert "secret-word" not in job.log
        return job


def comparable(job: Job, daemon: Daemon) -> str:
    """The log without times and places, and without what was shown before a stage was shown again."""
    log = without_places(job, daemon)
    # A repository that was begun before the kill is found again.
    log = log.replace("Reinitialized existing Git", "Initialized empty Git")
    log = log.replace("\x1b[32;1mCreated fresh repository.\x1b[0;m\n", "")
    # What the server has is not sent again, and the stage says so.
    log = re.sub(r"http://[0-9.:]+/bkt", "http://HOST/bkt", log)
    log = re.sub(r"cache.zip is up to date *\x1b\[0;m \n", FETCHED, log)
    log = re.sub(r"Primary cache does not exist remotely, uploading existing archive *\x1b\[0;m \n", "", log)
    log = re.sub(r"Primary cache already exists remotely, skipping upload *\x1b\[0;m \n", STORED, log)
    log = re.sub(r"Uploaded before the runner was restarted *\x1b\[0;m \n", UPLOADED, log)
    # What a job has cost is no two times the same.
    before, section, after = log.partition("job_costs[collapsed=true]")
    assert section, "a job's log ends with what it cost"
    log = before + section + re.sub(r"[\d.]+ (s|B|[KMG]iB)\b", "COST", after)
    while RESTART_LINE in log:
        before, _, after = log.partition(RESTART_LINE)
        again = re.match(r"section_start:T:\w+\r", after)
        assert again is not None, "the stage is shown from its beginning"
        log = before[: before.rindex(again[0])] + after
    return log


def make_case(fake: FakeCoordinator, make_daemon: Make) -> Case:
    return Case(fake, make_daemon(extra=bucket(fake.url.removeprefix("http://"))))


_expected: list[str] = []


async def expected(fake: FakeCoordinator, make_daemon: Make) -> str:
    """The log of a job that nobody disturbs."""
    if not _expected:
        case = make_case(fake, make_daemon)
        job = await case.run()
        await case.daemon.stop()
        assert RESTART_LINE not in job.log
        _expected.append(comparable(job, case.daemon))
        del fake.jobs[job.id]
    return _expected[0]


@pytest.fixture
async def case(fake: FakeCoordinator, make_daemon: Make) -> Case:
    await expected(fake, make_daemon)
    return make_case(fake, make_daemon)


def check(job: Job, case: Case) -> None:
    assert comparable(job, case.daemon) == _expected[0]


@pytest.mark.parametrize("fact", FACTS)
async def test_killed_before_a_fact(fact: str, case: Case) -> None:
    check(await case.run(f"before {fact}"), case)


@pytest.mark.parametrize("fact", TORN)
async def test_killed_while_a_fact_is_written(fact: str, case: Case) -> None:
    check(await case.run(f"torn {fact}"), case)


@pytest.mark.parametrize(
    "points",
    [
        ("before step_ended step_script 0", "before step_ended step_script 0"),
        ("before note script began", "torn outcome"),
        ("torn step_started get_sources 1", "before step_ended get_sources 1"),
        ("before patch 1", "before patch 1"),
        ("before step_started after_script", "before step_ended after_script"),
        ("before note upload_artifacts_on_failure 0 stored", "before step_ended upload_artifacts_on_failure"),
        ("before outcome", "before outcome"),
    ],
)
async def test_killed_twice(points: Sequence[str], case: Case) -> None:
    check(await case.run(*points), case)


def at_call(fake: FakeCoordinator, name: str, moment: str, act: Callable[[], None]) -> None:
    """Act once when this call comes, before the server acts on it or before its answer leaves."""
    method, ending, inside = CALLS[name]
    done: list[Recorded] = []

    def watch(request: Recorded) -> None:
        fits = (
            request.method == method
            and request.path.endswith(ending if ending.count("/") > 1 else f"/jobs/1{ending}")
            and inside in str(request.body).replace("'", '"')
        )
        if fits and not done:
            done.append(request)
            act()

    setattr(fake, moment, watch)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", CALLS)
async def test_killed_at_a_call(name: str, moment: str, case: Case) -> None:
    at_call(case.fake, name, moment, case.daemon.kill)
    job = case.fake.add_job(case.payload)
    case.daemon.start()
    assert await case.daemon.wait(20) == -signal.SIGKILL
    case.daemon.start()
    check(await case.over(job), case)


@pytest.mark.parametrize("mark", MARKS)
async def test_killed_while_a_script_runs(mark: str, case: Case) -> None:
    job = case.fake.add_job(case.payload)
    case.daemon.start()
    await until((case.daemon.root / mark).exists)
    case.daemon.kill()
    case.daemon.start()
    check(await case.over(job), case)


@pytest.mark.parametrize("fault", [("status", {"status": 500}), ("reset", {}), ("lost", {})], ids=["500", "reset", "lost"])
@pytest.mark.parametrize("fact", ["note script began", "step_ended after_script", "outcome"])
async def test_killed_while_the_server_fails(fault: tuple[str, dict[str, Any]], fact: str, case: Case) -> None:
    kind, details = fault
    case.fake.faults.add("PATCH /api", kind, 3, **details)
    case.fake.faults.add("PUT /api", kind, 2, skip=1, **details)
    check(await case.run(f"before {fact}"), case)


@pytest.mark.parametrize("mark", MARKS)
async def test_executed_again_while_a_script_runs(mark: str, case: Case) -> None:
    job = case.fake.add_job(case.payload)
    case.daemon.start()
    pid = case.daemon.pid
    await until((case.daemon.root / mark).exists)
    case.daemon.send(signal.SIGUSR2)
    check(await case.over(job), case)
    os.kill(pid, 0)


@pytest.mark.parametrize("name", CALLS)
async def test_executed_again_at_a_call(name: str, case: Case) -> None:
    at_call(case.fake, name, "before", lambda: case.daemon.send(signal.SIGUSR2))
    job = case.fake.add_job(case.payload)
    case.daemon.start()
    pid = case.daemon.pid
    check(await case.over(job), case)
    os.kill(pid, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_stop_signal_in_the_middle_of_a_restart_is_not_lost(number: signal.Signals, case: Case) -> None:
    job = case.fake.add_job(case.payload)
    case.daemon.start()
    await until((case.daemon.root / "begun").exists)
    case.daemon.send(signal.SIGUSR2)
    await until(lambda: "Letting go of running jobs" in case.daemon.log)
    case.daemon.send(number)
    assert await case.daemon.wait(20) == 0
    assert job.ended.is_set()
    if number is signal.SIGINT:
        assert "aborted: interrupt" in job.log
    else:
        check(await case.over(job), case)


async def test_the_points_are_those_of_a_job(fake: FakeCoordinator, make_daemon: Make, tmp_path: Path) -> None:
    """No fact of a job's journal is missing in the matrix."""
    case = make_case(fake, make_daemon)
    case.daemon.environment["FACTS"] = str(tmp_path / "facts")
    case.daemon.command = KILLER
    case.daemon.start()
    job = fake.add_job(case.payload)
    await case.over(job)
    written = set((tmp_path / "facts").read_text().splitlines())
    assert {fact for fact in written if not fact.startswith("patch")} == {fact for fact in FACTS if not fact.startswith("patch")}
