"""Keeps what lies beside jobs within its budgets, and says when there is no room for another job."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import structlog

from executors.disk import DiskKind, Item
from executors.errors import ExecutorError
from runner.config.model import DiskConfig
from runner.config.size import format_size
from runner.disk.choice import for_room, over_budget
from runner.disk.directories import Directories
from runner.disk.holds import Holds
from runner.disk.space import Probe, Space

log = structlog.get_logger()

# How long two rounds are apart: at rest, and while jobs end.
REST_S = 300.0
PAUSE_S = 20.0
# A kind that takes longer goes on by itself; the others do not wait for it, and neither does a request for a job.
PATIENCE_S = 10.0
# Room is made for so much more than the floor, so that the next job does not find it gone.
MARGIN = 0.25
# What a round could not relieve is not tried again at once.
RELIEF_PAUSE_S = 1.0


@dataclass(slots=True)
class KindState:
    """A kind and what is known of it. ``task`` is what is being done about it."""

    kind: DiskKind
    items: Sequence[Item] = ()
    removed: int = 0
    task: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self.task is not None and not self.task.done()

    @property
    def size_bytes(self) -> int:
        return sum(item.size_bytes for item in self.items)


@dataclass(slots=True)
class _Pressure:
    """File systems below the floor, and what waits for room on them."""

    needed: dict[int, int] = field(default_factory=dict)
    relieved: asyncio.Event = field(default_factory=asyncio.Event)


class DiskBudget:
    """The budgets of one daemon. ``places`` are the directories whose file systems must have room.

    ``run`` is the service; without it nothing is ever removed. Kinds without a budget are never touched.
    """

    def __init__(self, settings: Callable[[], DiskConfig], places: Callable[[], Sequence[str]]) -> None:
        self._settings = settings
        self._places = places
        self._more_places: list[Callable[[], Sequence[str]]] = []
        self._probe = Probe()
        self._pressure = _Pressure()
        self._failed_at = float("-inf")
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self.holds = Holds()
        self.kinds: list[KindState] = []
        self.spaces: list[Space] = []
        self.is_low = False
        self.on_change: Callable[[], None] = lambda: None

    def add(self, *kinds: DiskKind, places: Callable[[], Sequence[str]] = tuple) -> None:
        """Look after these, too, and let there be room at ``places``."""
        self.kinds += [KindState(kind) for kind in kinds]
        self._more_places.append(places)

    @contextlib.asynccontextmanager
    async def held(self, paths: Sequence[str]) -> AsyncIterator[None]:
        """The time of a job that works in these directories."""
        async with self.holds.held(paths):
            try:
                yield
            finally:
                self.used(paths)

    def used(self, paths: Sequence[str]) -> None:
        """A job has worked there: what is known of it is out of date."""
        for state in self.kinds:
            if isinstance(state.kind, Directories):
                for path in paths:
                    state.kind.used(path)
        self._wake.set()

    def budget(self, state: KindState) -> int | None:
        """Bytes that a kind may take, None where nobody bounds it."""
        return self._settings().budget(state.kind.name)

    # Room for a job

    async def has_room(self) -> bool:
        """Whether a job may be asked for; tries to make room first."""
        floor = self._settings().min_free_bytes
        if not floor:
            self._tell(floor, None)
            return True
        low = await self._look(floor)
        if low and self._begin_relief(low, floor):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._pressure.relieved.wait(), PATIENCE_S)
            low = await self._look(floor)
            self._failed_at = asyncio.get_running_loop().time() if low else float("-inf")
        self._tell(floor, low[0] if low else None)
        return not low

    async def look(self) -> None:
        """Find out how much is free now."""
        await self._look(0)

    async def _look(self, floor: int) -> list[Space]:
        places = [*self._places(), *(path for more in self._more_places for path in more())]
        self.spaces = await self._probe.look(places)
        return [space for space in self.spaces if space.free_bytes < floor]

    def _begin_relief(self, low: Sequence[Space], floor: int) -> bool:
        """Ask the service for room; whether it is worth waiting for."""
        pressure = self._pressure
        if pressure.needed:
            return True
        if self._group is None or asyncio.get_running_loop().time() - self._failed_at < RELIEF_PAUSE_S:
            return False
        wanted = int(floor * (1 + MARGIN))
        self._pressure = _Pressure(needed={space.device: wanted - space.free_bytes for space in low})
        self._wake.set()
        return True

    def _tell(self, floor: int, low: Space | None) -> None:
        was_low, self.is_low = self.is_low, low is not None
        if low is not None and not was_low:
            free = format_size(low.free_bytes)
            log.warning("no jobs are requested: the disk is full", path=low.path, free=free, min_free=format_size(floor))
        elif was_low and low is None:
            log.info("jobs are requested again: there is room on the disk")
        if was_low is not self.is_low:
            self.on_change()

    # The service

    async def run(self) -> None:
        """Trim, again and again."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._each(self._bounded(), self._finish_sweep)
                while True:
                    began = loop.time()
                    await self._round()
                    await self._rest(began)
            finally:
                self._group = None

    async def _rest(self, began: float) -> None:
        """Until the next round is due: soon after a job, at once under pressure."""
        loop = asyncio.get_running_loop()
        while not self._pressure.needed:
            due_s = began + (PAUSE_S if self._wake.is_set() else REST_S) - loop.time()
            if due_s <= 0:
                return
            if self._wake.is_set():
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wait_for_pressure(), due_s)
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), due_s)

    async def _wait_for_pressure(self) -> None:
        while not self._pressure.needed:
            await self._wake.wait()
            self._wake.clear()

    async def _round(self) -> None:
        self._wake.clear()
        if self._settings().min_free_bytes and not self._pressure.needed:
            await self._look(self._settings().min_free_bytes)
        bounded = self._bounded()
        await self._each(bounded, self._trim)
        pressure = self._pressure
        if pressure.needed:
            try:
                await self._relieve(pressure, bounded)
            finally:
                pressure.needed = {}
                pressure.relieved.set()

    def _bounded(self) -> list[KindState]:
        return [state for state in self.kinds if self.budget(state) is not None]

    async def _relieve(self, pressure: _Pressure, bounded: Sequence[KindState]) -> None:
        """Take what was not used for the longest time, of whatever kind, until there is room."""
        left = await self._look(self._settings().min_free_bytes)
        needed = {space.device: pressure.needed[space.device] for space in left if space.device in pressure.needed}
        free = {state.kind.name: state for state in bounded if not state.is_busy}
        chosen = for_room({name: state.items for name, state in free.items()}, needed, self.holds.is_held)
        await self._each([free[name] for name in chosen], lambda state: self._remove(state, chosen[state.kind.name]))

    async def _each(self, states: Sequence[KindState], work: Callable[[KindState], Awaitable[None]]) -> None:
        """Do something about kinds at once; returns when it is done, or after a while: what hangs goes on alone."""
        assert self._group is not None
        tasks = []
        for state in states:
            if not state.is_busy:
                state.task = self._group.create_task(self._carefully(state, work), name=f"disk-{state.kind.name}")
                tasks.append(state.task)
        if tasks:
            await asyncio.wait(tasks, timeout=PATIENCE_S)

    async def _carefully(self, state: KindState, work: Callable[[KindState], Awaitable[None]]) -> None:
        try:
            await work(state)
        except (OSError, ExecutorError) as error:
            log.warning("disk could not be looked after", kind=state.kind.name, error=str(error))
        except Exception as error:
            log.exception("disk could not be looked after", kind=state.kind.name, error=str(error))

    async def _finish_sweep(self, state: KindState) -> None:
        """What an earlier daemon took away is nobody's any more."""
        await state.kind.sweep()

    async def _trim(self, state: KindState) -> None:
        state.items = await state.kind.items()
        budget = self.budget(state)
        if budget is not None:
            await self._remove(state, over_budget(state.items, budget, self.holds.is_held))

    async def _remove(self, state: KindState, items: Sequence[Item]) -> None:
        with self.holds.going(items) as free:
            if free:
                await state.kind.take_away(free)
        if free:
            await state.kind.sweep()
            gone = {item.name for item in free}
            state.items = [item for item in state.items if item.name not in gone]
            state.removed += len(free)
            facts = {"count": len(free), "bytes": sum(item.size_bytes for item in free)}
            log.info("removed from the disk what was not used for the longest time", kind=state.kind.name, **facts)
