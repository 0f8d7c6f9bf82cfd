"""Daemons of the reference, replayed: signals, reloads, tokens, keys and what its operators read."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import signal
import socket
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.contract import golden
from tests.contract.differences import DAEMON_DIFFERS, DAEMON_NOT_REPLAYED, DaemonDifference
from tests.contract.test_golden_cli import said
from tests.fakes import git_server
from tests.fakes.coordinator import ENDED, FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import until

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
FAMILIES = ("signal-", "reload-", "rotation", "key-", "log-", "http-")
# What jobs run whose script the recording shows no longer.
SCRIPTS = {
    "signal-sighup-during-graceful": (["echo started; sleep 2"], []),
    "signal-sigquit-then-queue": (["echo started; sleep 2"], []),
    "signal-sigquit-twice": (["echo started; sleep 2"], []),
    "signal-sigterm-trap-exit": (["trap 'echo bye; exit 7' TERM; echo started; sleep 30 & wait"], []),
    "signal-sigterm-after-script": (["echo hi"], ["echo started; sleep 8; echo end"]),
    "key-output-limit": (["for i in $(seq 200); do echo $i: a line of the log; done"], []),
}
# Variables of jobs that the recording does not keep.
VARIABLES = {
    "key-custom-build-dir-*": {"GIT_CLONE_PATH": "$CI_BUILDS_DIR/x"},
    "key-environment": {"JOBVAR": "job"},
    "key-feature-flag-job": {"FF_TIMESTAMPS": "false"},
    "key-feature-flag-job-beats-environment": {"FF_TIMESTAMPS": "true"},
    "key-feature-flag-table-beats-job": {"FF_TIMESTAMPS": "true"},
    "key-feature-flag-bad-value": {"FF_TIMESTAMPS": "maybe"},
    "key-debug-trace-disabled": {"CI_DEBUG_TRACE": "true"},
}
# How long the server takes for artifacts, and for git.
SLOW = {"signal-sigterm-upload": 6, "signal-sigquit-upload": 2.5, "signal-sigterm-get-sources": 6}
TOKEN = """
[[runners]]
  name = "{name}"
  url = "{{URL}}"
  id = 7
  token = "glrt-{token}"
  token_obtained_at = {obtained}
  token_expires_at = {expires}
  executor = "shell"
