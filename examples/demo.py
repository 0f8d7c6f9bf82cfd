"""A job that survives its daemon: kills the daemon half-way through a job, and shows the job end whole."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from examples.coordinator import RUNNER_TOKEN, DemoCoordinator, DemoJob, job_payload, print_log

HERE = Path(__file__).resolve().parent
ROOT = Path(os.environ.get("DEMO_DIR", HERE.parent / ".demo"))
HALF_WAY = b"soak test 3 of 6"
DEADLINE_S = 180.0
SHELL_SCRIPT = [
    "echo 'shell example'",
    "grep -c . main.go",
    'for i in 1 2 3 4 5 6; do echo "soak test $i of 6"; sleep 0.5; done',
    "echo done",
]


def say(text: str) -> None:
    """A line of the demonstration itself, apart from the job's log."""
    print(f"\n\033[1m>>> {text}\033[0m", flush=True)


def git(*args: str, cwd: Path) -> str:
    """Run git as somebody, whatever the machine's configuration is."""
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{role}_{what}": "demo@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    done = subprocess.run(["git", *args], cwd=cwd, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_repository() -> str:
    """Make a bare repository of the example service that can be read over plain HTTP; returns its commit."""
    work, bare = ROOT / "work", ROOT / "git" / "go-service.git"
    shutil.copytree(HERE / "go-service", work)
    git("init", "--quiet", "--initial-branch=main", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "--quiet", "--message", "The example service", cwd=work)
    git("clone", "--quiet", "--bare", str(work), str(bare), cwd=ROOT)
    git("update-server-info", cwd=bare)
    return git("rev-parse", "HEAD", cwd=work)


def job_script() -> list[str]:
    """The script of the service's pipeline job; a shell example where there is no Go."""
    if shutil.which("go") is None:
        say("Go is not installed here: a shell example runs instead (install golang-go to see the Go service).")
        return SHELL_SCRIPT
    lines = (HERE / "go-service" / ".gitlab-ci.yml").read_text().splitlines()
    return [line.strip().removeprefix("- ") for line in lines if line.strip().startswith("- ")]


def write_config(url: str) -> Path:
    """The configuration that ``pyrunner register`` would have written."""
    path = ROOT / "config.toml"
    path.write_text(
        f"""concurrent = 1
check_interval = 1

[pyrunner]
state_dir = "{ROOT}/state"
control_socket = ""
pass_env = ["GO*"]

[[runners]]
name = "demo"
url = "{url}"
token = "{RUNNER_TOKEN}"
executor = "shell"
builds_dir = "{ROOT}/builds"
cache_dir = "{ROOT}/cache"
"""
    )
    path.chmod(0o600)
    return path


def start_daemon(config: Path) -> subprocess.Popen[bytes]:
    """Start the installed command, as a service manager would."""
    command = Path(sys.executable).with_name("pyrunner")
    log = (ROOT / "daemon.log").open("ab")
    with log:
        daemon = subprocess.Popen([command, "run", "--config", config, "--working-directory", ROOT], stdout=log, stderr=log)
    say(f"The daemon runs as process {daemon.pid}.")
    return daemon


async def half_way(job: DemoJob) -> None:
    """Wait until the script is well on its way."""
    while HALF_WAY not in job.trace:
        if job.ended.is_set():
            sys.exit("the job ended before the daemon could be killed")
        await asyncio.sleep(0.05)


async def demonstrate() -> bool:
    """The whole demonstration; True when the job ended well and its log is whole."""
    shutil.rmtree(ROOT, ignore_errors=True)
    (ROOT / "git").mkdir(parents=True)
    sha = make_repository()
    coordinator = DemoCoordinator(ROOT / "git", print_log)
    await coordinator.start()
    config = write_config(coordinator.url)
    job = coordinator.offer(job_payload(coordinator.url, "go-service", sha, job_script()))
    daemon = start_daemon(config)
    try:
        async with asyncio.timeout(DEADLINE_S):
            await half_way(job)
            daemon.send_signal(signal.SIGKILL)
            daemon.wait()
            say("The daemon was killed with SIGKILL. The job does not care; in three seconds another daemon starts.")
            await asyncio.sleep(3)
            daemon = start_daemon(config)
            await job.ended.wait()
    except TimeoutError:
        say(f"The job did not end in time; the daemon's log is {ROOT / 'daemon.log'}.")
        return False
    finally:
        daemon.send_signal(signal.SIGTERM)
        # In a thread: the daemon lets its last request end, and who answers that is here.
        await asyncio.to_thread(daemon.wait, 30)
        await coordinator.stop()
    whole = job.is_whole() and all(f"soak test {number} of 6".encode() in job.trace for number in range(1, 7))
    say(f"The job ended with {job.state}; its log of {len(job.trace)} bytes is {'whole' if whole else 'NOT whole'}.")
    return whole and job.state == "success"


if __name__ == "__main__":
    sys.exit(0 if asyncio.run(demonstrate()) else 1)
