"""The stores of one daemon below its state directory: who has which, what they hold, and what goes when they hold too much.

A store is a directory of generations. Jobs get its newest one, and hold it by a file in their record: the claim of an
adopted job stays, that of a job whose record is gone is gone with it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import structlog

from executors.file_operations import write_private
from runner.gocache.generation import GONE, PUBLISHED, Facts, Generation, remove_tree, take_away
from runner.gocache.measure import Meter
from runner.gocache.publish import publish
from runner.gocache.scope import StoreKey, Trust
from runner.gocache.trim import Entry, entries, spared_since_ns, trim

log = structlog.get_logger()

CLAIM = "go-store.json"
PRIVATE = "private"
# Trimming goes on to here, so that it is not due again after the next job.
LOW_WATER = 0.9


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What a job has of the stores. ``place`` is its generation, ``published`` modules that it may read, empty for none.

    ``mounted``: its processes find both where they are mounted, not there. ``publishes``: jobs of lower trust may read the
    modules that this one downloads. ``name``, ``scope``, ``size_bytes`` and ``warm`` are what its log says.
    """

    place: str
    name: str
    scope: str
    at_ns: int
    published: str = ""
    mounted: bool = False
    private: bool = False
    publishes: bool = False
    warm: bool = False
    size_bytes: int = 0


