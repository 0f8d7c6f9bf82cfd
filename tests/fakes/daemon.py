"""The installed ``pyrunner run`` as a process of a test."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("pyrunner")


class Daemon:
    """A daemon with everything of its own below ``root``: home, configuration, state, builds."""

    def __init__(self, root: Path, config: str, *, environment: dict[str, str] | None = None, own_keys: str = "") -> None:
        self.root = root
        self.own_keys = own_keys
        self.config = root / "conf" / "config.toml"
        self.state = root / "state"
        self.home = root / "home"
        self.log_path = root / "daemon.log"
        self.command = [str(COMMAND)]
        self.environment = environment or {}
        self._process: subprocess.Popen[bytes] | None = None
        for directory in (self.config.parent, self.home):
            directory.mkdir(parents=True, exist_ok=True)
        self.write_config(config)

    def write_config(self, config: str) -> None:
        own = f'[pyrunner]\nstate_dir = "{self.state}"\ncontrol_socket = ""\n{self.own_keys}'
        lines = config.splitlines()
        first = next((index for index, line in enumerate(lines) if line.startswith("[")), len(lines))
        if "[pyrunner]" not in config:
            lines[first:first] = own.splitlines()
        self.config.write_text("\n".join(lines) + "\n")
        self.config.chmod(0o600)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self, *arguments: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            **self.environment,
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.command, "run", "--config", self.config, "--working-directory", self.root, *arguments],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                umask=0o022,
            )

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """The death that nothing can be done about."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def wait(self, timeout_s: float = 30.0) -> int:
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, timeout_s)

    async def stop(self) -> int:
        if self._process is None or self._process.poll() is not None:
            return 0
        self.send(signal.SIGINT)
        try:
            return await self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise
