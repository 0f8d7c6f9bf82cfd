"""Saving and restoring caches, and the same with ``zip``, ``unzip`` and ``tar --zstd`` beside it in one run.

``python -m benchmarks.archives [files]`` prints, for a tree of 200 MB (half of it incompressible) and one of many small
files (50,000), seconds of wall clock, seconds of CPU (of this process and of all that worked for it), the highest resident
memory of this process, and the size of the archive; medians of three runs. Where it runs (``TMPDIR``) counts: making many
files is mostly the file system's work.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing import Process
from pathlib import Path

from benchmarks.artifacts import fill
from executors.base import JobSpec
from executors.file_operations import write_all
from executors.processes import descendants
from executors.registry import HostSettings
from executors.shell import ShellEnvironment, ShellExecutor
from runner.archive.formats import Format, Level, sniff
from runner.archive.listing import list_for
from runner.archive.local_store import LocalStore
from runner.archive.match import select
from runner.archive.members import Limits
from runner.archive.pack import pack
from runner.archive.unpack import unpack

RUNS = 3
SMALL_FILES = 50_000
Work = Callable[[], Awaitable[None]]


def many(project: Path, count: int) -> None:
    """Small files of 200 bytes to 4 KiB, 100 to a directory."""
    for number in range(count):
        folder = project / "d" / f"{number // 100:04}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
        (folder / f"file-{number}.go").write_bytes(b"package main // %d\n" % number * (10 + number % 200))


def used() -> float:
    """CPU seconds of this process, of its children that have ended, and of what lives below it with its own children."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in (own, children)) + sum(map(of_process, descendants(os.getpid())))


def of_process(pid: int) -> float:
    """CPU seconds of a process and of its children that have ended; none of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


async def measure(name: str, work: Work, before: Callable[[], None] = lambda: None) -> None:
    """Time a piece of work; ``before`` is not counted."""
    walls, cpus = [], []
    for _ in range(RUNS):
        before()
        os.sync()  # nobody pays for what those before have left to the kernel
        began, cpu = time.monotonic(), used()
        await work()
        walls.append(time.monotonic() - began)
        cpus.append(used() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:34} {statistics.median(walls):7.3f} s  cpu {statistics.median(cpus):7.3f} s  peak {peak:6.1f} MiB", flush=True)


def command(cwd: Path, *argv: str | Path) -> Work:
    async def work() -> None:
        subprocess.run(argv, cwd=cwd, check=True, stdout=subprocess.DEVNULL)

    return work


async def ours(place: ShellEnvironment, store: LocalStore, project: Path, kind: Format) -> None:
    """Save and restore with the archiver of the daemon."""

    async def save() -> None:
        members = select(await list_for(place.files, str(project), ["d"]), str(project), paths=["d"]).members
        with store.draft(kind, "bench") as draft:

            async def sink(piece: bytes) -> None:
                await asyncio.to_thread(write_all, draft.fd, piece)

            await pack(place.files, str(project), members, sink, format=kind, level=Level.DEFAULT)
            draft.keep({})

    async def restore() -> None:
        with store.opened(kind) as stored:
            assert stored is not None
            await unpack(place.files, str(project), stored.path, format=sniff(stored.path), limits=Limits())

    await measure(f"  {kind} save", save)
    with store.opened(kind) as stored:
        assert stored is not None
        size = stored.size
    await measure(f"  {kind} restore", restore, lambda: shutil.rmtree(project / "d"))
    print(f"  {kind} size {size / 1e6:34.1f} MB", flush=True)


async def beside(project: Path, root: Path) -> None:
    """The same with what a shell has."""
    zipped, tarred = root / "a.zip", root / "a.tar.zst"

    def clear() -> None:
        shutil.rmtree(project / "d")

    await measure("  zip -qr", command(project, "zip", "-qr", zipped, "d"), lambda: zipped.unlink(missing_ok=True))
    await measure("  unzip -q", command(project, "unzip", "-q", zipped), clear)
    await measure("  tar --zstd -cf", command(project, "tar", "--zstd", "-cf", tarred, "d"))
    await measure("  tar --zstd -xf", command(project, "tar", "--zstd", "-xf", tarred), clear)
    print(f"  sizes: zip {zipped.stat().st_size / 1e6:.1f} MB, tar.zst {tarred.stat().st_size / 1e6:.1f} MB", flush=True)


async def tree(name: str, make: Callable[[Path], None]) -> None:
    """All figures of one tree."""
    print(name)
    with tempfile.TemporaryDirectory(prefix="archives-") as folder:
        root = Path(folder)
        project, record = root / "p", root / "r"
        record.mkdir()
        maker = Process(target=make, args=(project,))  # what it needs is not our memory
        maker.start()
        maker.join()
        executor = ShellExecutor(HostSettings(state_dir=str(root), environment={"PATH": os.environ["PATH"], "HOME": folder}))
        place = ShellEnvironment(
            executor, JobSpec(job_id=1, record_dir=record, project_dir=str(project), tmp_dir=str(root / "t"))
        )
        await place.prepare()
        store = LocalStore(str(root / "cache"), str(root / "cache"))
        for kind in (Format.ZIP, Format.TARZSTD, Format.ZIPZSTD):
            await ours(place, store, project, kind)
        await place.cleanup()
        await executor.close()
        await beside(project, root)


async def main() -> None:
    """Both trees."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else SMALL_FILES
    await tree("200 MB, half incompressible", fill)
    await tree(f"{count} small files", partial(many, count=count))


if __name__ == "__main__":
    asyncio.run(main())
