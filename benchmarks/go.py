"""Go builds with a shared store: the first one, and those that follow: ``python -m benchmarks.go [RUNS]``.

Builds and tests ``examples/go-service`` as its pipeline does, in jobs of a daemon, with every module from the proxy the first
time. Prints for each build the seconds from the moment at which the server handed the job out to its end, and the processor time
of its script; then how much faster the following ones are. Nothing is restored or saved: the log has no such section.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from tests.contract.conftest import CONFIG
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon

SERVICE = Path(__file__).resolve().parents[1] / "examples" / "go-service"
SCRIPT = ["go vet ./...", "go test ./...", "go build -o greeter .", "times"]
_TIMES = re.compile(r"(\d+)m([\d.]+)s (\d+)m([\d.]+)s")


async def build(fake: FakeCoordinator, job_id: int, commit: str) -> Job:
    """One job; it has to succeed."""
    payload = job_payload(job_id, SCRIPT, variables={"GIT_STRATEGY": "fetch"})
    payload["git_info"] |= fake.git_info(commit)
    job = fake.add_job(payload)
    await job.ended.wait()
    if job.state != "success" or "cache" in re.findall(r"section_start:\d+:\w*(cache)", job.log):
        sys.exit(job.log)
    return job


def cpu_s(job: Job) -> float:
    """User and system time of what the script started."""
    minutes, seconds, more, rest = (float(part) for part in _TIMES.findall(job.log)[-1])
    return 60 * (minutes + more) + seconds + rest


async def measure(root: Path, runs: int) -> None:
    """The first build, then so many others."""
    async with FakeCoordinator(root / "server", trace_interval=3) as fake:
        files = {path.name: path.read_text() for path in SERVICE.iterdir() if path.is_file()}
        commit = git_server.make_repository(fake.repositories, "app", files)
        path = f"{Path(shutil.which('go') or 'go').parent}:/usr/local/bin:/usr/bin:/bin"
        table = f'  environment = ["PATH={path}"]\n\n  [runners.go]\n'
        daemon = Daemon(root / "runner", CONFIG.format(url=fake.url, root=root / "runner") + table)
        daemon.start()
        await asyncio.wait_for(fake.polled.wait(), 30)
        jobs = [await build(fake, number, commit) for number in range(1, runs + 2)]
        for name, job in zip(["first", *["again"] * runs], jobs, strict=True):
            line = next(line for line in job.log.splitlines() if "Go cache: " in line).partition("Go cache: ")[2]
            print(f"{name}: {job.ended_at - job.picked_at:6.2f} s, {cpu_s(job):6.2f} s of CPU ({line.partition(', scope')[0]})")
        first, again = jobs[0], jobs[1:]
        took = statistics.median(job.ended_at - job.picked_at for job in again)
        spent = statistics.median(cpu_s(job) for job in again)
        print(f"again, median: {took:.2f} s, {(first.ended_at - first.picked_at) / took:.1f} x faster")
        print(f"processor time: {cpu_s(first) / spent:.1f} x less")
        await daemon.stop()


def main() -> None:
    """Run it."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    root = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        asyncio.run(measure(root, runs))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
