"""Blocks of work that can be stopped from outside, and work that is finished although its caller is cancelled."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class StopReason(enum.StrEnum):
    """Why a block was stopped. The first reason wins."""

    CANCELED = "canceled"  # the server asks for a graceful cancel
    ABORTED = "aborted"  # the server has ended the job, or does not know it
    TIMEOUT = "timeout"  # the block's own deadline
    INTERRUPTED = "interrupted"  # this process stops
    DETACHED = "detached"  # another process takes over: nothing is to be touched


class Stopped(Exception):
    """A :class:`StopScope` was stopped while its body ran, or before. Control flow, not an error."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class StopScope:
    """``async with scope:`` runs a body that :meth:`stop` ends; then the block raises :class:`Stopped`.

    The body's task is cancelled once, its groups are awaited, and the task itself stays clean. A cancel that comes from
    elsewhere passes through. A scope that is stopped before its body begins refuses to enter. One body at a time, and
    several in a row are fine. ``deadline`` is a time of the running loop's clock. ``on_stop`` hears of the first stop,
    the deadline's included, before anything is cancelled.
    """

    def __init__(self, deadline: float | None = None, *, on_stop: Callable[[StopReason], None] | None = None) -> None:
        self.reason: StopReason | None = None
        self._on_stop = on_stop
        self._deadline = deadline
        self._timer: asyncio.TimerHandle | None = None
        self._timeout: asyncio.Timeout | None = None

    @property
    def stopped(self) -> bool:
        """Whether nothing may begin in this scope any more."""
        return self.reason is not None

    @property
    def deadline(self) -> float | None:
        """When the scope stops by itself."""
        return self._deadline

    def set_deadline(self, deadline: float | None) -> None:
        """Move the deadline of this and later bodies."""
        self._deadline = deadline
        if self._timeout is not None:
            self._arm()

    def stop(self, reason: StopReason) -> bool:
        """Stop the body; False when it was stopped before."""
        if self.reason is not None:
            return False
        self.reason = reason
        if self._on_stop is not None:
            self._on_stop(reason)
        if self._timeout is not None:
            self._timeout.reschedule(asyncio.get_running_loop().time())
        return True

    def _arm(self) -> None:
        self._disarm()
        if self._deadline is not None and not self.stopped:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(self._deadline, self.stop, StopReason.TIMEOUT)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def __aenter__(self) -> StopScope:
        if self.reason is not None:
            raise Stopped(self.reason)
        self._timeout = asyncio.timeout(None)
        await self._timeout.__aenter__()
        self._arm()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._disarm()
        timeout, self._timeout = self._timeout, None
        if timeout is None:
            return
        try:
            await timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise Stopped(self.reason or StopReason.TIMEOUT) from None


async def finish(work: Coroutine[Any, Any, T], *, within_s: float | None = None) -> T:
    """Run ``work`` to its end even while the caller is cancelled, then let the cancel through.

    ``within_s`` bounds the time spent after a cancel; past it the work is cancelled too.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    deadline: float | None = None
    canceled = False
    while not task.done():
        left = None if deadline is None else max(deadline - loop.time(), 0.0)
        try:
            await asyncio.wait([task], timeout=left)
        except asyncio.CancelledError:
            canceled = True
            if within_s is not None and deadline is None:
                deadline = loop.time() + within_s
            continue
        if deadline is not None and loop.time() >= deadline and not task.done():
            task.cancel()
            await asyncio.wait([task])
    if canceled:
        if not task.cancelled():
            task.exception()  # retrieved: the cancel matters more
        raise asyncio.CancelledError
    return task.result()
