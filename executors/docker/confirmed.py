"""What a follower of a log can be trusted with.

When a container ends Podman tells its followers to stop, and they leave out lines on their way to the end of the log: some, not
the last ones only. What they have said while the container still ran is whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

PAUSE_S = 0.25


async def confirmed(chunks: AsyncIterator[bytes], is_running: Callable[[], Awaitable[bool]]) -> AsyncGenerator[bytes, None]:
    """The chunks that had come when the container was last seen running; ends with the container, or with the chunks.

    Looks four times a second at most, and only when there is something to hand on.
    """
    waiting: list[bytes] = []
    due_s = 0.0
    coming = asyncio.ensure_future(anext(chunks, None))
    try:
        while True:
            patience_s = max(0.0, due_s - time.monotonic()) if waiting else None
            await asyncio.wait([coming], timeout=patience_s)
            if coming.done():
                chunk = coming.result()
                if chunk is None:
                    return
                waiting.append(chunk)
                coming = asyncio.ensure_future(anext(chunks, None))
            if waiting and time.monotonic() >= due_s:
                found, waiting = b"".join(waiting), []
                if not await is_running():
                    return
                due_s = time.monotonic() + PAUSE_S
                yield found
    finally:
        coming.cancel()
        await asyncio.wait([coming])
