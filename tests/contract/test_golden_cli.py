"""Commands of the reference, replayed with the installed command: exit code, requests, files."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from runner.config.duration import parse_duration
from tests.contract import golden
from tests.contract.differences import CLI_DIFFERS, CLI_NOT_YET, CliDifference
from tests.fakes.daemon import COMMAND
from tests.fakes.runner_api import RunnerApi

COMMANDS = ("register", "verify", "unregister", "list", "reset-token", "version", "unknown")
pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
YEAR_ONE = "0001-01-01"


def cases() -> list[object]:
    found: list[object] = []
    for name in golden.scenarios("cli"):
        if not name.startswith(COMMANDS):
            continue
        scenario = golden.read("cli", name)
        if "argv" not in scenario or "exit_code" not in scenario or "config_toml" in scenario:
            continue
        marks = []
        late = next((reason for pattern, reason in CLI_NOT_YET.items() if fnmatch.fnmatch(name, pattern)), None)
        if late:
            marks.append(pytest.mark.skip(reason=late))
        elif scenario.get("tty") or scenario.get("signals"):
            marks.append(pytest.mark.skip(reason="see test_terminal.py"))
        elif scenario.get("uid"):
            marks.append(pytest.mark.skip(reason="another account may not be able to read this interpreter"))
        found.append(pytest.param(name, id=name, marks=marks))
    return found


@pytest.mark.parametrize("name", cases())
async def test_command_does_what_the_reference_does(name: str, tmp_path: Path) -> None:
    scenario = golden.read("cli", name)
    difference = next((known for pattern, known in CLI_DIFFERS.items() if fnmatch.fnmatch(name, pattern)), None)
    difference = difference or CliDifference("")
    async with RunnerApi(scenario.get("server") or {}) as api:
        places = {"ROOT": str(tmp_path), "URL": api.url, "HOST": api.host, "HOSTNAME": os.uname().nodename}
        lay_out(scenario["files_before"], tmp_path, places)
        code, output = await run(scenario, tmp_path, places)
        requests = api.requests
    expected = scenario["exit_code"] if difference.exit_code is None else difference.exit_code
    assert code == expected, output
    assert "Traceback" not in output
    if difference.requests:
        assert [brief(request) for request in requests] == [
            brief(golden.fill(request, places)) for request in scenario["requests"]
        ], output
    if difference.files:
        compare_files(scenario, tmp_path, places, difference.more)


async def run(scenario: dict[str, Any], root: Path, places: dict[str, str]) -> tuple[int, str]:
    argv = [golden.fill(word, places) for word in scenario["argv"][1:]]
    environment = {"PATH": os.environ["PATH"], "HOME": str(root), **golden.fill(scenario["env"], places)}
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *argv,
        env=environment,
        cwd=root,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    typed = "".join(golden.fill(entry[1], places) for entry in scenario.get("stdin") or [] if entry[1])
    output, _ = await asyncio.wait_for(process.communicate(typed.encode()), 60)
    return process.returncode or 0, output.decode()


def lay_out(files: dict[str, Any], root: Path, places: dict[str, str]) -> None:
    for name, about in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(golden.fill(about.get("content", ""), places))
        path.chmod(int(about["mode"], 8))


def brief(request: dict[str, Any]) -> tuple[Any, ...]:
    """What must be the same of a request; what runners say of themselves differs."""
    body = request["body"]
    if isinstance(body, dict):
        body = {key: value for key, value in body.items() if key not in ("info", "system_id")}
    return request["method"], request["path"], request["status"], body


def compare_files(scenario: dict[str, Any], root: Path, places: dict[str, str], more: tuple[str, ...]) -> None:
    """Changed configurations hold the same, apart from the defaults that the reference writes out and ``more`` keys."""
    for name, about in scenario["files_after"].items():
        if not name.endswith(".toml"):
            continue
        path = root / name
        assert path.exists(), name
        expected = tomllib.loads(golden.fill(about["content"], places))
        got = tomllib.loads(path.read_text())
        runners = [{key: value for key, value in said(entry).items() if key not in more} for entry in got.get("runners", [])]
        assert runners == [said(entry) for entry in expected.get("runners", [])]
        assert path.stat().st_mode & 0o077 == 0 or int(about["mode"], 8) & 0o077


def said(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry says beyond defaults."""
    found: dict[str, Any] = {}
    for key, value in entry.items():
        if key in ("token_obtained_at", "token_expires_at"):
            if not str(value).startswith(YEAR_ONE) and value is not None:
                found[key] = "a time"
        elif isinstance(value, dict):
            inner = said(value)
            if inner:
                found[key] = inner
        elif key.endswith("_timeout") and isinstance(value, str):
            found[key] = parse_duration(value)
        elif value not in (0, False, "", [], None):
            found[key] = value
    return found
