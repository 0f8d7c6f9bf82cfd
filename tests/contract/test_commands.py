"""Commands on bad files, by bad servers and into pipes: said in a line, and nothing half-done."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.daemon import COMMAND
from tests.fakes.runner_api import RunnerApi

TOKEN = "glrt-tttttttttttttttttttt"
REGISTER = ("register", "--non-interactive", "--executor", "shell", "--name", "box")
JSON = {"Content-Type": "application/json"}
NOWHERE = "http://[::1"


@pytest.fixture
async def api() -> AsyncIterator[RunnerApi]:
    async with RunnerApi({}) as found:
        yield found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "conf" / "config.toml"


def entry(name: str, url: str, token: str, more: str = "") -> str:
    return f'[[runners]]\n  name = "{name}"\n  url = "{url}"\n  token = "{token}"\n  executor = "shell"\n{more}'


def write(config: Path, *entries: str) -> None:
    config.parent.mkdir(mode=0o700, exist_ok=True)
    config.write_text("concurrent = 9\n" + "".join(entries))


async def call(config: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(config.parent.parent), "CONFIG_FILE": str(config)}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([COMMAND, *words], env=environment, input=given, capture_output=True, text=True, check=False)

    return await asyncio.to_thread(run)


def last_line(found: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in found.stderr, found.stderr
    return found.stderr.splitlines()[-1].strip()


async def test_a_url_that_is_none_is_said_and_the_other_runners_are_asked(config: Path, api: RunnerApi) -> None:
    write(config, entry("bad", NOWHERE, TOKEN + "1"), entry("good", api.url, TOKEN + "2"))
    verified = await call(config, "verify")
    assert "ERROR: Verifying runner... client error" in verified.stderr
    assert "'http://[::1' is not a URL: Invalid IPv6 URL" in last_line(verified)
    assert "is valid  runner=ttttttttt runner_name=good" in verified.stdout
    assert "bad-url" in (await call(config, "check")).stdout
    gone = await call(config, "unregister", "--all-runners")
    assert "Traceback" not in gone.stderr
    assert [runner["name"] for runner in tomllib.loads(config.read_text())["runners"]] == ["bad"]


async def test_registering_at_a_url_that_is_none(config: Path) -> None:
    for url in (NOWHERE, "http://127.0.0.1:99999"):
        found = await call(config, *REGISTER, "--url", url, "--token", TOKEN)
        assert found.returncode == 1
        assert "Failed to verify the runner." in last_line(found)
        assert f"{url!r} is not a URL" in found.stderr


async def test_a_server_that_is_not_there_is_named_by_its_address(config: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        found = await call(config, *REGISTER, "--url", f"http://127.0.0.1:{port}", "--token", TOKEN)
    assert f"status=cannot connect to 127.0.0.1:{port}: Connection refused\n" in found.stderr
    assert found.returncode == 1


async def test_tls_at_a_port_without(config: Path, api: RunnerApi) -> None:
    found = await call(config, *REGISTER, "--url", api.url.replace("http:", "https:"), "--token", TOKEN)
    assert f"cannot connect to {api.host}: no TLS there: wrong version number" in found.stderr


async def test_a_page_for_people_is_no_answer(config: Path, api: RunnerApi) -> None:
    page = {"status": 200, "body": "<html>Sign in</html>", "headers": {"Content-Type": "text/html; charset=utf-8"}}
    api.faults.add("POST /api/v4/runners/verify", "status", 9, **page)
    found = await call(config, *REGISTER, "--url", api.url, "--token", TOKEN)
    assert "status=the answer is not JSON but 'text/html; charset=utf-8'\n" in found.stderr
    assert found.returncode == 1
    write(config, entry("box", api.url, TOKEN))
    verified = await call(config, "verify", "--strict")
    assert (verified.returncode, verified.stdout) == (2, "")


async def test_what_a_server_says_does_not_reach_the_terminal_as_it_is(config: Path, api: RunnerApi) -> None:
    words = "no\x1b]0;title\x07\nERROR: all is lost"
    api.faults.add("POST /api/v4/runners/verify", "status", 1, status=403, body={"message": words}, headers=JSON)
    write(config, entry("box", api.url, TOKEN))
    found = await call(config, "verify")
    assert "\x1b" not in found.stderr
    assert r"(no\x1b]0;title\x07" in found.stderr
    assert "\n\tERROR: all is lost" in found.stderr
    write(config, entry(r"a\nb\u001b[2J", api.url, TOKEN))
    listed = await call(config, "list")
    assert listed.stdout.startswith(r"a\nb\x1b[2J ")
    assert len(listed.stdout.splitlines()) == 1


async def test_a_failed_call_is_named_with_status_and_address(config: Path, api: RunnerApi) -> None:
    write(config, entry("box", api.url, TOKEN))
    api.faults.add("DELETE /api/v4/runners/managers", "status", 1, status=401, body={"message": "who are you"}, headers=JSON)
    found = await call(config, "unregister", "--name", "box")
    assert f"status=DELETE {api.url}/api/v4/runners/managers: 401 Unauthorized (who are you)\n" in found.stderr


@pytest.mark.parametrize("words", [("unregister", "--all-runners"), ("unregister", "--name", "box"), ("verify", "--delete")])
async def test_nothing_is_removed_from_gitlab_that_a_file_would_keep_which_cannot_be_saved(
    words: tuple[str, ...], config: Path, api: RunnerApi
) -> None:
    write(config, entry("box", api.url, TOKEN))
    found = await call(config, words[0], "--config", "/dev/stdin", *words[1:], given=config.read_text())
    assert last_line(found) == "FATAL: the configuration could not be saved: /dev/stdin: not a regular file"
    assert not [call for call in api.requests if call["method"] == "DELETE"]


async def test_a_device_is_not_replaced_by_a_file(config: Path, api: RunnerApi) -> None:
    node = config.parent.parent / "device"
    try:
        os.mknod(node, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("devices are for root")
    found = await call(config, *REGISTER, "--url", api.url, "--token", TOKEN, "--config", str(node))
    assert last_line(found) == f"FATAL: the configuration could not be saved: {node}: not a regular file"
    assert node.is_char_device()
    assert api.requests == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("runners = [1]", "must contain exactly one [[runners]] entry"),
        ("[[runners]]\n  limit = 'many'\n", '"limit" must be an integer'),
        ("[[runners]]\n  [runners.go]\n    scope = 'planet'\n", "\"scope\" is 'planet'"),
    ],
)
async def test_a_template_that_makes_no_runner_is_refused_first(template: str, said: str, config: Path, api: RunnerApi) -> None:
    given = config.parent.parent / "template.toml"
    given.write_text(template)
    found = await call(config, *REGISTER, "--url", api.url, "--token", TOKEN, "--template-config", str(given))
    assert found.returncode == 1
    assert said in last_line(found)
    assert api.requests == []
    assert not config.exists()


async def test_a_template_may_spell_its_keys_in_any_case(config: Path, api: RunnerApi) -> None:
    given = config.parent.parent / "template.toml"
    given.write_text(
        f'[[runners]]\n  URL = "{api.url}"\n  Name = "no"\n  [runners.Docker]\n    Image = "alpine"\n    Volumes = ["/a:/a"]\n'
        '  [runners.cache]\n    type = "s3"\n    [runners.cache.S3]\n      bucketname = "b"\n'
    )
    words = ("register", "-n", "--executor", "docker", "--docker-volumes", "/b:/b", "--token", TOKEN)
    found = await call(config, *words, "--template-config", str(given), "--name", "box")
    assert found.returncode == 0, found.stderr
    made: dict[str, Any] = tomllib.loads(config.read_text())["runners"][0]
    assert (made["name"], made["url"]) == ("box", api.url)
    assert made["docker"] == {"image": "alpine", "volumes": ["/b:/b", "/cache"]}
    assert made["cache"] == {"Type": "s3", "s3": {"BucketName": "b"}}


async def test_what_is_odd_about_a_runner_is_said_when_it_is_registered(config: Path, api: RunnerApi) -> None:
    found = await call(config, *REGISTER, "--url", api.url, "--token", TOKEN, "--shell", "fish")
    assert found.returncode == 0
    assert 'WARNING: shell "fish" is not supported: every job of this runner fails (supported: bash, sh)' in found.stderr


async def test_a_slash_makes_no_other_server(config: Path, api: RunnerApi) -> None:
    write(config, entry("box", api.url, TOKEN))
    found = await call(config, *REGISTER, "--url", f"{api.url}/", "--token", TOKEN)
    assert found.returncode == 1
    assert "a runner with this token is configured already" in last_line(found)
    assert (await call(config, *REGISTER, "--url", f"{api.url}/", "--token", TOKEN, "--replace")).returncode == 0
    assert len(tomllib.loads(config.read_text())["runners"]) == 1


async def test_who_reads_less_than_is_printed_gets_no_traceback(config: Path) -> None:
    write(config, *(entry(f"box {number}", "http://127.0.0.1:9", f"{TOKEN}{number}") for number in range(2000)))
    environment = {"PATH": os.environ["PATH"], "HOME": str(config.parent), "CONFIG_FILE": str(config)}
    process = subprocess.Popen([COMMAND, "list"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, errors = await asyncio.to_thread(process.communicate, timeout=60)
    assert b"Traceback" not in errors
    assert b"BrokenPipe" not in errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--log-level", "loud", "run"), 'failed to parse log level: not a valid level: "loud"'),
        (("--log-format", "xml", "run"), 'unknown log format "xml", expected one of: runner text json'),
        (("run", "--user", "no-such-account"), "the job user 'no-such-account' does not exist on this host"),
    ],
)
async def test_a_daemon_that_cannot_be_as_it_is_asked_for_does_not_start(words: tuple[str, ...], said: str, config: Path) -> None:
    found = await call(config, *words)
    assert (found.returncode, last_line(found)) == (1, f"FATAL: {said}")
