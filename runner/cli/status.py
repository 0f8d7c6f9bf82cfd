"""``pyrunner status``: what the daemon is doing."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from runner.cli.context import fail
from runner.cli.daemon import EXIT_NOT_RUNNING, control_path
from runner.config.size import format_size
from runner.logs import printable
from runner.ops.control_client import ControlClient, ControlError, NotRunning

WATCH_S = 2.0
SYSTEMCTL_S = 10.0


@click.command("status")
@click.option("-c", "--config", help="Configuration file")
@click.option("--socket", help="Control socket of the daemon")
@click.option("-n", "--service", default="pyrunner", help="Name of the service, where there is no control socket")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
@click.option("--watch", is_flag=True, help="Show it again every two seconds")
def command(*, config: str | None, socket: str | None, service: str, as_json: bool, watch: bool) -> int:
    """Show what the daemon is doing: runners, jobs, slots, disk. Exit status 3 when none runs."""
    path = control_path(config, socket)
    while True:
        exit_status = _show(path, service, as_json=as_json, clear=watch)
        if not watch or exit_status:
            return exit_status
        time.sleep(WATCH_S)


def _show(path: Path, service: str, *, as_json: bool, clear: bool) -> int:
    try:
        with ControlClient(path) as daemon:
            found = daemon.ask("status")
    except NotRunning as error:
        return _not_running(service, str(error), as_json=as_json)
    except ControlError as error:
        fail(str(error))
    if clear:
        click.clear()
    if as_json:
        click.echo(json.dumps({key: value for key, value in found.items() if key != "ok"}, indent=2))
    else:
        click.echo("\n".join(text(found, service)))
    return 0


def _not_running(service: str, why: str, *, as_json: bool) -> int:
    """Nobody answers: the service manager may know of a daemon without a control socket."""
    is_active = _is_active(service)
    if as_json:
        click.echo(json.dumps({"state": "running" if is_active else "stopped", "error": why}))
    elif is_active:
        click.echo(f"{service}: Service is running\n{why}")
    else:
        click.echo(f"{service}: Service is not running ({why})")
    return 0 if is_active else EXIT_NOT_RUNNING


def _is_active(service: str) -> bool:
    program = shutil.which("systemctl")
    if program is None:
        return False
    try:
        answer = subprocess.run(
            [program, "is-active", "--quiet", service],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            timeout=SYSTEMCTL_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0


def text(found: Mapping[str, Any], service: str) -> list[str]:
    """The lines for people."""
    lines = [f"{service}: Service is running", *_head(found), *_disk(found["disk"]), ""]
    rows: list[tuple[str, ...]] = [("RUNNER", "NAME", "EXECUTOR", "STATE", "JOBS", "ASKED")]
    rows += [_runner(runner) for runner in found["runners"]]
    lines += table(rows) if found["runners"] else ["no runners are configured"]
    if found["jobs"]:
        jobs: list[tuple[str, ...]] = [("JOB", "PROJECT", "RUNNER", "STAGE", "TIME", "LOG", "")]
        lines += ["", *table([*jobs, *(_job(job) for job in found["jobs"])])]
    return [printable(line) for line in lines]


def _head(found: Mapping[str, Any]) -> list[str]:
    config, slots, drain = found["config"], found["slots"], found["drain"]
    state = str(found["state"])
    if drain is not None:
        state += f" since {_clock(drain['since'])}"
        state += f", until {_clock(drain['deadline'])}" if drain["deadline"] else ""
    lines = [
        f"State:   {state}, up {duration(found['uptime_s'])}, pid {found['pid']}, version {found['version']}",
        f"Config:  {config['path']}, loaded {_clock(config['loaded_at'])}",
    ]
    if config["last_error"]:
        lines.append(f"         the file as it is now is not in force: {config['last_error']}")
    adopted = sum(job["adopted"] for job in found["jobs"])
    behind = f" ({adopted} adopted)" if adopted else ""
    lines.append(f"Slots:   {slots['used']} of {slots['total']} used, jobs: {len(found['jobs'])}{behind}")
    if found["unreported"]:
        lines.append(f"Reports: results that wait for their server: {', '.join(found['unreported'])}")
    return lines


def _disk(disk: Mapping[str, Any]) -> list[str]:
    floor = disk["min_free_bytes"]
    if disk["low"]:
        state = f"FULL, no jobs are requested (min_free {format_size(floor)})"
    else:
        state = f"room for jobs (min_free {format_size(floor)})" if floor else "no floor of free space is set"
    lines = [f"Disk:    {state}"]
    lines += [f"         {format_size(space['free_bytes'])} free at {space['path']}" for space in disk["spaces"]]
    for kind in disk["kinds"]:
        used, budget = format_size(kind["used_bytes"]), format_size(kind["budget_bytes"])
        lines.append(f"         {kind['kind']}: {used} of {budget}, {kind['removed']} removed")
    return lines


def _runner(runner: Mapping[str, Any]) -> tuple[str, ...]:
    state = runner["state"]
    if runner["reason"]:
        state += f": {runner['reason']}"
    elif runner["unhealthy_until"]:
        state += f" until {_clock(runner['unhealthy_until'])}"
    jobs = f"{runner['jobs']} of {runner['limit']}" if runner["limit"] else str(runner["jobs"])
    poll = runner["last_poll"]
    asked = "never"
    if poll is not None:
        answer = str(poll["status"]) if poll["status"] > 0 else "no connection"
        asked = f"{_clock(poll['at'])} {poll['result']} ({answer})"
    return runner["token_short"], runner["name"], runner["executor"], state, jobs, asked


def _job(job: Mapping[str, Any]) -> tuple[str, ...]:
    time_text = duration(job["duration_s"])
    if job["timeout_s"]:
        time_text += f" of {duration(job['timeout_s'])}"
    stage = job["stage"] if job["state"] == "running" else job["state"]
    log = format_size(job["trace_bytes"])
    return str(job["id"]), job["project"], job["runner"], stage, time_text, log, "adopted" if job["adopted"] else ""


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def duration(seconds: float) -> str:
    """``12s``, ``3m05s``, ``2h07m``, ``3d04h``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def _clock(moment: str) -> str:
    found = datetime.fromisoformat(moment).astimezone()
    is_today = found.date() == datetime.now(tz=UTC).astimezone().date()
    return f"{found:%H:%M:%S}" if is_today else f"{found:%Y-%m-%d %H:%M:%S}"
