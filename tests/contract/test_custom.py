"""Whole jobs of the custom executor in the sandbox of the example driver, and drivers that do not behave."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import git_server
from tests.fakes.bucket import bucket
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.fakes.driver import LOGGING, custom_table, sandbox_environment, write_program
from tests.waiting import until

CONFIG = """concurrent = 4
check_interval = 1
shutdown_timeout = 10

[[runners]]
  name = "lab"
  url = "{url}"
  token = "glrt-lab"
  executor = "custom"
"""
DIRECTORIES = '  builds_dir = "{root}/builds"\n  cache_dir = "{root}/cache"\n'
Make = Callable[..., Daemon]


@pytest.fixture
async def make_custom(tmp_path: Path, fake: FakeCoordinator) -> AsyncIterator[Make]:
    made: list[Daemon] = []

    def make(driver: str = "", *, more: str = "", table: str = "", tables: str = "", tool: str = "unshare") -> Daemon:
        """A daemon whose runner has the example driver, or ``driver`` as the text of a program; ``more`` goes into the table."""
        root = tmp_path / f"runner-{len(made)}"
        program = write_program(root / "driver.sh", driver or LOGGING)
        text = CONFIG.format(url=fake.url) + (DIRECTORIES.format(root=root) if driver or table else "")
        daemon = Daemon(root, text + (table or custom_table(program, more)) + tables, environment=sandbox_environment(root, tool))
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        await daemon.stop()


def payload(job_id: int, script: list[str], **changes: Any) -> dict[str, Any]:
    variables = {"FF_TIMESTAMPS": "false", "GIT_STRATEGY": "empty", **changes.pop("variables", {})}
    return job_payload(job_id, script, variables=variables, **changes)


async def ended(job: Job, timeout_s: float = 60) -> Job:
    await asyncio.wait_for(job.ended.wait(), timeout_s)
    return job


async def run(fake: FakeCoordinator, daemon: Daemon, script: list[str], **changes: Any) -> Job:
    job = fake.add_job(payload(len(fake.jobs) + 1, script, **changes))
    if not daemon.running:
        daemon.start()
    await ended(job)
    jobs = daemon.state / "jobs"
    await until(lambda: not list(jobs.iterdir()))
    return job


def calls(daemon: Daemon) -> list[str]:
    path = daemon.root / "driver.log"
    return [line.strip() for line in path.read_text().splitlines()] if path.exists() else []


ARTIFACT = {"paths": ["out/"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}
# A driver without a sandbox that maps exit codes as the contract asks.
PLAIN = """#!/bin/bash
case $1 in
run) bash "$2"; status=$?; [ $status = 0 ] || { echo $status >"$BUILD_EXIT_CODE_FILE"; exit $BUILD_FAILURE_EXIT_CODE; } ;;
%s
esac
"""


@pytest.mark.parametrize("tool", ["unshare", "bwrap"])
async def test_a_job_runs_in_the_sandbox(tool: str, fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom(tool=tool)
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    found = payload(
        1,
        ["cat README; pwd; id -u; echo $$; touch /usr/x || echo read-only; ls /tmp", "mkdir out; echo made >out/file"],
        after_script=["echo after $CI_JOB_STATUS"],
        variables={"GIT_STRATEGY": "fetch"},
        artifacts=[ARTIFACT],
    )
    found["git_info"] |= fake.git_info(commit)
    job = fake.add_job(found)
    daemon.start()
    await ended(job)
    assert job.state == "success", f"{job.log}\n{daemon.log}"
    assert f"Using Custom executor with driver {tool} sandbox 1..." in job.log
    assert "Created fresh repository." in job.log
    assert "hello\n/mnt/builds/git/app\n" in job.log
    assert "read-only\n" in job.log
    assert "after success\n" in job.log
    assert calls(daemon) == [
        "config",
        "prepare",
        "run prepare_script",
        "run get_sources",
        "run build_script",
        "run after_script",
        "run upload_artifacts_on_success",
        "run cleanup_file_variables",
        "cleanup",
    ]
    with zipfile.ZipFile(io.BytesIO(job.artifacts[0].content)) as archive:
        assert archive.read("out/file") == b"made\n"
    assert not list((daemon.root / "places" / "jobs").iterdir())
    assert job.token not in job.log


@pytest.mark.parametrize("tool", ["unshare", "bwrap"])
async def test_the_exit_code_of_the_script_is_the_jobs(tool: str, fake: FakeCoordinator, make_custom: Make) -> None:
    job = await run(fake, make_custom(tool=tool), ["exit 42"], after_script=["echo after $CI_JOB_STATUS"])
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 42)
    assert "after failed\n" in job.log
    assert "ERROR: Job failed: exit status 42" in job.log


async def test_artifacts_and_caches_reach_later_jobs(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom()
    cache = [{"key": "k", "paths": ["kept/"], "policy": "pull-push", "when": "on_success"}]
    first = await run(
        fake, daemon, ["mkdir -p out kept; echo made >out/file; echo cached >kept/file"], artifacts=[ARTIFACT], cache=cache
    )
    assert first.state == "success", first.log
    assert "Cache file does not exist" in first.log
    assert "Created cache\x1b[0;m\n" in first.log
    dependency = {"id": 1, "token": first.token, "name": "one", "artifacts_file": {"filename": "artifacts.zip", "size": 1}}
    second = await run(fake, daemon, ["cat out/file kept/file"], cache=cache, dependencies=[dependency])
    assert second.state == "success", second.log
    assert "Downloading artifacts from coordinator... ok" in second.log
    assert "Successfully extracted cache\x1b[0;m\n" in second.log
    assert "made\ncached\n" in second.log
    other = payload(3, ["ls kept"], cache=cache)
    other["variables"].append({"key": "CI_PROJECT_ID", "value": "77", "public": True})
    job = await ended(fake.add_job(other))
    assert (job.state, "Cache file does not exist" in job.log) == ("failed", True), "caches belong to a project"


async def test_a_remote_cache_is_moved_by_the_place(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom(tables=bucket(fake.url.removeprefix("http://")))
    cache = [{"key": "k", "paths": ["kept/"], "policy": "pull-push", "when": "on_success"}]
    first = await run(fake, daemon, ["mkdir kept; echo cached >kept/file"], cache=cache)
    assert first.state == "success", first.log
    assert "runner/lab/project/9/k" in fake.bucket.objects, first.log
    second = await run(fake, daemon, ["cat kept/file"], cache=cache)
    assert "cached\n" in second.log, second.log
    for job in (first, second):
        assert "X-Amz-Signature" not in job.log
        assert re.search(
            r"(Downloading cache from|Uploading cache.zip to) http://[^ ?]+/bkt/runner/lab/project/9/k *\x1b", job.log
        )


@pytest.mark.parametrize("tool", ["unshare", "bwrap"])
async def test_cancel_ends_the_script_and_after_script_runs(tool: str, fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom(tool=tool)
    job = fake.add_job(payload(1, ["echo begun; sleep 600"], after_script=["echo after $CI_JOB_STATUS"]))
    daemon.start()
    await fake.until(lambda: "begun\n" in job.log, 30)
    fake.cancel(job)
    await ended(job)
    assert job.state == "canceled"
    assert "after canceled\n" in job.log, f"{job.log}\n{daemon.log}"
    assert calls(daemon)[-1] == "cleanup"


async def test_the_time_limit_ends_the_script_and_the_place(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom()
    job = fake.add_job(payload(1, ["echo begun; trap '' TERM; sleep 600"], runner_info={"timeout": 8}))
    daemon.start()
    await ended(job)
    assert (job.state, job.failure_reason) == ("failed", "job_execution_timeout")
    await until(lambda: calls(daemon)[-1:] == ["cleanup"])
    assert not [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and _environ(pid, str(daemon.root))]


def _environ(process: Path, text: str) -> bool:
    """Whether a process that is no daemon has the text in its environment or arguments."""
    try:
        return text.encode() in (process / "environ").read_bytes() and b"driver" in (process / "cmdline").read_bytes()
    except OSError:
        return False


async def test_a_sandbox_that_cannot_be_made_is_a_system_failure(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom(tool="bwrap")
    bwrap = write_program(daemon.root / "bin" / "bwrap", "#!/bin/sh\necho 'bwrap: no namespaces' >&2\nexit 1\n")
    daemon.environment["PATH"] = f"{bwrap.parent}:{os.environ['PATH']}"
    job = await run(fake, daemon, ["echo never"])
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert "bwrap: no namespaces" in job.log
    assert "driver: the sandbox could not be made (exit status 1)" in job.log


# Programs that SIGTERM does not end, with something behind them that holds their output and that no signal reaches.
DORMANT = "trap '' TERM; setsid sleep 600 & echo $! >{pid}; sleep 600"
IMPATIENT = "    force_kill_timeout = 1\n"
QUICK = "    cleanup_exec_timeout = 1\n"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Path]:
    """Where the process id of what holds the output goes; it is ended behind the test."""
    path = tmp_path / "holder.pid"
    yield path
    os.kill(int(path.read_text()), signal.SIGKILL)


async def test_a_program_that_does_not_end_is_given_up(fake: FakeCoordinator, make_custom: Make, holder: Path) -> None:
    dormant = DORMANT.format(pid=holder)
    daemon = make_custom(PLAIN % f"cleanup) {dormant} ;;", more=IMPATIENT + QUICK)
    job = await run(fake, daemon, ["echo ran"])
    assert job.state == "success"
    told = re.search(r"WARNING: Cleanup script failed: failed to kill process PID=(\d+), likely process is dormant", job.log)
    assert told, f"{job.log}\n{daemon.log}"
    assert not Path(f"/proc/{told.group(1)}").exists()


async def test_a_stage_that_does_not_end_is_given_up(fake: FakeCoordinator, make_custom: Make, holder: Path) -> None:
    driver = PLAIN.replace(
        'run) bash "$2"',
        f"""run) [ "$3" != build_script ] || {{ echo begun; {DORMANT.format(pid=holder)}; }}
  bash "$2\"""",
    )
    daemon = make_custom(driver % "", more=IMPATIENT)
    job = fake.add_job(payload(1, ["echo never"], after_script=["echo after $CI_JOB_STATUS"]))
    daemon.start()
    await fake.until(lambda: "begun\n" in job.log, 60)
    fake.cancel(job)
    await ended(job)
    assert job.state == "canceled"
    assert "after canceled\n" in job.log, f"{job.log}\n{daemon.log}"
    assert re.search(r"failed to kill process PID=\d+, likely process is dormant", daemon.log), daemon.log


