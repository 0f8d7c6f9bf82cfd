"""The systemd unit, and what the daemon tells a service manager."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import COMMAND, Daemon
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = ROOT / "systemd"
PROGRAM = "/opt/pyrunner/bin/pyrunner"


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert shutil.which("systemd-analyze"), "systemd-analyze is missing: install the package systemd"
    text = (SYSTEMD / "pyrunner.service").read_text().replace(PROGRAM, str(COMMAND))
    unit = tmp_path / "pyrunner.service"
    unit.write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "pyrunner.service" in line]
    assert complaints == []
    assert done.returncode == 0


def test_the_unit_leaves_supervisors_alone() -> None:
    text = (SYSTEMD / "pyrunner.service").read_text()
    assert "KillMode=process\n" in text
    assert "OOMPolicy=continue\n" in text


def test_the_unit_is_what_the_readme_says() -> None:
    unit = (SYSTEMD / "pyrunner.service").read_text()
    readme = (ROOT / "README.md").read_text()
    assert f"ExecStart={PROGRAM} run " in unit
    assert f"{PROGRAM} register" in readme
    account, builds = "pyrunner-job", "/var/lib/pyrunner"
    assert f" --working-directory {builds} --user {account}\n" in unit
    assert f" -o {account} -g {account} {builds}/builds\n" in unit
    assert f"useradd --system --create-home --skel /dev/null --shell /bin/bash {account}\n" in readme


async def test_the_daemon_tells_its_service_manager(
    tmp_path: Path, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.setblocking(False)
        daemon = make_daemon()
        daemon.environment |= {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "2000000"}
        daemon.start()
        assert await hear(manager, "READY=1")
        assert await hear(manager, "WATCHDOG=1")
        daemon.send(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in await hear(manager, "RELOADING=1")
        assert await hear(manager, "READY=1")
        daemon.send(signal.SIGTERM)
        assert await hear(manager, "STOPPING=1")
        assert await daemon.wait() == 0


async def hear(manager: socket.socket, text: str) -> str:
    async with asyncio.timeout(10):
        while True:
            message = (await asyncio.get_running_loop().sock_recv(manager, 4096)).decode()
            if text in message:
                return message


async def test_jobs_with_the_rights_of_the_daemon_are_told_of_once(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    another = f'\n[[runners]]\n  name = "two"\n  url = "{fake.url}"\n  token = "glrt-two"\n  executor = "shell"\n'
    daemon = make_daemon(extra=another)
    daemon.start()
    await fake.until(lambda: fake.requests)
    daemon.send(signal.SIGHUP)
    await until(lambda: daemon.log.count("Configuration loaded") == 2)
    assert daemon.log.count("account of the runner itself") == 1
