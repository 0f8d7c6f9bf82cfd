"""The end of a job's log: what the job cost, by the figures of its own processes."""

from __future__ import annotations

import json
import re
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_artifacts import add_job, ended, entry
from tests.contract.test_caches import cache
from tests.contract.test_disk import bounded, metric
from tests.contract.test_interventions import free_port
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import until

Make = Callable[..., Daemon]
MIB = 1024 * 1024
# Uses processor and memory, and says how much of each, as the kernel tells it.
WORK = r"""
import resource, sys, time
block = bytearray(int(sys.argv[1]) * 2**20)
while time.process_time() < float(sys.argv[2]): sum(range(10000))
used = resource.getrusage(resource.RUSAGE_SELF)
with open(sys.argv[3], "w") as file: file.write(f"{used.ru_utime + used.ru_stime} {used.ru_maxrss * 1024}")
"""


def section(job: Job) -> list[str]:
    """Lines of the section; it stands right before the last line."""
    found = re.search(
        r"section_start:\d+:job_costs\[collapsed=true\]\r\x1b\[0K\x1b\[0K\x1b\[36;1mCosts of this job\x1b\[0;m\x1b\[0;m\n"
        r"((?:.*\n)*?)section_end:\d+:job_costs\r\x1b\[0K(.*)\n$",
        job.log,
    )
    assert found is not None, job.log
    assert found[2].startswith(("\x1b[32;1mJob succeeded", "\x1b[31;1mERROR: Job failed"))
    return [line.removeprefix("\x1b[0K").removesuffix("\x1b[0;m") for line in found[1].splitlines()]


def report(daemon: Daemon, job_id: int) -> Any:
    (path,) = (daemon.state / "kept").glob(f"lab-{job_id}-*/report.json")
    return json.loads(path.read_text())


async def kept(daemon: Daemon, job_id: int) -> Any:
    await until(lambda: list((daemon.state / "kept").glob(f"lab-{job_id}-*/report.json")))
    return report(daemon, job_id)


async def test_figures_are_those_of_the_processes(fake: FakeCoordinator, make_daemon: Make, tmp_path: Path) -> None:
    """Also of one that nobody waits for, of one that still runs at the end, and of one that another daemon saw end."""
    work = tmp_path / "work.py"
    work.write_text(WORK)
    daemon = make_daemon()
    bounded(daemon, 'records = "10MiB"')
    said = [tmp_path / name for name in ("first", "orphan", "last")]
    go = tmp_path / "go"
    job = add_job(
        fake,
        1,
        [
            f"python3 {work} 200 1.5 {said[0]}",
            f"(setsid python3 {work} 10 1.0 {said[1]} >/dev/null 2>&1 &) ; until test -s {said[1]}; do sleep 0.05; done",
            f"until test -e {go}; do sleep 0.05; done",
            f"python3 {work} 10 0.5 {said[2]}",
        ],
    )
    daemon.start()
    await until(said[1].exists, 60)
    daemon.kill()
    go.touch()
    daemon.start()
    await ended(job, 60)
    figures = [path.read_text().split() for path in said]
    cpu_s, peak = sum(float(cpu) for cpu, _ in figures), max(int(size) for _, size in figures)
    costs = (await kept(daemon, 1))["costs"]
    total_s = costs["cpu_user_s"] + costs["cpu_system_s"]
    around_s = 0.6  # two shells, dozens of sleeps
    assert cpu_s * 0.95 <= total_s <= cpu_s * 1.05 + around_s
    assert peak * 0.95 <= costs["max_rss_bytes"] <= peak * 1.05
    lines = section(job)
    assert re.fullmatch(r"CPU:     [\d.]+ s user, [\d.]+ s system", lines[1])
    assert lines[2] == f"Memory:  {costs['max_rss_bytes'] / MIB:.1f} MiB in the largest process"


