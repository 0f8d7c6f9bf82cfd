"""Volumes and images as kinds of the disk budget, over all engines of a daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog

from executors.disk import Item
from executors.docker.shelf import Shelf
from executors.errors import ExecutorError

log = structlog.get_logger()

# The file system of an engine on another host: room there helps nobody here.
ELSEWHERE = -1


class OnEngines:
    """One kind. ``shelves`` are its things, one for each engine; ``device_of`` tells the file system of one."""

    def __init__(self, name: str, shelves: Callable[[], Sequence[Shelf]], device_of: Callable[[Shelf], Awaitable[int]]) -> None:
        self._name = name
        self._shelves = shelves
        self._device_of = device_of
        self._known: dict[str, tuple[Shelf, str]] = {}

    @property
    def name(self) -> str:
        """The key of ``[pyrunner.disk]``."""
        return self._name

    async def items(self) -> Sequence[Item]:
        """See :class:`executors.disk.DiskKind`. An engine that does not answer has nothing."""
        shelves = self._shelves()
        self._known = {}
        found: list[Item] = []
        for shelf, items in zip(shelves, await asyncio.gather(*map(self._items, shelves)), strict=True):
            for name, item in items.items():
                self._known[item.name] = (shelf, name)
                found.append(item)
        return found

    async def _items(self, shelf: Shelf) -> dict[str, Item]:
        try:
            return await shelf.items(await self._device_of(shelf))
        except (ExecutorError, TimeoutError) as error:
            text = str(error) or "the engine takes too long"
            log.warning("disk could not be looked after", kind=self._name, host=shelf.engine.connection.host, error=text)
            return {}

    async def take_away(self, items: Sequence[Item]) -> None:
        """See :class:`executors.disk.DiskKind`. Jobs take things on the loop that this runs on: nobody comes in between."""
        chosen: dict[Shelf, list[str]] = {}
        for item in items:
            if item.name in self._known:
                shelf, name = self._known[item.name]
                chosen.setdefault(shelf, []).append(name)
        for shelf, names in chosen.items():
            shelf.mark(names)

    async def sweep(self) -> None:
        """See :class:`executors.disk.DiskKind`."""
        await asyncio.gather(*(shelf.sweep() for shelf in self._shelves()))
