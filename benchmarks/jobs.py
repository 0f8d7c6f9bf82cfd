"""Time of trivial shell jobs, and jobs a minute at concurrency 20: ``python -m benchmarks.jobs [COUNT]``.

The coordinator runs in this process; its share of the machine is part of the figures.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.contract.conftest import CONFIG
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon


def cpu_s(pid: int) -> float:
    """Processor time of a process and of its children that have ended, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(number) for number in fields[11:15]) / 100


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


async def latency(root: Path, count: int) -> None:
    """One job after the other."""
    async with FakeCoordinator(root / "server", trace_interval=3) as fake:
        daemon = Daemon(root / "runner", CONFIG.format(url=fake.url, root=root).replace("concurrent = 4", "concurrent = 1"))
        daemon.start()
        times, firsts = [], []
        await asyncio.wait_for(fake.polled.wait(), 10)
        idle = resident_mib(daemon.pid)
        before = cpu_s(daemon.pid)
        for number in range(1, count + 1):
            job = fake.add_job(job_payload(number, ["echo hi"], variables={"FF_TIMESTAMPS": "true"}))
            await asyncio.wait_for(job.ended.wait(), 30)
            times.append((job.ended_at - job.picked_at) * 1000)
            firsts.append((job.first_byte_at - job.picked_at) * 1000)
        spent = (cpu_s(daemon.pid) - before) / count * 1000
        print(f"trivial shell job, picked -> finished: median {statistics.median(times):.1f} ms, best {min(times):.1f} ms")
        print(f"first byte of log at the server: median {statistics.median(firsts):.1f} ms")
        print(f"processor time of the daemon: {spent:.1f} ms a job; resident memory when idle: {idle:.1f} MiB")
        await daemon.stop()


async def throughput(root: Path, count: int) -> None:
    """Many jobs at once."""
    async with FakeCoordinator(root / "server", trace_interval=3) as fake:
        config = CONFIG.format(url=fake.url, root=root).replace("concurrent = 4", "concurrent = 20")
        daemon = Daemon(root / "runner", config + "  request_concurrency = 20\n")
        jobs = [fake.add_job(job_payload(number, ["echo hi"])) for number in range(1, count + 1)]
        daemon.start()
        await asyncio.wait_for(fake.polled.wait(), 10)
        began = time.monotonic()
        for job in jobs:
            await asyncio.wait_for(job.ended.wait(), 120)
        print(f"jobs a minute at concurrency 20: {count / (time.monotonic() - began) * 60:.0f}")
        await daemon.stop()


def main() -> None:
    """Run all."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for work in (latency, throughput):
        root = Path(tempfile.mkdtemp(prefix="benchmark-"))
        try:
            asyncio.run(work(root, count))
        finally:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
