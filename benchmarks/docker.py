"""Docker jobs beside bare containers of the same image and engine: ``python -m benchmarks.docker [COUNT]``.

The coordinator runs in this process; its share of the machine is part of the figures. Jobs and bare containers take turns,
so that what else the machine does is shared by both.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker

from benchmarks.full_job import full_job, make_repository
from benchmarks.jobs import below, cpu_s, proportional_mib
from tests.docker import images
from tests.docker.conftest import CONFIG, HOST, remove_leftovers
from tests.docker.meddling import meddler
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload

AT_ONCE = 8
END_S = 300


def bare_run(client: docker.APIClient) -> float:
    """Seconds of what ``docker run --rm busybox:local sh -c 'echo hi'`` asks an engine for."""
    began = time.monotonic()
    made = client.create_container("busybox:local", ["sh", "-c", "echo hi"])["Id"]
    client.start(made)
    client.wait(made)
    assert client.logs(made) == b"hi\n"
    client.remove_container(made, v=True)
    return time.monotonic() - began


def trivial(number: int) -> dict[str, Any]:
    """A job without sources."""
    return job_payload(number, ["echo hi"])


class Bench:
    """A coordinator and a daemon on an engine."""

    def __init__(self, root: Path, client: docker.APIClient, fake: FakeCoordinator, host: str = HOST) -> None:
        self.fake = fake
        self.client = client
        self.commit = make_repository(fake)
        config = CONFIG.format(url=fake.url, extra="  request_concurrency = 10", docker="", volumes='["/cache"]')
        config = config.replace("concurrent = 4", "concurrent = 10")
        self.daemon = Daemon(root / "runner", config, environment={"DOCKER_HOST": host})
        self.number = 0

    async def run(self, make: Callable[[int], dict[str, Any]], count: int = 1) -> list[Job]:
        """Jobs at once, up to their end."""
        jobs = []
        for _ in range(count):
            self.number += 1
            jobs.append(self.fake.add_job(make(self.number)))
        for job in jobs:
            await asyncio.wait_for(job.ended.wait(), END_S)
            assert job.state == "success", job.log + self.daemon.log
        return jobs

    async def settle(self) -> None:
        """Until nothing of a job is there any more."""
        await self.fake.until(lambda: not list((self.daemon.state / "jobs").iterdir()), END_S)

    def full(self, number: int) -> dict[str, Any]:
        return full_job(self.fake, self.commit, number, service=True)

    def without_service(self, number: int) -> dict[str, Any]:
        return full_job(self.fake, self.commit, number)

    async def stop(self) -> None:
        await self.daemon.stop()
        remove_leftovers(self.client, self.daemon)


async def latency(bench: Bench, count: int) -> None:
    """One after the other, in turns."""
    kinds = {"trivial job": trivial, "full job": bench.without_service, "full job with a service": bench.full}
    times: dict[str, list[float]] = {name: [] for name in ("bare run", *kinds)}
    bench.daemon.start()
    for make in kinds.values():  # images, helper, clone
        await bench.run(make)
        await bench.settle()
    spent = 0.0
    for _ in range(count):
        times["bare run"].append(await asyncio.to_thread(bare_run, bench.client))
        for name, make in kinds.items():
            before = cpu_s(bench.daemon.pid)
            (job,) = await bench.run(make)
            times[name].append(job.ended_at - job.picked_at)
            await bench.settle()
            spent += cpu_s(bench.daemon.pid) - before if make is trivial else 0.0
    bare = statistics.median(times["bare run"])
    for name, found in times.items():
        median = statistics.median(found)
        print(f"{name}: median {median:.2f} s, best {min(found):.2f} s, {median / bare:.2f} x the bare run")
    print(f"processor time of the daemon: {spent / count * 1000:.0f} ms a trivial job")


async def at_once(bench: Bench, count: int) -> None:
    """Several at the same time, in turns."""
    jobs, runs = [], []
    bench.daemon.start()
    await bench.run(trivial)
    for _ in range(max(count // 4, 1)):
        began = time.monotonic()
        await asyncio.gather(*(asyncio.to_thread(bare_run, docker.APIClient(HOST, version="auto")) for _ in range(AT_ONCE)))
        runs.append(time.monotonic() - began)
        began = time.monotonic()
        await bench.run(trivial, AT_ONCE)
        jobs.append(time.monotonic() - began)
        await bench.settle()
    job_s, run_s = statistics.median(jobs), statistics.median(runs)
    print(f"{AT_ONCE} trivial jobs at once: median {job_s:.2f} s, {job_s / run_s:.2f} x as many bare runs ({run_s:.2f} s)")


async def memory(bench: Bench, count: int) -> None:
    """Ten jobs that sleep; of shared pages the daemon's share."""
    del count
    bench.daemon.start()
    await bench.run(trivial)
    idle = sum(map(proportional_mib, below(bench.daemon.pid)))
    work = asyncio.create_task(bench.run(lambda number: job_payload(number, ["echo up; sleep 20"]), 10))
    await bench.fake.until(lambda: sum(b"\nup\n" in job.trace for job in bench.fake.jobs.values()) == 10, END_S)
    busy = sum(map(proportional_mib, below(bench.daemon.pid)))
    print(f"memory of the daemon: {idle:.1f} MiB after one job, {busy:.1f} MiB with 10 running")
    await work


async def calls(bench: Bench, count: int) -> None:
    """What a job asks the engine for."""
    del count
    async with meddler() as between:
        bench.daemon.environment["DOCKER_HOST"] = between.host
        bench.daemon.start()
        for name, make in (("trivial job", trivial), ("full job with a service", bench.full)):
            await bench.run(make)
            await bench.settle()
            between.requests.clear()
            await bench.run(make)
            await bench.settle()
            made = sum(line.startswith("POST /containers/create") for line in between.requests)
            print(f"{name}: {made} containers, {len(between.requests)} calls")
            kinds = Counter(
                re.sub(r"[0-9a-f]{12,}|runner-\S+?(?=[/?]|$)", "ID", line.partition("?")[0]) for line in between.requests
            )
            print("".join(f"    {number:2} {line}\n" for line, number in kinds.most_common()), end="")
        await bench.daemon.stop()


async def measure(work: Callable[[Bench, int], Any], client: docker.APIClient, root: Path, count: int) -> None:
    """One of the above, with everything of its own."""
    network: Any = client.inspect_network("bridge")
    gateway = str(network["IPAM"]["Config"][0]["Gateway"])
    async with FakeCoordinator(root / "server", trace_interval=3, address=gateway) as fake:
        bench = Bench(root, client, fake)
        try:
            await work(bench, count)
        finally:
            await bench.stop()


def main() -> None:
    """Run all."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    client = docker.APIClient(HOST, version="auto")
    images.make(client, "busybox:local", images.busybox(), ['CMD ["sh"]'])
    images.make(client, "gold-exposed:local", images.busybox(), ["EXPOSE 8080", 'CMD ["sh"]'])
    for work in (latency, at_once, memory, calls):
        root = Path(tempfile.mkdtemp(prefix="benchmark-"))
        try:
            asyncio.run(measure(work, client, root, count))
        finally:
            shutil.rmtree(root, ignore_errors=True)
    client.close()


if __name__ == "__main__":
    main()
