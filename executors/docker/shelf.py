"""Things that the runner keeps on an engine for later jobs: listed, measured, and removed when nobody uses them."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import structlog

from executors.disk import Item
from executors.docker.errors import EngineError, NotFound
from executors.docker.uses import key_of
from executors.errors import ExecutorError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.ledger import Ledger

log = structlog.get_logger()

# How many things an engine removes at a time; one that takes long leaves the others room.
REMOVALS = 4
# What an engine does not answer in this time is tried again in a later round.
LOOK_S = 300.0
REMOVE_S = 1800.0
CONFLICT = 409


class Shelf(ABC):
    """Things of one sort on one engine. ``used`` are the names of all that jobs use, on whatever engine."""

    def __init__(self, engine: Engine, ledger: Ledger, used: Callable[[], set[str]]) -> None:
        self.engine = engine
        self.ledger = ledger
        self._used = used
        self._locks: dict[str, asyncio.Lock] = {}
        self._room = asyncio.Semaphore(REMOVALS)

    async def items(self, device: int) -> dict[str, Item]:
        """What the runner keeps there, by its name on the engine; ``device`` is the file system that it lies on, as
        :class:`executors.disk.Item` has it. Raises :class:`ExecutorError`."""
        before_ns = time.time_ns()
        async with asyncio.timeout(LOOK_S):
            there = await self._list()
            self.ledger.forget_others([key_of(name) for name in there], before_ns=before_ns)
            uses = self._last_uses(there)
            sizes = await self._sizes(uses)
        used = self._used()
        return {
            name: Item(
                name=f"{self.engine.connection.host} {name}",
                size_bytes=sizes.get(name, 0),
                last_used_ns=used_ns,
                in_use=name in used,
                device=device,
            )
            for name, used_ns in uses.items()
            if not self.ledger.is_going(key_of(name))
        }

    def mark(self, names: list[str]) -> None:
        """Put on their way out those that no job uses: from here on none begins to."""
        used = self._used()
        for name in names:
            if name not in used:
                self.ledger.mark(key_of(name))

    async def sweep(self) -> None:
        """Remove everything that is on its way out, a few at a time."""
        await asyncio.gather(*(self._sweep(self._name_of(key)) for key in self.ledger.going()))

    async def _sweep(self, name: str) -> None:
        async with self._room:
            try:
                async with asyncio.timeout(REMOVE_S):
                    await self.settle(name)
            except (ExecutorError, TimeoutError) as error:
                host = self.engine.connection.host
                log.warning("could not be removed from the engine", name=name, host=host, error=str(error) or "it takes too long")

    async def settle(self, name: str) -> bool:
        """Wait until something that is on its way out is gone, and see to it; whether it is. Raises :class:`ExecutorError`."""
        key = key_of(name)
        if not self.ledger.is_going(key):
            return False
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                return await self._settle(name, key)
        finally:
            if not lock.locked():
                self._locks.pop(key, None)

    async def _settle(self, name: str, key: str) -> bool:
        """The same for the first of those that wait; those behind it find that it is done."""
        if self.ledger.is_going(key):
            try:
                is_gone = await self._remove(name)
            except EngineError as error:
                if error.status != CONFLICT:
                    raise
                is_gone = False
            if not is_gone:
                log.debug("stays on the engine, since something uses it", name=name)
                self.ledger.put_back(key)
                return False
            self.ledger.forget(key)
        return True

    def _name_of(self, key: str) -> str:
        return key

    @abstractmethod
    async def _list(self) -> Mapping[str, int]:
        """What the runner keeps there, with the time from which it counts as used where nothing better is known."""

    @abstractmethod
    async def _sizes(self, uses: Mapping[str, int]) -> Mapping[str, int]:
        """Bytes by names, of things with the times of their last uses."""

    @abstractmethod
    async def _remove(self, name: str) -> bool:
        """Remove it; False where something uses it. One that is gone, or not the runner's any more, is fine."""

    def _last_uses(self, there: Mapping[str, int]) -> dict[str, int]:
        known = self.ledger.last_uses()
        return {name: known.get(key_of(name), otherwise) for name, otherwise in there.items()}

    async def _get(self, path: str, **filters: list[str]) -> Any:
        params = {"filters": json.dumps(filters)} if filters else None
        async with self.engine.stream("GET", path, params=params) as response:
            return json.loads(await response.read())

    async def _delete(self, path: str) -> None:
        try:
            async with self.engine.stream("DELETE", path) as response:
                await response.read()
        except NotFound:
            return


def quoted(reference: str) -> str:
    """The name of an image as a part of a path."""
    return urllib.parse.quote(reference, safe="/:@")
