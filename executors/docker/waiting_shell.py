"""The shell of the build container, where it is started while the sources are fetched: it waits for the first script."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog

from executors.errors import ExecutorError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.journal import Journal
    from executors.docker.streams import Hijacked

log = structlog.get_logger()

# Variables that name files which are read when a shell starts, and those may be among the sources.
READ_AT_START = frozenset({"BASH_ENV", "LD_AUDIT", "LD_PRELOAD"})


async def connect(engine: Engine, container: str) -> Hijacked:
    """Start a container, and give the input of its shell. Raises :class:`ExecutorError`."""
    shell = await engine.hijack(f"/containers/{container}/attach", params={"stream": "1", "stdin": "1"})
    try:
        await engine.call(lambda client: client.start(container))
    except BaseException:
        shell.close()
        raise
    return shell


class WaitingShell:
    """The shell that waits for the first script of one job. ``created`` gives the container of the next script."""

    def __init__(self, engine: Engine, journal: Journal, created: Callable[[], Awaitable[str]]) -> None:
        self._engine = engine
        self._journal = journal
        self._created = created
        self._waking: asyncio.Task[Hijacked] | None = None

    def begin(self) -> None:
        """Begin to start it. What goes wrong shows when the container is needed."""
        self._waking = asyncio.create_task(self._wake())
        self._waking.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def _wake(self) -> Hijacked:
        container = await self._created()
        if await self._engine.is_podman():
            # It may forget the input of a container that waits.
            raise ExecutorError("not on this engine")
        self._journal.note("early", container)
        return await connect(self._engine, container)

    async def taken(self) -> Hijacked | None:
        """Its input, which is the caller's from then on, once; None where there is no such shell."""
        waking, self._waking = self._waking, None
        if waking is None:
            return None
        try:
            return await waking
        except ExecutorError as error:
            log.debug("container could not be started early", error=str(error))
            return None

    def is_lost_in(self, container: str) -> bool:
        """Whether a container that has run no script yet had such a shell: one that nobody has hold of reads nothing any
        more."""
        return self._journal.find("early", container) is not None and self._journal.find("used", container) is None

    async def close(self) -> None:
        """Let go of it."""
        waking, self._waking = self._waking, None
        if waking is None:
            return
        waking.cancel()
        await asyncio.wait([waking])
        if not waking.cancelled() and waking.exception() is None:
            waking.result().close()
