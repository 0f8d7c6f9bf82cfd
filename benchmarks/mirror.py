"""Checkouts of a large repository, with and without a mirror: ``python -m benchmarks.mirror [FILES] [ROUNDS]``.

Prints what the stage ``get_sources`` took in jobs that find no workspace, medians, and beside
it the least that it could: git writing the same work tree from objects that are all at hand. The server is git's own
``http-backend`` on this host: what a network would cost comes on top of the figures without a mirror.
"""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.contract.conftest import CONFIG
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon

MIRROR = "  [runners.git]\n    mirror = true\n"


def tree(files: int) -> dict[str, str]:
    """Source-like files of about 2 KB each, in directories of a hundred."""
    words = [f"word{number}" for number in range(2000)]
    pick = random.Random(1)
    return {f"d{number // 100}/f{number}.txt": " ".join(pick.choices(words, k=250)) for number in range(files)}


def bare_checkout(repository: Path, place: Path) -> float:
    """Seconds of a checkout that has nothing to fetch."""
    subprocess.run(["git", "clone", "-q", "--no-checkout", "--shared", str(repository), str(place)], check=True)
    began = time.monotonic()
    subprocess.run(["git", "checkout", "-q", "-f", "main"], cwd=place, check=True)
    seconds = time.monotonic() - began
    shutil.rmtree(place)
    return seconds


def sources_s(job: Job) -> float:
    """What the job itself says of its sources."""
    found = re.search(r"get_sources ([\d.]+) s", job.log)
    assert found is not None, job.log
    return float(found[1])


async def series(root: Path, repositories: Path, commit: str, *, extra: str, depth: int, rounds: int) -> list[float]:
    """The first checkout and those after it, seconds."""
    async with FakeCoordinator(root / "server", trace_interval=3) as fake:
        shutil.rmtree(fake.repositories)
        fake.repositories.symlink_to(repositories)
        daemon = Daemon(root / "runner", CONFIG.format(url=fake.url, root=root) + extra)
        daemon.start()
        took = []
        for number in range(1, rounds + 2):
            payload = job_payload(number, ["true"], variables={"GIT_STRATEGY": "clone"})
            payload["git_info"] |= {**fake.git_info(commit), "depth": depth}
            job = fake.add_job(payload)
            await asyncio.wait_for(job.ended.wait(), 600)
            assert job.state == "success", job.log
            took.append(sources_s(job))
            shutil.rmtree(root / "builds")  # as in a slot that has not seen the repository yet
        await daemon.stop()
    return took


async def main() -> None:
    """All of it."""
    files = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        repositories = root / "repositories"
        repositories.mkdir()
        commit = git_server.make_repository(repositories, "app", tree(files))
        shutil.rmtree(repositories / "app-work")
        least = statistics.median(bare_checkout(repositories / "app.git", root / "bare") for _ in range(rounds))
        print(f"{files} files; a bare checkout: {least:.2f} s")
        for depth in (20, 0):
            for text, extra in (("without a mirror", ""), ("with a mirror", MIRROR)):
                place = root / f"{text.replace(' ', '-')}-{depth}"
                first, *later = await series(place, repositories, commit, extra=extra, depth=depth, rounds=rounds)
                median = statistics.median(later)
                print(
                    f"depth {depth}, {text}: first {first:.2f} s, then {median:.2f} s ({median / least:.2f} x the bare checkout)"
                )
                shutil.rmtree(place)


if __name__ == "__main__":
    asyncio.run(main())
