"""What services have used. Of one that has ended nobody can say it any more, so each is looked at while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from executors.docker.measures import Used, stats_of

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.journal import Journal

FACT = "used by service"
# The first looks follow each other like this; later ones after a part of the time that has passed, so what is missing of a
# service that ends is that part at most.
LOOK_S = 0.5
PART = 0.1


class ServiceUsage:
    """The containers of one job's services; what they have used is in the journal, for whoever adopts the job."""

    def __init__(self, engine: Engine, journal: Journal) -> None:
        self._engine = engine
        self._journal = journal
        self._containers: set[str] = set()
        self._looking: list[asyncio.Task[None]] = []

    def watch(self, containers: Iterable[str]) -> None:
        """Look at them until they end, or :meth:`close`."""
        for container in containers:
            self._containers.add(container)
            task = asyncio.create_task(self._watch(container), name="usage of a service")
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            self._looking.append(task)

    async def _watch(self, container: str) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            await asyncio.sleep(max(LOOK_S, (loop.time() - began) * PART))
            if not await self._look(container):
                return

    async def _look(self, container: str) -> bool:
        used = await stats_of(self._engine, container)
        if used is not None:
            self._journal.note(FACT, container, **used.as_json())
        return used is not None

    async def found(self) -> list[Used]:
        """What each has used: up to now, or up to the last look before it ended."""
        await asyncio.gather(*(self._look(container) for container in self._containers))
        return [Used.from_json(one) for one in self._journal.all(FACT).values()]

    def close(self) -> None:
        """Look no more."""
        for task in self._looking:
            task.cancel()
        self._looking.clear()
