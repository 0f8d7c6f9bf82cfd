"""Go stores as the disk budget sees them: each generation is one thing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from executors.disk import Item
from runner.gocache.generation import Generation, take_away
from runner.gocache.stores import Stores


class GoStores:
    """The kind ``go``. Sizes are those that were found when jobs had ended."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    @property
    def name(self) -> str:
        """The key of ``[pyrunner.disk]``."""
        return "go"

    async def items(self) -> Sequence[Item]:
        """See :class:`executors.disk.DiskKind`."""
        return [self._item(generation) for generation in self._stores.generations()]

    def _item(self, generation: Generation) -> Item:
        facts, about = generation.facts, generation.path.stat()
        return Item(
            name=str(generation.path),
            size_bytes=facts.size_bytes,
            last_used_ns=facts.used_at_ns or about.st_mtime_ns,
            in_use=self._stores.is_held(generation),
            device=about.st_dev,
        )

    async def take_away(self, items: Sequence[Item]) -> None:
        """See :class:`executors.disk.DiskKind`. Jobs get stores on the loop that this runs on: nobody comes in between."""
        for item in items:
            generation = Generation(Path(item.name))
            if generation.path.is_dir() and not self._stores.is_held(generation):
                take_away(generation.path)

    async def sweep(self) -> None:
        """See :class:`executors.disk.DiskKind`."""
        await asyncio.to_thread(self._stores.remove_unused)
