"""Ending what runs in a container (``docker-executor.md`` 10.1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import structlog

from executors.docker.errors import EngineError, EngineUnreachable

if TYPE_CHECKING:
    from executors.docker.client import Engine

log = structlog.get_logger()

TERM_S = 10.0
POLL_S = 0.1
# From the highest pid down, each with a moment to go: a shell hears of it after its children are gone.
TERM_ALL = """
for pid in $(cd /proc 2>/dev/null && ls -d [0-9]* | sort -rn); do
  [ "$pid" = 1 ] && continue
  [ "$pid" = "$$" ] && continue
  kill -TERM "$pid" 2>/dev/null || continue
  for try in 1 2 3 4 5; do
    kill -0 "$pid" 2>/dev/null || break
    sleep 1
  done
done
"""


async def stop_container(
    engine: Engine,
    container: str,
    *,
    grace_s: float,
    all_processes: bool,
    before_kill: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """SIGTERM, then SIGKILL, to everything in a container; returns when it has ended.

    ``all_processes`` tells everybody in it, not only its first process. ``before_kill`` is done where a SIGKILL is needed.
    An engine that is gone is not waited for.
    """
    deadline = time.monotonic() + grace_s
    try:
        if grace_s > 0:
            if all_processes:
                await _terminate(engine, container, min(grace_s, TERM_S))
            else:
                await engine.call(lambda client: client.kill(container, "SIGTERM"))
            while time.monotonic() < deadline:
                if not await is_running(engine, container):
                    return
                await asyncio.sleep(POLL_S)
        if before_kill is not None:
            await before_kill()
        await engine.call(lambda client: client.kill(container))
        async with engine.stream("POST", f"/containers/{container}/wait") as response:
            await response.read()
    except EngineUnreachable as error:
        log.warning("container could not be stopped", container=container, error=str(error))
    except EngineError as error:
        # It has ended, or is gone, already.
        log.debug("container needs no stop", container=container, error=str(error))


async def _terminate(engine: Engine, container: str, limit_s: float) -> None:
    def run(client: Any) -> None:
        made = client.exec_create(container, ["sh", "-c", TERM_ALL], stdout=False, stderr=False, user="0:0", workdir="/")
        client.exec_start(made["Id"], detach=True)

    try:
        async with asyncio.timeout(limit_s):
            await engine.call(run)
    except (TimeoutError, EngineError) as error:
        log.debug("processes were not told to end", container=container, error=str(error))


async def is_running(engine: Engine, container: str) -> bool:
    """Whether a container's first process runs; False when the container is gone."""
    from executors.docker.errors import NotFound

    try:
        found: Any = await engine.call(lambda client: client.inspect_container(container))
    except NotFound:
        return False
    return bool(found["State"]["Running"])