async def test_a_killed_program_is_waited_for(fake: FakeCoordinator, make_custom: Make) -> None:
    """``force_kill_timeout`` is also patience: what still comes out of the program is read."""
    late = "trap '' TERM; setsid sh -c 'sleep 12; echo so late >&2' & sleep 600"
    daemon = make_custom(PLAIN % f"cleanup) {late} ;;", more=QUICK + "    force_kill_timeout = 60\n")
    job = await run(fake, daemon, ["echo ran"])
    text = "WARNING: Cleanup script failed: unknown Custom executor executable exit code -1; executable execution terminated with"
    assert f"{text}: signal: killed" in job.log, job.log
    assert "so late" in daemon.log


async def test_what_a_driver_leaves_running_is_its_own(fake: FakeCoordinator, make_custom: Make, tmp_path: Path) -> None:
    """A place may be a process that its driver started: no stage and no cancel ends it."""
    pid_file = tmp_path / "place.pid"
    daemon = make_custom(
        PLAIN
        % f"""prepare) setsid sleep 600 >/dev/null 2>&1 & echo $! >{pid_file} ;;
cleanup) kill $(cat {pid_file}) ;;"""
    )
    job = fake.add_job(payload(1, ["echo begun; sleep 600"], after_script=[f"kill -0 $(cat {pid_file}) && echo alive"]))
    daemon.start()
    await fake.until(lambda: "begun\n" in job.log, 30)
    fake.cancel(job)
    await ended(job)
    assert "alive\n" in job.log, job.log
    assert "left processes behind" not in job.log
    pid = int(pid_file.read_text())
    await until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize(
    ("printed", "complaint"),
    [
        ("[]", "error while parsing JSON output: an object was expected"),
        ('{"builds_dir": 1}', "error while parsing JSON output: builds_dir is no text"),
        ('{"builds_dir": "/x"', "error while parsing JSON output: unexpected end of JSON input"),
        ('{"job_env": {"A": 1}}', "error while parsing JSON output: job_env is no object of strings"),
        ('{"builds_dir_is_shared": "yes"}', "builds_dir_is_shared is neither true nor false"),
    ],
)
async def test_a_reply_that_cannot_be_used_is_named(
    printed: str, complaint: str, fake: FakeCoordinator, make_custom: Make
) -> None:
    job = await run(fake, make_custom(PLAIN % f"config) echo '{printed}' ;;"), ["echo never"])
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert job.log.count(f"ERROR: Preparation failed: {complaint}") + job.log.count(complaint) >= 4, job.log
    assert "never" not in job.log


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("/nowhere/driver", "fork/exec /nowhere/driver: no such file or directory"),
        ("/etc/passwd", "fork/exec /etc/passwd: permission denied"),
        ("no-such-driver", 'exec: "no-such-driver": executable file not found in $PATH'),
    ],
)
async def test_a_program_that_is_not_there_is_named(name: str, text: str, fake: FakeCoordinator, make_custom: Make) -> None:
    table = f'  [runners.custom]\n    run_exec = "{name}"\n'
    job = await run(fake, make_custom(table=table), ["echo never"])
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert f"prepare environment: failed to start command: {text}. Check https://" in job.log