"""
DEFAULT = (["echo started; sleep 5; echo end"], ["echo after"])
# pyrunner's own: SIGTERM as the reference has it, and its reason for an interrupted job.
OWN = 'graceful_shutdown_timeout = "0s"\ninterrupted_failure_reason = "runner_interrupted"\n'


def cases() -> list[Any]:
    found = []
    for name in golden.scenarios("cli"):
        if not name.startswith(FAMILIES) or "config_toml" not in golden.read("cli", name):
            continue
        late = next((why for pattern, why in DAEMON_NOT_REPLAYED.items() if fnmatch.fnmatch(name, pattern)), None)
        found.append(pytest.param(name, id=name, marks=[pytest.mark.skip(reason=late)] if late else []))
    return found


@dataclass
class Play:
    """One daemon, and what is done to it."""

    scenario: dict[str, Any]
    fake: FakeCoordinator
    daemon: Daemon
    places: dict[str, str]
    commit: str = ""
    pages: dict[str, tuple[int | None, str]] = field(default_factory=dict)

    def queue(self, job_id: int, about: dict[str, Any]) -> None:
        variables = {entry["key"]: entry["value"] for entry in about.get("variables", [])}
        payload = job_payload(
            job_id,
            [golden.fill(line, self.places) for line in about.get("script", [])],
            after_script=about.get("after_script"),
            variables={"GIT_STRATEGY": "fetch" if about.get("repo") else "none", **variables},
            artifacts=about.get("artifacts", []),
        )
        if "features" in about:
            payload["features"] |= about["features"]
        else:
            payload["features"]["failure_reasons"] = []
        if "job_info" in about:
            payload["job_info"] |= about["job_info"]
        if about.get("repo"):
            payload["git_info"] |= self.fake.git_info(self.commit)
        self.fake.add_job(payload)

    async def do(self, what: str, config: str | None) -> None:
        if what.startswith("queue job"):
            number, _, about = what.removeprefix("queue job ").partition(": ")
            self.queue(int(number), json.loads(about))
        elif what.startswith("send "):
            self.daemon.send(signal.Signals[what.removeprefix("send ")])
        elif what.startswith("server: 503"):
            self.fake.faults.add("PUT /api", "status", 999, status=503)
        elif what == "server: Job-Status canceling":
            self.fake.cancel(next(iter(self.fake.jobs.values())))
        elif what == "config.toml removed":
            self.daemon.config.unlink()
        elif what == "touch config.toml":
            os.utime(self.daemon.config)
        elif what.startswith("config.toml replaced"):
            new = self.daemon.config.with_name("new")
            new.write_text(re.sub(r"concurrent = \d+", "concurrent = 5", self.daemon.config.read_text()))
            new.replace(self.daemon.config)
        elif config is not None:
            self.write(config)
            if "one hour ago" in what:
                os.utime(self.daemon.config, (0, 1_700_000_000))

    def write(self, config: str) -> None:
        self.daemon.write_config(golden.without_costs(golden.fill(config, self.places)))

    async def seen(self, what: str) -> None:
        printed = re.fullmatch(r"job (\d+) printed '(.*)'", what)
        if printed:
            text = printed[2].replace("\\n", "\n").split("\n")[0]
            job = self.fake.jobs[int(printed[1])]
            await self.fake.until(lambda: f"{text}\n" in job.log or f"{text}" in job.log.split("$ ")[-1], 15)

    async def scrape(self, until: float, since: float) -> None:
        """Ask for the pages that the recording asked for in this stretch of time."""
        for name, page in sorted((self.scenario.get("scrapes") or {}).items(), key=lambda item: item[1]["t"]):
            if name in self.pages or not since <= page["t"] <= until:
                continue
            if re.search(r"\bafter .*\bjobs?\b", name):
                await self.fake.until(lambda: all(job.state in ENDED for job in self.fake.jobs.values()), 30)
            method, path = page["request"].split(" ", 1)
            try:
                async with (
                    aiohttp.ClientSession() as session,
                    session.request(method, f"http://127.0.0.1:{self.places['PORT']}{path}") as answer,
                ):
                    self.pages[name] = (answer.status, await answer.text())
            except aiohttp.ClientConnectionError:
                self.pages[name] = (None, "")


async def play(name: str, root: Path) -> tuple[Play, int | None]:
    """Do everything that was done, at the same distances; the exit status, None where it was still running."""
    scenario = golden.read("cli", name)
    server = scenario.get("server") or {}
    faults = [[fault["match"], fault["kind"], fault.get("count", 1), fault] for fault in server.get("faults") or []]
    fake = FakeCoordinator(
        root / "server",
        trace_interval=server.get("trace_interval"),
        long_poll_s=server.get("long_poll", 0),
        faults=faults,
        strict=False,
    )
    fake.holds_always = bool(server.get("long_poll"))
    fake.reset_expires = server.get("reset_expires")
    fake.git_delay_s = SLOW.get(name, 0) if name.endswith("sources") else 0
    if name.endswith("-upload"):
        fake.faults.add("POST .*/artifacts", "delay", 1, seconds=SLOW[name])
    async with fake:
        home = root / "runner"
        places = {"ROOT": str(home), "URL": fake.url, "HOST": fake.places["HOST"], "PORT": str(free_port())}
        places["COPORT"] = fake.url.rpartition(":")[2]
        commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
        config = first_config(name, scenario)
        environment = golden.fill(scenario.get("env") or {}, places)
        daemon = Daemon(home, golden.without_costs(golden.fill(config, places)), environment=environment, own_keys=OWN)
        done = Play(scenario, fake, daemon, places, commit)
        queued = {int(number) for number in re.findall(r"queue job (\d+)", json.dumps(scenario["steps"]))}
        for job in scenario["jobs"]:
            if job["id"] not in queued:
                done.queue(job["id"], about_job(name, job))
        flags = [golden.fill(word, places) for word in scenario["argv"][scenario["argv"].index("run") + 3 :] if word != "-d"]
        daemon.start(*[flag for flag in flags if not flag.startswith(str(home))])
        try:
            code = await walk(done)
        finally:
            if daemon.running:
                await daemon.stop()
        return done, code


async def walk(done: Play) -> int | None:
    await until(lambda: done.fake.requests or not done.daemon.running)
    before, ended = 0.0, None
    for step in [*done.scenario["steps"], {"t": done.scenario["seconds"]}]:
        what = step.get("do") or ""
        if "seen" in step and "ended with" in step["seen"]:
            ended = await done.daemon.wait(30)
            break
        if "seen" in step:
            await done.scrape(step["t"] - 0.01, before)
            if "afterwards" in step["seen"]:
                await asyncio.sleep(step["t"] - before)
            await done.seen(step["seen"])
        else:
            await asyncio.sleep(max(step["t"] - before, 0))
            await done.scrape(step["t"], before)
            if what.startswith("end of"):
                break
            await done.do(what, step.get("config_toml"))
        before = step["t"]
    if done.daemon.running:
        for job in done.scenario["jobs"]:
            if job["state"] in ENDED:
                await asyncio.wait_for(done.fake.jobs[job["id"]].ended.wait(), 20)
    if ended is None and done.scenario["exit_code"] is not None and done.scenario["exit_code"] >= 0:
        ended = await done.daemon.wait(30)
    return ended


def first_config(name: str, scenario: dict[str, Any]) -> str:
    """The file at the start; of those about tokens the recording tells only how old they were."""
    if not name.startswith("rotation"):
        return str(scenario["config_toml"])
    lives = {"rotation": [(-3, 9)], "rotation-two": [(-2, 8), (-4, 4)]}.get(name, [(-100, -1)])
    if name == "rotation-disabled":
        lives = [(-9, 3)]
    entries = []
    for letter, (obtained, expires) in zip("ab", lives, strict=False):
        token = letter * 20
        given = "$TOK" if scenario["env"] else f"glrt-{token}"
        text = TOKEN.format(name=letter, token=token, obtained=stamp(obtained), expires=stamp(expires))
        entries.append(text.replace("{{URL}}", "{URL}").replace(f"glrt-{token}", given))
    flags = "  [runners.feature_flags]\n    FF_DISABLE_AUTOMATIC_TOKEN_ROTATION = true\n" if name == "rotation-disabled" else ""
    head = 'concurrent = 2\ncheck_interval = 1 # kept\nlisten_address = "127.0.0.1:{PORT}"\n'
    return head + "".join(entries) + flags


def stamp(seconds: float) -> str:
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def about_job(name: str, job: dict[str, Any]) -> dict[str, Any]:
    shown = re.findall(r"\x1b\[32;1m\$ (.*?)\x1b", job["trace_end"])
    script, after = SCRIPTS.get(name) or ((shown, []) if shown else DEFAULT)
    about: dict[str, Any] = {"script": script, "after_script": after or None}
    found = next((values for pattern, values in VARIABLES.items() if fnmatch.fnmatch(name, pattern)), {})
    about["variables"] = [{"key": key, "value": value} for key, value in found.items()]
    if name.endswith("-upload"):
        about["artifacts"] = [{"paths": ["f"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}]
    if name == "signal-sigterm-runner-interrupted":
        about["features"] = {"failure_reasons": ["runner_interrupted", "unknown_failure"]}
    return about


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", cases())
async def test_a_daemon_does_what_the_reference_does(name: str, tmp_path: Path) -> None:
    difference = next((one for pattern, one in DAEMON_DIFFERS.items() if fnmatch.fnmatch(name, pattern)), DaemonDifference(""))
    done, code = await play(name, tmp_path)
    scenario = done.scenario
    if scenario["exit_code"] is not None and scenario["exit_code"] >= 0:
        assert code == (scenario["exit_code"] if difference.exit_code is None else difference.exit_code), done.daemon.log
    assert "Traceback" not in done.daemon.log
    if difference.jobs:
        for job in scenario["jobs"]:
            ours = done.fake.jobs[job["id"]]
            expected = (job["state"], job["failure_reason"], job["exit_code"])
            assert (ours.state, ours.failure_reason, ours.exit_code) == expected, (ours.log, done.daemon.log)
    if name.startswith("key-") and difference.log:
        check_logs(done)
    if name.startswith("rotation"):
        check_tokens(done)
    if name.startswith("reload-") and difference.log:
        assert done.daemon.log.count("Configuration loaded") == text_of(scenario).count("Configuration loaded"), done.daemon.log
    if name.startswith("log-") and not name.endswith("-debug") and difference.log:
        check_messages(done)
    check_pages(done, difference)


def text_of(scenario: dict[str, Any]) -> str:
    return "\n".join(line for _, line in scenario["daemon_log"])


STAMP = re.compile(r"(?m)^\d{4}-\d\d-\d\dT[\d:.]+Z \d\d[OE].?")


def check_logs(done: Play) -> None:
    """The end of each job's log, as far as the recording shows it."""
    for job in done.scenario["jobs"]:
        ours = done.fake.jobs[job["id"]]
        if ours.state not in ENDED:
            continue
        is_stamped = bool(STAMP.search(job["trace_end"]))
        assert bool(STAMP.match(ours.log)) == is_stamped, ours.log
        expected = golden.normalised(STAMP.sub("", job["trace_end"]), {})[1:]
        got = golden.normalised(STAMP.sub("", ours.log), done.places)
        got = got[max(len(got) - len(expected), 0) :]
        got = [line.replace("{ROOT}/builds/aaaaaaaaa/0/group", "{ROOT}/builds/aaaaaaaaa/0/git/group") for line in got]
        assert golden.same(expected, got), golden.difference(expected, got)


