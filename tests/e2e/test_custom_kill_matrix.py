"""The daemon dies in every stage of a custom job: the driver's programs go on, the next daemon follows them.

The same log, every stage's script once, one cleanup behind it all, nothing left in the place. Only where the
daemon dies between the facts of ``prepare_executor`` or of the cleanup does the driver hear of these steps again.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import re
import signal
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.fakes.driver import LOGGING, custom_table, sandbox_environment, write_program
from tests.killing import KILLER, RESTART_LINE, KilledCase, without_places
from tests.waiting import until

RESULT = ("failed", "script_failure", 7)
CONFIG = """concurrent = 4
check_interval = 1
shutdown_timeout = 10

[[runners]]
  name = "lab"
  url = "{url}"
  token = "glrt-lab"
  executor = "custom"
"""
# Times differ from run to run.
QUIET = "  [runners.pyrunner]\n    job_costs = false\n"
STAGES = (
    "prepare_script",
    "get_sources 1",
    "restore_cache 1",
    "step_script 0",
    "after_script",
    "archive_cache_on_failure",
    "upload_artifacts_on_failure",
    "cleanup_file_variables",
)
DRIVER_STAGES = [{"step_script": "build_script"}.get(stage.split()[0], stage.split()[0]) for stage in STAGES]
FACTS = (
    "acknowledged",
    *itertools.chain.from_iterable(
        (f"step_started {step}", f"step_ended {step}")
        for step in ("header", "settings", "prepare_executor", *STAGES[:3], "announce")
    ),
    *itertools.chain.from_iterable((f"step_started {step}", f"step_ended {step}") for step in STAGES[3:]),
    *(f"note end {stage}" for stage in ("prepare_executor", *STAGES)),
    "note script began",
    "step_started take down",
    "step_ended take down",
    "note concluded",
    "outcome",
    "patch 1",
    "patch 2",
)
TORN = (
    "step_ended prepare_executor",
    "step_started get_sources 1",
    "step_ended step_script 0",
    "step_ended take down",
    "outcome",
)
# Facts with these in flight are those of a step that begins anew.
ANEW = ("prepare_executor", "take down")


class Case(KilledCase):
    """One job in the sandbox of the example driver, whose daemon is to die."""

    death_s = 60.0

    def __init__(self, fake: FakeCoordinator, daemon: Daemon) -> None:
        super().__init__(fake, daemon)
        self.marks = daemon.root / "marks"
        self.marks.mkdir()
        commit = fake.places.get("COMMIT") or git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
        fake.places["COMMIT"] = commit
        found: dict[str, Any] = job_payload(
            1,
            [
                "echo one; sleep 0.2",
                "printf 'two '; sleep 0.2; echo secret-word three",
                "mkdir -p out; echo made >out/file",
                "exit 7",
            ],
            after_script=["sleep 0.2; echo after $CI_JOB_STATUS"],
            variables={"GIT_STRATEGY": "fetch", "FF_TIMESTAMPS": "false"},
            cache=[{"key": "k", "paths": ["out/"], "policy": "pull-push", "when": "always"}],
            artifacts=[{"paths": ["out/"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}],
        )
        found["variables"].append({"key": "S", "value": "secret-word", "masked": True})
        found["git_info"] |= fake.git_info(commit)
        self.payload = found

    async def over(self, job: Job) -> Job:
        await asyncio.wait_for(job.ended.wait(), 90)
        jobs = self.daemon.state / "jobs"
        await until(lambda: not list(jobs.iterdir()), 30)
        assert (job.state, job.failure_reason, job.exit_code) == RESULT, f"{job.log}\n{self.daemon.log}"
        assert job.log_is_whole()
        assert "secret-word" not in job.log
        assert [artifact.kind for artifact in job.artifacts] == ["archive"]
        with zipfile.ZipFile(io.BytesIO(job.artifacts[0].content)) as archive:
            assert archive.read("out/file") == b"made\n"
        assert not list((self.daemon.root / "places" / "jobs").iterdir()), "the place is taken down"
        return job

    def calls(self) -> list[str]:
        return [line.strip() for line in (self.daemon.root / "driver.log").read_text().splitlines()]

    def check_calls(self, *, anew: bool = False) -> None:
        """Every stage once and in order, the last call the cleanup."""
        found = self.calls()
        assert [call.removeprefix("run ") for call in found if call.startswith("run ")] == DRIVER_STAGES
        assert found[-1] == "cleanup"
        if not anew:
            assert Counter(found) == Counter({"config", "prepare", "cleanup", *(f"run {stage}" for stage in DRIVER_STAGES)})


def comparable(job: Job, daemon: Daemon) -> str:
    """The log without times and places, and without what was shown before a stage was shown again."""
    log = without_places(job, daemon)
    while RESTART_LINE in log:
        before, _, after = log.partition(RESTART_LINE)
        again = re.match(r"section_start:T:\w+\r", after)
        # The cleanup has no section: there is nothing before it that would be shown twice.
        log = (before[: before.rindex(again[0])] if again is not None else before) + after
    return log


def by_section(log: str) -> list[list[str]]:
    """Lines of each stage. Its script writes to two streams, whose order is that in which the supervisor woke."""
    sections: list[list[str]] = [[]]
    for line in log.splitlines():
        if "section_start:" in line:
            sections.append([])
        sections[-1].append(line)
    return [sorted(section) for section in sections]


@pytest.fixture
async def make_case(tmp_path: Path, fake: FakeCoordinator) -> AsyncIterator[Callable[[], Case]]:
    made: list[Daemon] = []

    def make() -> Case:
        root = tmp_path / f"runner-{len(made)}"
        program = write_program(root / "driver.sh", LOGGING)
        config = CONFIG.format(url=fake.url) + custom_table(program) + QUIET
        daemon = Daemon(root, config, environment=sandbox_environment(root))
        made.append(daemon)
        return Case(fake, daemon)

    yield make
    for daemon in made:
        await daemon.stop()


_expected: list[str] = []


@pytest.fixture
async def case(fake: FakeCoordinator, make_case: Callable[[], Case]) -> Case:
    if not _expected:
        undisturbed = make_case()
        job = await undisturbed.run()
        await undisturbed.daemon.stop()
        assert RESTART_LINE not in job.log
        undisturbed.check_calls()
        _expected.append(comparable(job, undisturbed.daemon))
        del fake.jobs[job.id]
    return make_case()


def check(job: Job, case: Case, *, anew: bool = False) -> None:
    case.check_calls(anew=anew)
    log = comparable(job, case.daemon)
    assert by_section(log) == by_section(_expected[0]), f"{log}\n{_expected[0]}"


def is_anew(fact: str) -> bool:
    """Whether the first patch, which may leave at any time, or a fact inside of such a step."""
    return fact == "patch 1" or (any(step in fact for step in ANEW) and not fact.startswith("step_started"))


@pytest.mark.parametrize("fact", FACTS)
async def test_killed_before_a_fact(fact: str, case: Case) -> None:
    check(await case.run(f"before {fact}"), case, anew=is_anew(fact))


@pytest.mark.parametrize("fact", TORN)
async def test_killed_while_a_fact_is_written(fact: str, case: Case) -> None:
    check(await case.run(f"torn {fact}"), case, anew=is_anew(fact))


@pytest.mark.parametrize("call", ["config", "prepare", *(f"run {stage}" for stage in DRIVER_STAGES), "cleanup"])
async def test_killed_while_the_driver_works(call: str, case: Case) -> None:
    """The daemon dies once the driver was called; the call goes on meanwhile."""
    slow = LOGGING.replace('exec "$DRIVER"', 'sleep 0.5\nexec "$DRIVER"')
    write_program(case.daemon.root / "driver.sh", slow)
    job = case.fake.add_job(case.payload)
    case.daemon.start()
    log = case.daemon.root / "driver.log"
    await until(lambda: log.exists() and call in case.calls(), 60)
    case.daemon.kill()
    case.daemon.start()
    check(await case.over(job), case, anew=not call.startswith("run"))


@pytest.mark.parametrize("call", ["prepare", "run get_sources", "run build_script", "cleanup"])
async def test_executed_again_while_the_driver_works(call: str, case: Case) -> None:
    slow = LOGGING.replace('exec "$DRIVER"', 'sleep 0.5\nexec "$DRIVER"')
    write_program(case.daemon.root / "driver.sh", slow)
    job = case.fake.add_job(case.payload)
    case.daemon.start()
    pid = case.daemon.pid
    log = case.daemon.root / "driver.log"
    await until(lambda: log.exists() and call in case.calls(), 60)
    case.daemon.send(signal.SIGUSR2)
    check(await case.over(job), case, anew=not call.startswith("run"))
    assert case.daemon.pid == pid
    assert case.daemon.running


async def test_killed_again_and_again(case: Case) -> None:
    points = ["before step_ended get_sources 1", "before note script began", "torn step_ended step_script 0", "before outcome"]
    check(await case.run(*points), case)


async def test_the_points_are_those_of_a_job(fake: FakeCoordinator, make_case: Callable[[], Case], tmp_path: Path) -> None:
    """No step of a custom job is missing in the matrix."""
    case = make_case()
    case.daemon.environment["FACTS"] = str(tmp_path / "facts")
    case.daemon.command = KILLER
    case.daemon.start()
    await case.over(fake.add_job(case.payload))
    written = set((tmp_path / "facts").read_text().splitlines())
    steps = {fact for fact in written if fact.startswith("step_")}
    assert steps == {fact for fact in FACTS if fact.startswith("step_")}
