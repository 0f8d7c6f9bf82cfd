"""Variables and logs where the reference is weak: what scripts see, and what stands in the log."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import files_below

Make = Callable[..., Daemon]
# Writes to the other stream only when the supervisor has read the last line: so their order is not a matter of chance.
ALTERNATE = """
import fcntl, os, struct, termios, time
for number in range(300):
    stream = 1 + number % 2
    os.write(stream, f"line {number}\\n".encode())
    while struct.unpack("i", fcntl.ioctl(stream, termios.FIONREAD, bytes(4)))[0]:
        time.sleep(0.0005)
"""


def payload(script: list[str], variables: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    found = job_payload(1, script, variables={"FF_TIMESTAMPS": "false"}, **changes)
    found["variables"] += variables
    return found


async def run(fake: FakeCoordinator, daemon: Daemon, found: dict[str, Any]) -> Job:
    job = fake.add_job(found)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 40)
    return job


@pytest.mark.parametrize("key", ["LARGE", "GIT_LARGE"])
async def test_a_value_that_no_program_can_be_given_is_skipped(key: str, fake: FakeCoordinator, make_daemon: Make) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    found = payload([f"test -z ${{{key}+set}}", "cat README"], [{"key": key, "value": "x" * 200_000}])
    found["git_info"] |= fake.git_info(commit)
    found["variables"].append({"key": "GIT_STRATEGY", "value": "fetch"})
    job = await run(fake, make_daemon(), found)
    assert job.state == "success", job.log
    assert f"WARNING: {key}: the value is too long for the environment of programs, scripts do not see it" in job.log
    assert "\nhello\n" in job.log


async def test_a_large_file_variable_is_a_file(fake: FakeCoordinator, make_daemon: Make) -> None:
    large = {"key": "LARGE", "value": "x" * 3_000_000, "file": True}
    job = await run(fake, make_daemon(), payload(["wc -c < $LARGE"], [large]))
    assert job.state == "success", job.log
    assert "\n3000000\n" in job.log


async def test_names_that_no_shell_takes_are_skipped(fake: FakeCoordinator, make_daemon: Make) -> None:
    odd: list[dict[str, Any]] = [
        {"key": key, "value": "never"} for key in ("a.b", "1X", "A B", "é", "x;touch pwned", "$(touch pwned)", "")
    ]
    odd.append({"key": "../../pwned", "value": "never", "file": True})
    daemon = make_daemon()
    job = await run(
        fake, daemon, payload(["env | grep -c never || true", "echo $FINE"], [*odd, {"key": "FINE", "value": "fine"}])
    )
    assert job.state == "success", job.log
    assert "WARNING: 'a.b' is no name for a shell variable, scripts do not see it" in job.log
    assert "\n0\n" in job.log
    assert "\nfine\n" in job.log
    assert files_below(daemon.root, "pwned") == []


async def test_scripts_see_the_flags_of_the_header(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra='  environment = ["FF_TEST_FEATURE=false", "FF_HASH_CACHE_KEYS=T"]\n')
    script = ["echo flags $FF_TEST_FEATURE $FF_HASH_CACHE_KEYS $FF_TIMESTAMPS"]
    job = await run(fake, daemon, payload(script, [{"key": "FF_TEST_FEATURE", "value": "true"}]))
    assert "feature flags: FF_TEST_FEATURE:true, FF_TIMESTAMPS:false, FF_HASH_CACHE_KEYS:true" in job.log
    assert "\nflags true true false\n" in job.log


async def test_lines_of_gitlab_env_that_say_nothing_are_skipped(fake: FakeCoordinator, make_daemon: Make) -> None:
    secret = {"key": "DATA", "value": "data", "file": True}
    script = [r"printf '\n  \nA=1\nb.c=2\n=3\nD\n' >> $GITLAB_ENV; ls $DATA"]
    daemon = make_daemon()
    artifact = {"paths": ["file-$A"], "artifact_type": "archive", "artifact_format": "zip"}
    found = payload([*script, "touch file-1"], [secret], after_script=["echo after $A"], artifacts=[artifact])
    job = await run(fake, daemon, found)
    assert job.state == "success", job.log
    assert "\nafter 1\n" in job.log
    assert len(job.artifacts) == 1, job.log
    assert not files_below(daemon.root, "DATA")


async def test_streams_keep_their_order(fake: FakeCoordinator, make_daemon: Make) -> None:
    job = await run(
        fake, make_daemon(), payload(['python3 -c "$PROGRAM"'], [{"key": "PROGRAM", "value": ALTERNATE, "raw": True}])
    )
    assert job.state == "success", job.log
    lines = [line for line in job.log.splitlines() if line.startswith("line ")]
    assert lines == [f"line {number}" for number in range(300)]


async def test_a_mask_of_one_letter_leaves_sections_and_colours(fake: FakeCoordinator, make_daemon: Make) -> None:
    masked = [{"key": f"M{letter}", "value": letter, "masked": True} for letter in "s[0m;_"]
    job = await run(fake, make_daemon(), payload(["echo secrets"], masked))
    assert job.state == "success"
    for marker in ("section_start:", "section_end:", ":get_sources\r\x1b[0K", "\x1b[32;1m", "\x1b[0;m\n"):
        assert marker in job.log, marker
    assert "secrets" not in job.log


async def test_a_shell_that_is_killed_shows_no_script(fake: FakeCoordinator, make_daemon: Make) -> None:
    hidden = {"key": "HIDDEN", "value": "a 'secret' with \"quotes\"", "masked": True}
    job = await run(fake, make_daemon(), payload(["echo alive", "kill -SEGV $BASHPID", "echo never"], [hidden]))
    assert (job.state, job.exit_code) == ("failed", 139), job.log
    assert "alive" in job.log
    assert "export" not in job.log
    assert "secret" not in job.log


async def test_jobs_see_nothing_of_the_daemon_but_what_is_passed(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.environment |= {"LAB_HIDDEN": "hidden", "LAB_PASSED": "passed", "AWS_SECRET_ACCESS_KEY": "hidden"}
    daemon.write_config(daemon.config.read_text().replace("[pyrunner]\n", '[pyrunner]\npass_env = ["LAB_PASSED"]\n'))
    job = await run(fake, daemon, payload(["env | grep -E '^(LAB|AWS)_'"], []))
    assert "\nLAB_PASSED=passed\n" in job.log
    assert "hidden" not in job.log


async def test_an_interrupted_job_without_after_script_does_not_mention_one(fake: FakeCoordinator, make_daemon: Make) -> None:
    job = fake.add_job(payload(["echo begun", "sleep 60"], []))
    daemon = make_daemon()
    daemon.start()
    await fake.until(lambda: b"\nbegun" in job.trace)
    daemon.send(signal.SIGINT)
    assert await daemon.wait(30) == 0
    assert job.state == "failed"
    assert "after_script" not in job.log


@pytest.mark.parametrize(
    ("flag", "text"),
    [("false", "requires the FF_CONCRETE feature flag"), ("true", "is not part of this runner, whatever FF_CONCRETE says")],
)
async def test_steps_are_refused_in_plain_words(flag: str, text: str, fake: FakeCoordinator, make_daemon: Make) -> None:
    found = payload([], [{"key": "FF_CONCRETE", "value": flag}], run='[{"name": "a", "script": "echo"}]')
    found["features"]["failure_reasons"].append("runner_configuration_error")
    job = await run(fake, make_daemon(), found)
    assert (job.state, job.failure_reason) == ("failed", "runner_configuration_error")
    assert text in job.log