class Stores:
    """Owned by the process that owns the state directory. ``budgets`` are the bytes of each group; 0 is no limit."""

    def __init__(
        self,
        state_dir: Path,
        *,
        budgets: Callable[[], Mapping[str, int]],
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._root = state_dir / "go"
        self._jobs = state_dir / "jobs"
        self._budgets = budgets
        self._clock_ns = clock_ns
        self._meter = Meter()
        self._claims: dict[str, Claim] = {}
        self._left: dict[str, Claim] = {}
        self._work = asyncio.Event()
        self._settling = asyncio.Lock()
        self._measuring = asyncio.Lock()

    # Jobs

    async def claim(self, record: Path, key: StoreKey, *, mounted: bool, uid: int | None, gid: int | None) -> Claim:
        """Give a job a store, or what it has already. Raises :class:`OSError`.

        Where nothing keeps one job from the files of another (not ``mounted``), a job of a protected ref gets a store that
        begins empty and ends with it.
        """
        known = _read(record / CLAIM)
        if known is not None:
            self._claims[record.name] = known
            return known
        private = key.trust is Trust.PROTECTED and not mounted
        if private:
            generation = Generation(self._area(mounted=False) / PRIVATE / record.name)
        else:
            generation = self._newest(self._area(mounted=mounted) / key.directory)
        self._reach(generation, uid=uid, mounted=mounted)
        generation.make(uid=uid, gid=gid)
        claim = Claim(
            place=str(generation.path),
            name=key.name,
            scope=key.shown,
            at_ns=self._clock_ns(),
            published=self._published(key) if mounted and key.trust is Trust.UNPROTECTED else "",
            mounted=mounted,
            private=private,
            publishes=mounted and key.trust is Trust.PROTECTED,
        )
        write_private(str(record / CLAIM), msgspec.json.encode(claim))
        # From here on nobody takes it away.
        self._claims[record.name] = claim
        claim = await self._described(claim, generation)
        write_private(str(record / CLAIM), msgspec.json.encode(claim))
        return claim

    async def _described(self, claim: Claim, generation: Generation) -> Claim:
        """With what the log says of it."""
        if not await asyncio.to_thread(generation.is_warm):
            return claim
        if claim.place in self._left or not generation.facts.size_bytes:
            await self._look(generation)
        return msgspec.structs.replace(claim, warm=True, size_bytes=generation.facts.size_bytes)

    def release(self, record: Path) -> None:
        """The job has no more processes."""
        claim = self._claims.pop(record.name, None)
        (record / CLAIM).unlink(missing_ok=True)
        if claim is not None:
            self._left[claim.place] = claim
            self._work.set()

    def _area(self, *, mounted: bool) -> Path:
        return self._root / ("mounted" if mounted else "plain")

    def _reach(self, generation: Generation, *, uid: int | None, mounted: bool) -> None:
        """The directories above a generation: closed, unless the jobs' account has to find its way through them."""
        generation.path.parent.mkdir(parents=True, exist_ok=True)
        area = self._area(mounted=mounted)
        if mounted or uid in (None, os.geteuid()):
            area.chmod(0o700)
            return
        for directory in (area, self._root, self._root.parent):
            directory.chmod(directory.stat().st_mode | 0o011)
        for directory in self._root.parents:
            if not directory.stat().st_mode & 0o001:
                raise OSError(errno.EACCES, "the account of the jobs cannot reach what is below", str(directory))

    def _newest(self, store: Path) -> Generation:
        numbers = sorted(int(entry.name) for entry in _list(store) if entry.name.isdigit())
        if numbers and not (newest := Generation(store / str(numbers[-1]))).is_retired:
            return newest
        return Generation(store / str(numbers[-1] + 1 if numbers else 1))

    def _published(self, key: StoreKey) -> str:
        newest = self._newest(self._area(mounted=True) / key.trusted().directory)
        found = newest.path / PUBLISHED
        return str(found) if _list(found) else ""

    # What is kept

    def open(self) -> None:
        """Find the claims of jobs that run on."""
        for record in _list(self._jobs):
            claim = _read(record / CLAIM)
            if claim is not None:
                self._claims[record.name] = claim
        self._work.set()

    async def run(self) -> None:
        """Look after what jobs leave behind, for ever."""
        while True:
            await self._work.wait()
            await self.settle()

    async def settle(self) -> None:
        """Measure what jobs have left, publish it, make room."""
        async with self._settling:
            self._work.clear()
            self._claims = {name: claim for name, claim in self._claims.items() if (self._jobs / name / CLAIM).exists()}
            left, self._left = self._left, {}
            for claim in left.values():
                generation = Generation(Path(claim.place))
                if not claim.private and generation.path.is_dir():
                    await self._look(generation, used_at_ns=self._clock_ns())
                    if claim.publishes:
                        await asyncio.to_thread(publish, generation)
            await asyncio.to_thread(self.remove_unused)
            for group, budget_bytes in self._budgets().items():
                if budget_bytes > 0:
                    await self._make_room(group, budget_bytes)

    async def _look(self, generation: Generation, *, used_at_ns: int | None = None) -> int:
        """Measure a generation and note it down; its size."""
        async with self._measuring:
            size = await asyncio.to_thread(self._meter.size_bytes, generation)
        known = generation.facts
        generation.note(Facts(size_bytes=size, used_at_ns=known.used_at_ns if used_at_ns is None else used_at_ns))
        return size

    def is_held(self, generation: Generation) -> bool:
        """Whether a job has it."""
        return self._oldest_job_ns(generation.path) is not None

    def remove_unused(self) -> None:
        """Remove what was taken away, private stores without their job, and retired generations without any."""
        for area in _list(self._root):
            for entry in _list(area):
                for generation in _list(entry):
                    is_over = generation.name.startswith(GONE) or entry.name == PRIVATE or Generation(generation).is_retired
                    if is_over and self._oldest_job_ns(generation) is None:
                        _remove(generation)
                        self._meter.forget(Generation(generation))

    async def _make_room(self, group: str, budget_bytes: int) -> None:
        """Trim the stores of a group. Where jobs are in the way, they keep what they have and the next ones begin anew."""
        generations = [generation for generation in self.generations(group) if not generation.is_retired]
        total = sum(generation.facts.size_bytes for generation in generations)
        if total <= budget_bytes:
            return
        excess = total - int(budget_bytes * LOW_WATER)
        freed = await asyncio.to_thread(self._trim, generations, excess)
        log.info("Go stores trimmed", group=group, bytes=total, budget_bytes=budget_bytes, freed_bytes=freed)
        sizes = {generation: await self._look(generation) for generation in generations}
        left = sum(sizes.values())
        for generation in sorted(generations, key=lambda generation: sizes[generation], reverse=True):
            if left <= budget_bytes:
                break
            log.info("Go store begins anew", path=str(generation.path), bytes=sizes[generation])
            generation.retire()
            left -= sizes[generation]
            self._work.set()

    def _trim(self, generations: Sequence[Generation], excess_bytes: int) -> int:
        found = [entry for generation in generations for entry in entries(generation, self._meter)]
        return trim(found, excess_bytes, self._may_go)

    def _may_go(self, entry: Entry) -> bool:
        oldest_ns = self._oldest_job_ns(entry.generation.path)
        return oldest_ns is None or entry.used_at_ns < spared_since_ns(self._clock_ns(), oldest_ns)

    def _oldest_job_ns(self, place: Path) -> int | None:
        """When the first of the jobs that have a generation got it; None where none has it."""
        return min((claim.at_ns for claim in list(self._claims.values()) if claim.place == str(place)), default=None)

    def generations(self, group: str = "") -> list[Generation]:
        """Every generation of every store, or of those of a group."""
        return [
            Generation(generation)
            for area in _list(self._root)
            for store in _list(area)
            if store.name != PRIVATE and store.name.startswith(group)
            for generation in _list(store)
            if generation.name.isdigit()
        ]


def _list(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path) -> Claim | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Claim)
    except (OSError, msgspec.DecodeError):
        return None


def _remove(path: Path) -> None:
    try:
        problems = remove_tree(path if path.name.startswith(GONE) else take_away(path))
    except OSError as error:
        problems = [(str(path), error.strerror or str(error))]
    for name, why in problems:
        log.warning("Go store could not be removed", path=name, error=why)