@pytest.mark.parametrize(("memory_mib", "cpu_s"), [(10, 4.0), (700, 2.0)], ids=["processor", "memory"])
async def test_figures_are_those_of_time(
    memory_mib: int, cpu_s: float, fake: FakeCoordinator, make_daemon: Make, tmp_path: Path
) -> None:
    """Within 5 % of what ``time -v`` says of the one program that the script runs."""
    assert shutil.which("/usr/bin/time") is not None, "time is missing: apt-get install time"
    work = tmp_path / "work.py"
    work.write_text(WORK)
    daemon = make_daemon()
    bounded(daemon, 'records = "10MiB"')
    daemon.start()
    said = tmp_path / "said"
    await ended(add_job(fake, 1, [f"/usr/bin/time -v -o {said} python3 {work} {memory_mib} {cpu_s} /dev/null"]), 60)
    lines = dict(line.strip().rsplit(": ", 1) for line in said.read_text().splitlines())
    used_s = float(lines["User time (seconds)"]) + float(lines["System time (seconds)"])
    costs = (await kept(daemon, 1))["costs"]
    assert used_s >= cpu_s * 0.95, "it says hundredths"
    assert costs["cpu_user_s"] + costs["cpu_system_s"] == pytest.approx(used_s, rel=0.05)
    assert costs["max_rss_bytes"] == pytest.approx(int(lines["Maximum resident set size (kbytes)"]) * 1024, rel=0.05)
    assert costs["max_rss_bytes"] > memory_mib * MIB


async def test_stages_bytes_and_caches_are_told(fake: FakeCoordinator, make_daemon: Make) -> None:
    port = free_port()
    daemon = make_daemon(before=f'listen_address = "127.0.0.1:{port}"\n')
    bounded(daemon, 'records = "10MiB"')
    daemon.start()
    script = ["mkdir -p c; echo 1 > c/f; head -c 300000 /dev/urandom > out", "exit 3"]
    cached = [cache(when="always"), cache("other", "d/", policy="pull")]
    first = await ended(add_job(fake, 1, script, cache=cached, artifacts=[entry("out")]))
    second = await ended(add_job(fake, 2, script, cache=cached))
    assert first.state == second.state == "failed"
    stages = re.findall(r"([a-z_]+) [\d.]+ s", section(first)[0])
    assert stages == [
        "prepare_executor",
        "prepare_script",
        "get_sources",
        "restore_cache",
        "step_script",
        "archive_cache_on_failure",
        "upload_artifacts_on_failure",
        "cleanup_file_variables",
    ]
    assert re.fullmatch(r"Moved:   29\d\.\d KiB up, 0 B down", section(first)[3])
    assert section(first)[4] == "Caches:  0 found, 2 missed"
    assert section(second)[4] == "Caches:  1 found, 1 missed"
    found = await kept(daemon, 1)
    assert (found["state"], found["failure_reason"], found["exit_code"]) == ("failed", "script_failure", 3)
    assert [stage["name"] for stage in found["costs"]["stages"]] == stages
    assert found["costs"]["up_bytes"] > 300000
    directory = next((daemon.state / "kept").glob("lab-1-*"))
    assert sorted(path.name for path in directory.iterdir()) == ["report.json", "trace"]
    assert (directory / "trace").read_bytes() == bytes(first.trace)
    assert first.token not in (directory / "report.json").read_text()
    await until(lambda: metric(port, "pyrunner_job_bytes_total") >= 300000)
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    assert re.search(r'pyrunner_job_caches_total\{result="hit",.* 1\.0', page)
    assert re.search(r'pyrunner_job_stage_seconds_count\{runner="lab",stage="step_script",.* 2\.0', page)
    assert re.search(r"pyrunner_job_peak_memory_bytes_count\{.* 2\.0", page)
    assert re.search(r'pyrunner_job_cpu_seconds_total\{mode="user",', page)


async def test_the_section_can_be_left_out(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra="  [runners.pyrunner]\n    job_costs = false\n")
    daemon.start()
    job = await ended(fake.add_job(job_payload(1, ["echo hello"])))
    assert "job_costs" not in job.log
    assert "Costs of this job" not in job.log
    await until(lambda: not list((daemon.state / "jobs").iterdir()))
    assert not (daemon.state / "kept").exists(), "no budget, no records"


async def test_a_server_without_sections_gets_plain_lines(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.start()
    job = await ended(fake.add_job(job_payload(1, ["echo hello"], features={"trace_sections": False})))
    assert "job_costs" not in job.log
    assert "Time:    " in job.log