def check_tokens(done: Play) -> None:
    """The resets that were asked for, with which token, and what the file says afterwards."""
    path = "/api/v4/runners/reset_authentication_token"
    asked = [request.body["token"] for request in done.fake.requests if request.path == path]
    recorded = [request["body"]["token"] for request in done.scenario["requests"] if request["path"] == path]
    text = done.daemon.config.read_text()
    assert "# kept" in text
    if done.scenario.get("server", {}).get("faults"):
        assert set(asked) == set(recorded)
        assert len(asked) <= 5, "a refused reset is put off"
        return
    assert asked == recorded, done.daemon.log
    entries = tomllib.loads(text)["runners"]
    expected = [step for step in done.scenario["steps"] if "afterwards" in step.get("seen", "")][-1]["config_toml"]
    recorded_entries = tomllib.loads(golden.fill(expected, done.places))["runners"]
    assert [entry["token"] for entry in entries] == [entry["token"] for entry in recorded_entries]
    if asked:
        assert said(entries[0])["token_obtained_at"] == "a time"
        years = [entry["token_expires_at"].year for entry in entries]
        assert years == [entry["token_expires_at"].year for entry in recorded_entries]
        polled = {request.body["token"] for request in done.fake.requests[-2:] if request.path.endswith("/request")}
        assert polled <= {entry["token"] for entry in entries}, "the next poll uses the new token"


