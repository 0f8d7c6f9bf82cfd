"""Scripts that ran out of memory (``docker-executor.md`` 10.4)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from executors.docker.errors import EngineUnreachable, NotFound

if TYPE_CHECKING:
    from executors.docker.client import Engine

KILLED = (137, 143, 255)
# How much later than the end of a container an engine may say that memory ran out.
OOM_SAID_S = 2.0
POLL_S = 0.5
MIB = 1024 * 1024


async def memory_remarks(
    engine: Engine, container: str, about: Any, *, exit_code: int, was_stopped: bool, oom_kills: int
) -> list[str]:
    """What to say of the memory of a container that has ended; ``about`` is what the engine says of it, and ``was_stopped``
    tells that the runner has ended it.

    Of one that was killed an engine may say a little later that it ran out of memory. Podman does not find what it was told of
    that, so there ``oom_kills`` count: the processes for which the container's own cgroup counts it.
    """
    limit = int(about["HostConfig"].get("Memory") or 0)
    if exit_code == 0:
        return []
    if await engine.is_podman():
        return [_said(limit)] if oom_kills else []
    if exit_code in KILLED and limit and not was_stopped:
        end = time.monotonic() + OOM_SAID_S
        while not about["State"].get("OOMKilled") and time.monotonic() < end:
            await asyncio.sleep(POLL_S)
            try:
                about = await engine.call(lambda client: client.inspect_container(container))
            except (NotFound, EngineUnreachable):
                break
    return [_said(limit)] if about["State"].get("OOMKilled") else []


def _said(limit_bytes: int) -> str:
    shown = f" (limit {limit_bytes // MIB} MiB)" if limit_bytes else ""
    return f"Container was out of memory{shown}"
