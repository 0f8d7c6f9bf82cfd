"""The pool of job slots: ``concurrent`` of them, resizable while jobs run."""

from __future__ import annotations

import asyncio


class Slots:
    """Counts slots that are taken by requests and jobs.

    Lowering ``total`` never touches what is taken: slots drain as they are given back.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._waiting = 0
        self._free_event = asyncio.Event()

    @property
    def total(self) -> int:
        """The configured size."""
        return self._total

    @property
    def used(self) -> int:
        """Slots taken; above ``total`` for a while after it was lowered."""
        return self._used

    @property
    def free(self) -> int:
        """Slots that may be taken now."""
        return max(self._total - self._used, 0)

    async def take(self) -> None:
        """Take a slot, waiting for a free one."""
        self._waiting += 1
        try:
            while self._used >= self._total:
                self._free_event.clear()
                await self._free_event.wait()
        finally:
            self._waiting -= 1
        self._used += 1

    def try_take(self) -> bool:
        """Take a slot if one is free and nobody waits for it."""
        if self._used >= self._total or self._waiting:
            return False
        self._used += 1
        return True

    def occupy(self) -> None:
        """Take a slot for a job that runs already, whatever the size of the pool."""
        self._used += 1

    def give(self) -> None:
        """Give a slot back."""
        self._used -= 1
        self._wake()

    def resize(self, total: int) -> None:
        """Change the size of the pool."""
        self._total = total
        self._wake()

    def _wake(self) -> None:
        if self._used < self._total:
            self._free_event.set()
