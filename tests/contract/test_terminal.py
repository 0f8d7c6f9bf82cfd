"""``register`` as a person uses it: in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
import tomllib
from pathlib import Path

from tests.fakes.daemon import COMMAND
from tests.fakes.runner_api import RunnerApi

CONTROL_C = "\x03"


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, root: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # whoever runs the tests may ignore it

        environment = {"PATH": os.environ["PATH"], "HOME": str(root)}
        self._process = subprocess.Popen(
            [COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave, env=environment, preexec_fn=own_terminal
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.screen = ""

    async def see(self, text: str, answer: str) -> None:
        """Wait for a text, then type."""
        async with asyncio.timeout(15):
            while text not in self.screen:
                await asyncio.sleep(0.02)
                self._read()
        self.screen = self.screen.partition(text)[2]
        os.write(self._master, answer.encode())

    async def end(self) -> int:
        code = await asyncio.to_thread(self._process.wait, 15)
        self._read()
        os.close(self._master)
        return code

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := os.read(self._master, 65536):
                self.screen += data.decode(errors="replace")


async def begin(api: RunnerApi, root: Path, *arguments: str) -> Terminal:
    terminal = Terminal(root, "register", "-c", str(root / "config.toml"), *arguments)
    await terminal.see("gitlab.com/):", "\n")  # an empty answer is asked again
    await terminal.see("gitlab.com/):", f"{api.url}\n")
    await terminal.see("registration token:", "glrt-tttttttttttttttttttt\n")
    await terminal.see("config.toml file:", "my runner\n")
    return terminal


async def test_every_question_is_asked_and_wrong_answers_again(tmp_path: Path) -> None:
    async with RunnerApi({}) as api:
        terminal = await begin(api, tmp_path)
        await terminal.see("Enter an executor", "bogus\n")
        await terminal.see("Invalid executor specified", "")
        await terminal.see("Enter an executor", "shell\n")
        assert await terminal.end() == 0
    assert "Runner registered successfully" in terminal.screen
    (runner,) = tomllib.loads((tmp_path / "config.toml").read_text())["runners"]
    assert (runner["name"], runner["executor"], runner["id"]) == ("my runner", "shell", 7)
    assert [request["path"] for request in api.requests] == ["/api/v4/runners/verify"]


async def test_control_c_takes_the_registration_back(tmp_path: Path) -> None:
    async with RunnerApi({}) as api:
        terminal = await begin(api, tmp_path)
        await terminal.see("Enter an executor", CONTROL_C)
        assert await terminal.end() == 1
    assert "FATAL: RECEIVED SIGNAL: interrupt" in terminal.screen
    assert "Traceback" not in terminal.screen
    assert [(request["method"], request["path"]) for request in api.requests][-1] == ("DELETE", "/api/v4/runners/managers")
    assert not (tmp_path / "config.toml").exists()


async def test_control_c_leaves_the_runner_where_that_is_wanted(tmp_path: Path) -> None:
    async with RunnerApi({}) as api:
        terminal = await begin(api, tmp_path, "--leave-runner")
        await terminal.see("Enter an executor", CONTROL_C)
        assert await terminal.end() == 1
    assert [request["path"] for request in api.requests] == ["/api/v4/runners/verify"]


async def test_logs_are_coloured_in_a_terminal_only(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path, "verify", "-c", str(tmp_path / "none.toml"), "--name", "x")
    assert await terminal.end() == 1
    assert "\x1b[0;m" in terminal.screen
    done = subprocess.run([COMMAND, "list", "-c", tmp_path / "none.toml"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