async def test_a_driver_that_fails_now_and_then_is_tried_again(fake: FakeCoordinator, make_custom: Make, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    daemon = make_custom(PLAIN % f"prepare) [ -e {flag} ] || {{ touch {flag}; exit $SYSTEM_FAILURE_EXIT_CODE; }} ;;")
    job = await run(fake, daemon, ["echo ran"])
    assert job.state == "success"
    assert job.log.count("Using Custom executor...") == 2
    assert "ran\n" in job.log


async def test_secrets_are_in_no_arguments(fake: FakeCoordinator, make_custom: Make, tmp_path: Path) -> None:
    """Every process that any stage starts is looked at: only the environment and files know the token."""
    seen = tmp_path / "arguments"
    spy = """#!/bin/bash
case $1 in
run)
  strace -f -qq -e trace=execve -e signal=none -s 100000 -o "$SPY.$$" bash "$2"; status=$?
  cat "$SPY.$$" >>"$SPY"; exit $status ;;
esac
"""
    if not os.access("/usr/bin/strace", os.X_OK):
        # Without strace: programs of the place write down how they were called.
        spy = """#!/bin/bash
case $1 in
run)
  mkdir -p "$SPY.bin"
  for tool in git curl zip unzip find awk tar env sed cat; do
    printf '#!/bin/sh\\necho "%s $*" >>%s\\nexec %s "$@"\\n' "$tool" "$SPY" "$(command -v $tool)" >"$SPY.bin/$tool.new"
    chmod 755 "$SPY.bin/$tool.new"
  done
  for tool in "$SPY.bin"/*.new; do mv "$tool" "${tool%.new}"; done
  PATH="$SPY.bin:$PATH" bash "$2" ;;
esac
"""
    daemon = make_custom(spy)
    daemon.environment["SPY"] = str(seen)
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    found = payload(1, ["mkdir out; echo x >out/x"], variables={"GIT_STRATEGY": "fetch"}, artifacts=[ARTIFACT])
    found["git_info"] |= fake.git_info(commit)
    found["variables"].append({"key": "SECRET", "value": "hidden-word", "masked": True})
    found["variables"].append({"key": "FILE", "value": "hidden-file", "file": True})
    job = fake.add_job(found)
    daemon.start()
    await ended(job)
    assert job.state == "success", job.log
    # Git's own helper gets the address that its configuration gives it: FF_GIT_URLS_WITHOUT_TOKENS keeps tokens out of it.
    text = "".join(line for line in seen.read_text().splitlines(keepends=True) if "remote-http" not in line)
    assert "curl" in text
    assert "git" in text
    for secret in (job.token, "hidden-word", "hidden-file"):
        assert secret not in text


async def test_what_is_missing_is_said(fake: FakeCoordinator, make_custom: Make, tmp_path: Path) -> None:
    """A place with a shell and little else runs scripts, and says what else it would need."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "sh", "mkdir", "rm", "hostname", "uname", "cat", "chmod"):
        (tools / name).symlink_to(Path("/bin") / name)
    daemon = make_custom(f'#!/bin/bash\n[ "$1" != run ] || exec env -i PATH={tools} bash "$2"\n')
    cache = [{"key": "k", "paths": ["kept/"], "policy": "pull-push", "when": "on_success"}]
    job = await run(fake, daemon, ["echo ran"], artifacts=[ARTIFACT], cache=cache)
    assert job.state == "success", job.log
    for text in (
        "Missing gitlab-runner or unzip. Extracting cache is disabled.",
        "Missing gitlab-runner or find. Creating cache is disabled.",
        "Missing gitlab-runner or find. Uploading artifacts is disabled.",
    ):
        assert text in job.log


async def test_an_interrupted_job_is_reported_and_its_place_is_taken_down(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom()
    job = fake.add_job(payload(1, ["echo begun; sleep 600"]))
    daemon.start()
    await fake.until(lambda: "begun\n" in job.log, 30)
    daemon.send(signal.SIGINT)
    assert await daemon.wait(30) == 0
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert calls(daemon)[-1] == "cleanup"
    assert not list((daemon.root / "places" / "jobs").iterdir())


@pytest.mark.parametrize("damaged", ["accepted.json", "payload.json", "no payload.json"])
async def test_a_record_that_cannot_be_read_leaves_no_place(
    damaged: str, fake: FakeCoordinator, make_custom: Make, tmp_path: Path
) -> None:
    """Script first, then the place, as ever; the server is told where the record still says of what job."""
    asked = tmp_path / "asked"
    daemon = make_custom(PLAIN % f'cleanup) pgrep -xf "sleep 617" >{asked}.new; mv {asked}.new {asked} ;;')
    job = fake.add_job(payload(1, ["echo begun; sleep 617"]))
    daemon.start()
    await fake.until(lambda: "begun\n" in job.log, 30)
    daemon.kill()
    (record,) = (daemon.state / "jobs").iterdir()
    if damaged.startswith("no "):
        (record / damaged.removeprefix("no ")).unlink()
    else:
        (record / damaged).write_text("{")
    daemon.start()
    await until(lambda: not record.exists(), 60)
    assert asked.read_text() == ""
    assert "set aside" in daemon.log
    assert not list((daemon.state / "set-aside").glob("*/driver.json"))
    if damaged == "accepted.json":
        await ended(job)
        assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")


async def test_clearing_up_behind_a_broken_archive_keeps_the_project(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom(PLAIN % "")
    cache = {"key": "k", "paths": ["f"], "policy": "pull-push", "when": "always"}
    flags = {"FF_CLEAN_UP_FAILED_CACHE_EXTRACT": "true", "GIT_STRATEGY": "none"}
    await run(fake, daemon, ["echo 1 > f"], cache=[cache], variables=flags)
    (archive,) = (daemon.root / "cache").rglob("cache.zip")
    archive.write_bytes(b"no archive")
    job = await run(fake, daemon, ["cat f"], cache=[{**cache, "paths": ["."]}], variables=flags)
    assert job.state == "success", job.log
    assert "Removing ." in job.log
    assert "The project directory is not removed" in job.log


async def test_the_driver_sees_the_status_of_the_job(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom('#!/bin/bash\n[ "$1" != run ] || { echo "$3: $CUSTOM_ENV_CI_JOB_STATUS"; bash "$2"; }\n')
    job = await run(fake, daemon, ["true"], after_script=["true"])
    assert "build_script: running\n" in job.log
    assert "after_script: success\n" in job.log
    assert "cleanup_file_variables: success\n" in job.log


@pytest.mark.parametrize("shell", ["bash", "sh"])
async def test_what_a_job_leaves_in_its_repository_does_nothing(
    shell: str, fake: FakeCoordinator, make_custom: Make, tmp_path: Path
) -> None:
    pwned = tmp_path / "pwned"
    driver = PLAIN.replace('bash "$2"', f'{shell} "$2"') % f'config) echo \'{{"shell": "{shell}"}}\' ;;'
    daemon = make_custom(driver)
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n", ".gitattributes": "* text=auto\n"})
    plant = [
        f"act() {{ printf 'echo %s >>{pwned}; ' \"$1\"; }}; cd .git; mkdir -p info hooks worktrees/x",
        'git config core.fsmonitor "$(act fsmonitor)false"; git config core.sshCommand "$(act ssh)"',
        'git config filter.x.smudge "$(act smudge)cat"; git config filter.x.clean "$(act clean)cat"',
        "echo '* filter=x' >info/attributes; git config credential.helper \"!$(act helper)\"",
        "for hook in post-checkout pre-auto-gc reference-transaction post-index-change; do",
        'printf "#!/bin/sh\\n%s\\n" "$(act $hook)" >hooks/$hook; done; chmod 755 hooks/*',
        "touch index.lock refs/heads/main.lock; ln -s /etc/passwd planted; echo changed >../README",
        "mkdir -p $CI_PROJECT_DIR.tmp/git-template/hooks; cp hooks/* $CI_PROJECT_DIR.tmp/git-template/hooks/",
    ]
    first = payload(1, plant, variables={"GIT_STRATEGY": "fetch"})
    second = payload(2, ["cat README; ls .git .git/hooks 2>&1 || true; git config --list"], variables={"GIT_STRATEGY": "fetch"})
    for found in (first, second):
        found["git_info"] |= fake.git_info(commit)
    job = fake.add_job(first)
    daemon.start()
    await ended(job)
    assert job.state == "success", job.log
    pwned.unlink(missing_ok=True)
    job = await ended(fake.add_job(second))
    assert job.state == "success", f"{job.log}\n{daemon.log}"
    assert not pwned.exists(), f"{pwned.read_text()}\n{job.log}"
    assert "hello\n" in job.log
    for planted in ("fsmonitor", "filter.x", "planted", "post-checkout"):
        assert planted not in job.log


async def test_the_costs_of_a_job_are_those_of_its_driver(fake: FakeCoordinator, make_custom: Make) -> None:
    """What scripts of the driver have moved is nothing that the runner knows, and so nothing that it says."""
    daemon = make_custom('#!/bin/bash\ntest "$1" = run || exit 0\nexec bash "$2"\n', more="  job_costs = true\n")
    work = "import time\nwhile time.process_time() < 1: sum(range(10000))"
    job = await run(fake, daemon, [f'python3 -c "{work}"'], artifacts=[{"paths": ["*"], "name": "a", "when": "always"}])
    text = job.log.partition("Costs of this job")[2]
    found = re.search(r"CPU:     ([\d.]+) s user, ([\d.]+) s system", text)
    assert found is not None, job.log
    assert 0.95 <= float(found[1]) + float(found[2]) <= 3
    assert "in the largest process" in text
    assert "Moved" not in text
    assert "Caches" not in text
