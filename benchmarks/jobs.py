"""Shell jobs: time of trivial and of full ones, jobs a minute, a long log, memory, cancel: ``python -m benchmarks.jobs [COUNT]``.

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

from benchmarks.full_job import full_job, make_repository
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


async def full_jobs(root: Path, count: int) -> None:
    """Jobs with everything, one after the other; the first one finds no cache."""
    async with FakeCoordinator(root / "server", trace_interval=3) as fake:
        commit = make_repository(fake)
        daemon = Daemon(root / "runner", CONFIG.format(url=fake.url, root=root))
        daemon.start()
        times = []
        before = 0.0
        for number in range(1, max(count // 4, 3) + 2):
            job = fake.add_job(full_job(fake, commit, number))
            await asyncio.wait_for(job.ended.wait(), 60)
            assert job.state == "success", job.log
            if number > 1:
                times.append((job.ended_at - job.picked_at) * 1000)
            else:
                before = cpu_s(daemon.pid)
        spent = (cpu_s(daemon.pid) - before) / len(times) * 1000
        print(f"full shell job: median {statistics.median(times):.0f} ms, best {min(times):.0f} ms; daemon {spent:.0f} ms of CPU")
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


async def long_log(root: Path, count: int) -> None:
    """64 MiB in lines of 64 bytes with timestamps, from the first byte to the accepted end."""
    del count
    lines = (64 << 20) // 64
    script = f'awk \'BEGIN {{ for (i = 0; i < {lines}; i++) printf "%08d %s\\n", i, "{"y" * 54}" }}\''
    for masks in (0, 20):
        async with FakeCoordinator(root / f"server-{masks}", trace_interval=3) as fake:
            config = CONFIG.format(url=fake.url, root=root) + "  output_limit = 262144\n"
            daemon = Daemon(root / f"runner-{masks}", config)
            daemon.start()
            await asyncio.wait_for(fake.polled.wait(), 10)
            payload = job_payload(1, [script], variables={"FF_TIMESTAMPS": "true"})
            payload["variables"] += [{"key": f"M{n}", "value": f"secret-value-{n:02d}", "masked": True} for n in range(masks)]
            before = cpu_s(daemon.pid)
            job = fake.add_job(payload)
            await asyncio.wait_for(job.ended.wait(), 120)
            assert job.log_is_whole()
            took, spent = job.ended_at - job.picked_at, cpu_s(daemon.pid) - before
            size = len(job.trace) / 2**20
            print(f"log of 64 MiB ({size:.0f} MiB with times), {masks} masks: {took:.2f} s, daemon {spent:.2f} s of CPU")
            await daemon.stop()


async def memory(root: Path, count: int) -> None:
    """Ten jobs that sleep: what the daemon and its supervisors hold, shared pages counted in part."""
    del count
    async with FakeCoordinator(root / "server", trace_interval=3) as fake:
        config = CONFIG.format(url=fake.url, root=root).replace("concurrent = 4", "concurrent = 10")
        daemon = Daemon(root / "runner", config + "  request_concurrency = 10\n")
        daemon.start()
        jobs = [fake.add_job(job_payload(number, ["echo up; sleep 3"])) for number in range(1, 11)]
        await fake.until(lambda: all(job.trace for job in jobs))
        await asyncio.sleep(1)
        found = [pid for pid in below(daemon.pid) if b"python" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        # Supervisors live in sessions of their own, below the warm parent.
        print(f"10 running shell jobs: {sum(map(proportional_mib, found)):.1f} MiB in {len(found)} processes of the runner")
        for job in jobs:
            await asyncio.wait_for(job.ended.wait(), 30)
        await daemon.stop()


async def quiet_cancel(root: Path, count: int) -> None:
    """From the click on cancel to the end, for a job that prints nothing."""
    del count
    for interval in (None, 1):
        async with FakeCoordinator(root / f"server-{interval}", trace_interval=interval) as fake:
            daemon = Daemon(root / f"runner-{interval}", CONFIG.format(url=fake.url, root=root))
            daemon.start()
            job = fake.add_job(job_payload(1, ["sleep 120"]))
            await fake.until(lambda job=job: b"sleep" in job.trace)
            began = time.monotonic()
            fake.cancel(job)
            await asyncio.wait_for(job.ended.wait(), 60)
            print(f"cancel of a quiet job, update interval {interval or 'not given'}: {time.monotonic() - began:.1f} s")
            await daemon.stop()


def below(pid: int) -> list[int]:
    """A process and all its descendants."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [pid, *(found for child in text.split() for found in below(int(child)))]


def proportional_mib(pid: int) -> float:
    """Memory of a process; of shared pages its share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main() -> None:
    """Run all."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for work in (latency, full_jobs, throughput, long_log, memory, quiet_cancel):
        root = Path(tempfile.mkdtemp(prefix="benchmark-"))
        try:
            asyncio.run(work(root, count))
        finally:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
