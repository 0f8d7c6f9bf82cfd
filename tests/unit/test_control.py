"""The control socket: who may ask, what is answered, whose it is."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from runner.cli.status import duration, table, text
from runner.ops import control
from runner.ops.control import ControlServer, Refused, listen
from runner.ops.control_client import ControlClient, ControlError, NotRunning
from tests.unit.test_disk import as_nobody
from tests.waiting import until


async def _echo(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"heard": request["cmd"]}


async def _refuse(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise Refused("not now")


async def _break(request: Mapping[str, Any]) -> Mapping[str, Any]:
    raise RuntimeError("secret")


class Serving:
    """A server at ``path`` while the block lasts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Serving:
        commands = {"ping": _echo, "refuse": _refuse, "break": _break}
        self._task = asyncio.create_task(ControlServer(self.path, commands).run())
        await until(self.path.exists)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def ask(path: Path, *commands: str) -> list[dict[str, Any]]:
    with ControlClient(path) as client:
        return [client.ask(command) for command in commands]


async def test_several_questions_on_one_connection(tmp_path: Path) -> None:
    """In a place whose path is longer than a socket address may be."""
    path = tmp_path / ("d" * 120) / "control.sock"
    async with Serving(path):
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        found = await asyncio.to_thread(ask, path, "ping", "ping")
        assert found == [{"ok": True, "heard": "ping"}] * 2
        assert sorted(os.listdir(path.parent)) == ["control.sock"]
    assert not path.exists()
    with pytest.raises(NotRunning):
        await asyncio.to_thread(ask, path, "ping")


@pytest.mark.parametrize(
    ("command", "error"),
    [("refuse", "not now"), ("break", "see the log of the daemon"), ("other", "of these: break, ping, refuse")],
)
async def test_what_is_refused_says_why(command: str, error: str, tmp_path: Path) -> None:
    async with Serving(tmp_path / "s"):
        with pytest.raises(ControlError, match=error):
            await asyncio.to_thread(ask, tmp_path / "s", command)


@pytest.mark.parametrize("request_line", [b"\n", b"{\n", b"[]\n", b"null\n", b'{"cmd": 1}\n', b"x" * 100_000 + b"\n"])
async def test_what_is_no_request_is_answered(request_line: bytes, tmp_path: Path) -> None:
    async with Serving(tmp_path / "s"):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
        writer.write(request_line)
        answer = json.loads(await reader.readline())
        assert answer["ok"] is False
        assert answer["error"]
        writer.close()
        assert await asyncio.to_thread(ask, tmp_path / "s", "ping")


async def test_what_a_dead_daemon_left_makes_way(tmp_path: Path) -> None:
    left = listen(tmp_path / "s")
    left.close()
    assert (tmp_path / "s").exists()
    async with Serving(tmp_path / "s"):
        # The left socket was there from the beginning: ask until the new one answers.
        async with asyncio.timeout(15):
            while True:
                try:
                    assert await asyncio.to_thread(ask, tmp_path / "s", "ping")
                    break
                except NotRunning:
                    await asyncio.sleep(0.02)


async def test_another_daemon_keeps_its_socket(tmp_path: Path) -> None:
    async with Serving(tmp_path / "s"):
        before = (tmp_path / "s").lstat()
        with pytest.raises(OSError, match="another daemon answers there"):
            await asyncio.to_thread(listen, tmp_path / "s")
        assert os.path.samestat(before, (tmp_path / "s").lstat())
        assert await asyncio.to_thread(ask, tmp_path / "s", "ping")


async def test_a_socket_that_cannot_be_had_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "RETRY_S", 0.05)
    (tmp_path / "s").write_text("in the way")
    task = asyncio.create_task(ControlServer(tmp_path / "s", {"ping": _echo}).run())
    await asyncio.sleep(0.2)
    assert (tmp_path / "s").read_text() == "in the way"
    (tmp_path / "s").unlink()
    await until((tmp_path / "s").is_socket)
    assert await asyncio.to_thread(ask, tmp_path / "s", "ping")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
async def test_another_user_is_not_listened_to(tmp_path: Path) -> None:
    """Neither by the mode of the socket, nor where that was opened."""
    path = tmp_path / "s"
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)

    def attempt() -> str:
        try:
            ask(path, "ping")
        except ControlError as error:
            return str(error)
        return "heard"

    async with Serving(path):
        assert "Permission denied" in await asyncio.to_thread(as_nobody, attempt)
        path.chmod(0o666)
        assert "only root and the user of the daemon may ask" in await asyncio.to_thread(as_nobody, attempt)


def test_a_socket_that_ends_while_it_is_asked(tmp_path: Path) -> None:
    with listen(tmp_path / "s") as server:
        client = ControlClient(tmp_path / "s")
        accepted, _ = server.accept()
        accepted.shutdown(socket.SHUT_RDWR)
        accepted.close()
        with client, pytest.raises(NotRunning):
            client.ask("ping")


# For people


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.9, "0s"), (61, "1m01s"), (3600, "1h00m"), (100_000, "1d03h"), (7265.5, "2h01m")]
)
def test_durations_for_people(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_columns() -> None:
    assert table([("A", "B"), ("long", "x"), ("s", "")]) == ["A     B", "long  x", "s"]


def test_status_for_people_shows_what_is_wrong_and_nothing_a_terminal_would_act_on() -> None:
    moment = "2026-01-02T03:04:05+00:00"
    runner: dict[str, Any] = {
        "token_short": "abc",
        "name": "lab\x1b[2J",
        "executor": "shell",
        "state": "unhealthy",
        "reason": None,
    }
    runner |= {
        "unhealthy_until": moment,
        "jobs": 1,
        "limit": 2,
        "last_poll": {"at": moment, "status": 403, "result": "forbidden"},
    }
    job = {"id": 7, "project": "app", "runner": "abc", "stage": "step_script", "state": "running", "adopted": True}
    found = {
        "state": "graceful-shutdown",
        "uptime_s": 90,
        "pid": 1,
        "version": "1",
        "config": {"path": "/c", "loaded_at": moment, "last_error": "/c:1:1: error"},
        "slots": {"used": 1, "total": 4},
        "drain": {"since": moment, "deadline": None},
        "runners": [runner],
        "jobs": [job | {"duration_s": 65, "timeout_s": 3600, "trace_bytes": 2048}],
        "unreported": ["abc-3"],
        "disk": {
            "low": True,
            "min_free_bytes": 2**30,
            "spaces": [{"path": "/state", "free_bytes": 2**20}],
            "kinds": [{"kind": "volumes", "used_bytes": 2**20, "budget_bytes": 2**21, "items": 1, "removed": 3}],
        },
    }
    lines = text(found, "pyrunner")
    assert lines[0] == "pyrunner: Service is running"
    whole = "\n".join(lines)
    for shown in (
        "graceful-shutdown since",
        "not in force: /c:1:1: error",
        "1 of 4 used, jobs: 1 (1 adopted)",
        "abc-3",
        "FULL, no jobs are requested (min_free 1.0 GiB)",
        "1.0 MiB free at /state",
        "volumes: 1.0 MiB of 2.0 MiB, 3 removed",
        r"lab\x1b[2J",
        "unhealthy until",
        "1 of 2",
        "forbidden (403)",
        "1m05s of 1h00m",
    ):
        assert shown in whole, whole
    assert "\x1b" not in whole
