"""Asks a running daemon over its control socket."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from runner.errors import RunnerError

ANSWER_S = 30.0


class ControlError(RunnerError):
    """The daemon did not do what it was asked, or cannot be asked."""


class NotRunning(ControlError):
    """Nobody answers at the socket."""


class ControlClient:
    """One connection to the daemon at ``path``. Raises :class:`NotRunning` where there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_S)
        try:
            self._connect()
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            self._socket.close()
            raise NotRunning(f"nobody answers at {path}") from error
        except OSError as error:
            self._socket.close()
            raise ControlError(f"{path}: {error.strerror}") from error
        self._lines = self._socket.makefile("rb")

    def _connect(self) -> None:
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._socket.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, command: str) -> dict[str, Any]:
        """What the daemon answers. Raises :class:`NotRunning` when it ends meanwhile, :class:`ControlError` when it refuses."""
        try:
            self._socket.sendall(json.dumps({"cmd": command}).encode() + b"\n")
            line = self._lines.readline()
        except TimeoutError as error:
            raise ControlError(f"the daemon at {self._path} does not answer") from error
        except OSError as error:
            raise NotRunning(f"the daemon at {self._path} has ended") from error
        if not line.endswith(b"\n"):
            raise NotRunning(f"the daemon at {self._path} has ended")
        answer: dict[str, Any] = json.loads(line)
        if not answer.get("ok"):
            raise ControlError(str(answer.get("error")))
        return answer
