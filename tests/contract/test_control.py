"""``status``, ``drain`` and ``reload`` against a running daemon."""

from __future__ import annotations

import asyncio
import json
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_artifacts import ended
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import COMMAND, Daemon
from tests.small_disk import small_tmpfs
from tests.waiting import until

Make = Callable[..., Daemon]
MIB = 1024 * 1024
WAIT_S = 60.0


def socket_of(daemon: Daemon) -> Path:
    return daemon.root / "run" / "control.sock"


def controlled(daemon: Daemon, keys: str = "") -> Daemon:
    """The same daemon, with a control socket."""
    key = f'control_socket = "{socket_of(daemon)}"\n{keys}'
    daemon.write_config(daemon.config.read_text().replace('control_socket = ""', key))
    return daemon


class Call:
    """A command of ``pyrunner`` for the configuration of a daemon."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def begin(cls, daemon: Daemon, *words: str) -> Call:
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(COMMAND, *words, "--config", daemon.config, stdout=pipe, stderr=pipe))

    async def end(self) -> tuple[int, str, str]:
        """Exit status, output, errors."""
        output, errors = await asyncio.wait_for(self._process.communicate(), WAIT_S)
        return self._process.returncode or 0, output.decode(), errors.decode()


async def call(daemon: Daemon, *words: str) -> tuple[int, str, str]:
    return await (await Call.begin(daemon, *words)).end()


async def status(daemon: Daemon) -> dict[str, Any]:
    exit_status, output, errors = await call(daemon, "status", "--json")
    assert exit_status == 0, errors + daemon.log
    found: dict[str, Any] = json.loads(output)
    return found


def add_waiting_job(fake: FakeCoordinator, daemon: Daemon, number: int = 1) -> Job:
    """A job that runs until ``go`` is there."""
    script = [f"touch {daemon.root}/on-{number}; until test -e {daemon.root}/go; do sleep 0.05; done"]
    return fake.add_job(job_payload(number, script))


async def test_status_shows_runners_jobs_and_slots_also_of_adopted_jobs(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = controlled(make_daemon())
    daemon.start()
    await until(socket_of(daemon).exists, WAIT_S)
    assert stat.S_IMODE(socket_of(daemon).lstat().st_mode) == 0o600
    job = add_waiting_job(fake, daemon)
    await until((daemon.root / "on-1").exists, WAIT_S)
    found = await status(daemon)
    assert found["state"] == "running"
    assert found["pid"] == daemon.pid
    assert found["config"]["path"] == str(daemon.config)
    assert found["slots"]["used"] >= 1
    (runner,) = found["runners"]
    assert (runner["state"], runner["jobs"], runner["executor"]) == ("ok", 1, "shell")
    assert runner["last_poll"]["status"] in (201, 204)
    (one,) = found["jobs"]
    assert (one["id"], one["stage"], one["adopted"], one["state"]) == (1, "step_script", False, "running")
    assert one["duration_s"] > 0
    assert found["unreported"] == []
    assert {space["path"] for space in found["disk"]["spaces"]}, "free space is shown without a floor, too"
    assert "glrt-" not in json.dumps(found)
    exit_status, output, _ = await call(daemon, "status")
    assert exit_status == 0
    assert output.splitlines()[0] == "pyrunner: Service is running"
    assert "step_script" in output
    daemon.kill()
    daemon.start()
    await until(lambda: "job adopted" in daemon.log, WAIT_S)
    await until(lambda: _answers(daemon), WAIT_S)
    (one,) = (await status(daemon))["jobs"]
    assert one["adopted"]
    assert "(1 adopted)" in (await call(daemon, "status"))[1]
    (daemon.root / "go").touch()
    await ended(job)


def _answers(daemon: Daemon) -> bool:
    from runner.ops.control_client import ControlClient, NotRunning

    try:
        with ControlClient(socket_of(daemon)) as client:
            return bool(client.ask("ping"))
    except NotRunning:
        return False


async def test_a_runner_that_is_refused_and_a_file_that_is_not_in_force_show(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = controlled(make_daemon())
    token = 'token = "glrt-lab"'
    daemon.write_config(daemon.config.read_text().replace(token, f"{token}\n  unhealthy_requests_limit = 1"))
    fake.faults.add("POST /api/v4/jobs/request", "status", 10_000, status=403)
    daemon.start()
    await until(lambda: "is unhealthy" in daemon.log, WAIT_S)
    (runner,) = (await status(daemon))["runners"]
    assert runner["state"] == "unhealthy"
    assert runner["unhealthy_until"]
    assert runner["last_poll"]["status"] == 403
    good = daemon.config.read_text()
    daemon.config.write_text("concurrent = [\n")
    exit_status, _, errors = await call(daemon, "reload", "--socket", str(socket_of(daemon)))
    assert exit_status == 1
    assert f"{daemon.config}:" in errors
    said = [line for line in daemon.log.splitlines() if f"{daemon.config}:" in line]
    assert len(said) == 1, "a broken file is told of once"
    assert said[0].startswith("ERROR: Failed to load config")
    exit_status, _, errors = await call(daemon, "status")
    assert exit_status == 3
    assert errors.startswith(f"WARNING: {daemon.config}:")
    assert "name another socket with --socket" in errors
    found = json.loads((await call(daemon, "status", "--json", "--socket", str(socket_of(daemon))))[1])
    assert str(daemon.config) in found["config"]["last_error"]
    daemon.config.write_text(good.replace("unhealthy_requests_limit = 1", "unhealthy_requests_limit = 99"))
    assert await call(daemon, "reload") == (0, "Configuration loaded\n", "")
    found = await status(daemon)
    assert found["config"]["last_error"] is None
    assert found["runners"][0]["state"] == "ok"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with small_tmpfs(tmp_path / "runner-0", "32m") as path:
        yield path


async def test_status_shows_the_floor_and_the_budgets(fake: FakeCoordinator, make_daemon: Make, small_disk: Path) -> None:
    daemon = controlled(make_daemon(), '[pyrunner.disk]\n  min_free = "8MiB"\n  workspaces = "1GiB"\n')
    (small_disk / "filling").write_bytes(b"x" * (26 * MIB))
    daemon.start()
    await until(lambda: "no jobs are requested" in daemon.log, WAIT_S)
    disk = (await status(daemon))["disk"]
    assert disk["low"] is True
    assert disk["min_free_bytes"] == 8 * MIB
    assert min(space["free_bytes"] for space in disk["spaces"]) < 8 * MIB
    assert [(kind["kind"], kind["budget_bytes"]) for kind in disk["kinds"]] == [("workspaces", 1024 * MIB)]
    assert "FULL, no jobs are requested (min_free 8.0 MiB)" in (await call(daemon, "status"))[1]
    (small_disk / "filling").unlink()
    await until(lambda: "jobs are requested again" in daemon.log, WAIT_S)
    assert (await status(daemon))["disk"]["low"] is False


async def test_drain_waits_for_the_jobs_and_takes_no_more(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = controlled(make_daemon())
    daemon.start()
    job = add_waiting_job(fake, daemon)
    await until((daemon.root / "on-1").exists, WAIT_S)
    exit_status, output, errors = await call(daemon, "drain", "--timeout", "1")
    assert exit_status == 1
    assert "Draining, jobs left: 1: 1 (step_script)" in output
    assert "the daemon goes on draining" in errors
    late = fake.add_job(job_payload(2, ["echo late"]))
    found = await status(daemon)
    assert found["state"] == "graceful-shutdown"
    assert found["drain"]["deadline"] is None, daemon.log
    drain = await Call.begin(daemon, "drain")
    await until(lambda: daemon.log.count("received stop signal") == 2, WAIT_S)
    (daemon.root / "go").touch()
    exit_status, output, errors = await drain.end()
    assert exit_status == 0, errors
    assert output.endswith("The daemon has ended\n")
    assert await daemon.wait(WAIT_S) == 0
    assert job.state == "success"
    assert late.state == "pending"
    assert not socket_of(daemon).exists()


@pytest.mark.parametrize("command", ["status", "drain", "reload"])
async def test_without_a_daemon(command: str, make_daemon: Make) -> None:
    daemon = controlled(make_daemon())
    exit_status, output, errors = await call(daemon, command)
    assert exit_status == 3
    assert "not running" in output + errors
    assert f"nobody answers at {socket_of(daemon)}" in output + errors


async def test_a_job_that_could_not_be_reported_shows(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = controlled(make_daemon())
    daemon.start()
    job = add_waiting_job(fake, daemon)
    await until((daemon.root / "on-1").exists, WAIT_S)
    daemon.send(signal.SIGUSR2)
    await until(lambda: "job adopted" in daemon.log, WAIT_S)
    await until(lambda: _answers(daemon), WAIT_S)
    assert (await status(daemon))["pid"] == daemon.pid, "the new image answers at the same place"
    (daemon.root / "go").touch()
    await ended(job)


async def test_two_daemons_of_one_socket(make_daemon: Make, fake: FakeCoordinator) -> None:
    """The second goes on without one, and says so."""
    first, second = controlled(make_daemon()), make_daemon()
    first.start()
    await until(lambda: _answers(first), WAIT_S)
    key = f'control_socket = "{socket_of(first)}"'
    second.write_config(second.config.read_text().replace('control_socket = ""', key))
    second.start()
    await until(lambda: "another daemon answers there" in second.log, WAIT_S)
    assert (await status(second))["pid"] == first.pid
    await second.stop()
    assert (await status(first))["pid"] == first.pid