def messages(log: str) -> set[str]:
    """Fixed texts of a log, whatever its form."""
    found = set()
    for line in log.splitlines():
        if line.startswith("{"):
            text = str(json.loads(line).get("msg", ""))
        elif match := re.search(r'\bmsg="((?:[^"\\]|\\.)*)"', line):
            text = match[1]
        else:
            line = re.sub(r"^(\x1b\[[0-9;]*m)*((WARNING|ERROR|FATAL|PANIC): )?", "", line)
            text = re.split(r" *\x1b\[0;m|  +", line)[0]
        text = re.sub(r"\x1b\[[0-9;]*m", "", text.replace('\\"', '"')).strip()
        text = re.sub(r"(/\S+|\{ROOT\}\S*)", "PATH", text)
        found.add(text)
    return found


# What only the reference has: its other executors and helpers, advice on long polling, warnings of jobs said twice.
THEIRS = re.compile(
    "docker|machine|Usage logger|session|executor providers|[Ll]ong polling|Issues found|bottleneck|This can cause|Recommended"
    "|request_concurrency|FF_USE_ADAPTIVE|See documentation|This message|^$|plugins|metrics|[Cc]onfig|[Cc]leanup|PATH"
    "|GIT_STRATEGY|canceled externally"
)


def check_messages(done: Play) -> None:
    recorded = {text for text in messages(text_of(done.scenario)) if not THEIRS.search(text)}
    missing = recorded - messages(done.daemon.log)
    assert not missing, (missing, done.daemon.log)


def check_pages(done: Play, difference: DaemonDifference) -> None:
    for name, page in (done.scenario.get("scrapes") or {}).items():
        if "pprof" in name or name not in done.pages or any(fnmatch.fnmatch(name, one) for one in difference.pages):
            continue
        status, body = done.pages[name]
        assert status == page.get("status"), (name, body)
        if status == 200 and "/metrics" in page["request"] and page["request"].startswith("GET"):
            missing = sorted(" ".join(one) for one in families(page["body"]) - families(body))
            assert missing == [], name
            if "queuing" in done.scenario["name"]:
                assert counts_of_late_jobs(body) == counts_of_late_jobs(page["body"]), name
        elif status == 200 and not page["request"].startswith("HEAD"):
            assert shape(body, done.places) == shape(page["body"], {}), name


def shape(body: str, places: dict[str, str]) -> str:
    for name, text in places.items():
        body = body.replace(text, "{" + name + "}")
    return re.sub(r"url=\S+ ", "url=URL ", re.sub(r"duration=\S+", "duration=D", body))


# The version is of Go there and of Python here.
NOT_OURS = re.compile("version_info|autoscaling|job_router|usage_log|cache_s3?|_(bucket|sum|count|created)$")


def families(body: str) -> set[tuple[str, ...]]:
    """Names of series with the names of their labels."""
    found = set()
    for line in body.splitlines():
        match = re.match(r"(gitlab_runner_[a-z_]+)(?:\{([^}]*)\})?", line)
        if match and not NOT_OURS.search(match[1]):
            found.add((match[1], *sorted(re.findall(r"(\w+)=", match[2] or ""))))
    return found


def counts_of_late_jobs(body: str) -> list[float]:
    """Jobs that waited for longer than they may, by runner."""
    family = "gitlab_runner_acceptable_job_queuing_duration_exceeded_total{"
    return [float(line.rpartition(" ")[2]) for line in body.splitlines() if line.startswith(family)]


def test_the_list_of_differences_names_recordings_only() -> None:
    known = golden.scenarios("cli")
    for pattern in (*DAEMON_DIFFERS, *DAEMON_NOT_REPLAYED):
        assert any(fnmatch.fnmatch(name, pattern) for name in known), pattern
