"""What running jobs work with, and what is just being taken away: never the same thing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from executors.disk import Item
from runner.disk.directories import covers


class Holds:
    """Directories by their absolute paths; one that is held holds all below it."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._going: dict[str, asyncio.Event] = {}

    def is_held(self, item: Item) -> bool:
        """Whether a job works with it, or it is on its way out already."""
        return item.name in self._going or any(covers(path, item.name) for path in self._held)

    def hold(self, paths: Sequence[str]) -> None:
        """Keep directories from here on, without looking: nothing can be on its way out yet."""
        self._held.update(paths)

    def release(self, paths: Sequence[str]) -> None:
        """The end of one hold on each."""
        self._held -= Counter(paths)

    @asynccontextmanager
    async def held(self, paths: Sequence[str]) -> AsyncIterator[None]:
        """Hold directories; begins once nothing of them is on its way out."""
        self.hold(paths)
        try:
            while leaving := [gone for name, gone in self._going.items() if any(covers(path, name) for path in paths)]:
                await leaving[0].wait()
            yield
        finally:
            self.release(paths)

    @contextmanager
    def going(self, items: Sequence[Item]) -> Iterator[list[Item]]:
        """Those of the items that nobody holds: no job begins to use them inside."""
        chosen = [item for item in items if not self.is_held(item)]
        gone = asyncio.Event()
        self._going.update((item.name, gone) for item in chosen)
        try:
            yield chosen
        finally:
            for item in chosen:
                self._going.pop(item.name, None)
            gone.set()
