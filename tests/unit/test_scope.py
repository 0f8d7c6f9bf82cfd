"""Blocks that can be stopped from outside, and work that is finished although its caller is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from runner.scope import Stopped, StopReason, StopScope, finish


async def test_a_stopped_body_ends_with_the_reason() -> None:
    scope = StopScope()
    asyncio.get_running_loop().call_soon(scope.stop, StopReason.CANCELED)
    with pytest.raises(Stopped) as caught:
        async with scope:
            await asyncio.Event().wait()
    assert caught.value.reason is StopReason.CANCELED
    await asyncio.sleep(0)  # the task itself is clean: nothing is left to be raised


async def test_the_first_reason_wins() -> None:
    scope = StopScope()
    assert scope.stop(StopReason.CANCELED)
    assert not scope.stop(StopReason.ABORTED)
    assert scope.reason is StopReason.CANCELED


async def test_a_scope_that_was_stopped_before_refuses_to_begin() -> None:
    scope = StopScope()
    scope.stop(StopReason.INTERRUPTED)
    with pytest.raises(Stopped):
        async with scope:
            pytest.fail("the body ran")


async def test_the_deadline_stops_the_body_and_is_known_inside_it() -> None:
    scope = StopScope(asyncio.get_running_loop().time() + 0.01)
    seen = None
    with pytest.raises(Stopped) as caught:
        async with scope:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen = scope.reason
                raise
    assert caught.value.reason is StopReason.TIMEOUT
    assert seen is StopReason.TIMEOUT


async def test_stopping_the_outer_scope_passes_through_the_inner_one() -> None:
    outer, inner = StopScope(), StopScope()
    asyncio.get_running_loop().call_soon(outer.stop, StopReason.ABORTED)
    with pytest.raises(Stopped) as caught:
        async with outer, inner:
            await asyncio.Event().wait()
    assert caught.value.reason is StopReason.ABORTED
    assert not inner.stopped


async def test_a_cancel_from_elsewhere_passes_through() -> None:
    async def body() -> None:
        async with StopScope():
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_group_inside_a_stopped_scope_is_awaited() -> None:
    ended = []

    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    scope = StopScope()
    asyncio.get_running_loop().call_later(0.01, scope.stop, StopReason.CANCELED)
    with pytest.raises(Stopped):
        async with scope, asyncio.TaskGroup() as group:
            group.create_task(child())
    assert ended == [True]


async def test_finish_survives_three_cancels_and_then_lets_the_cancel_through() -> None:
    release = asyncio.Event()
    done = []

    async def work() -> str:
        await release.wait()
        done.append(True)
        return "result"

    task = asyncio.create_task(finish(work()))
    for _ in range(3):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_finish_gives_up_on_work_that_takes_too_long_after_a_cancel() -> None:
    task = asyncio.create_task(finish(asyncio.Event().wait(), within_s=0.01))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_finish_passes_results_and_errors_on() -> None:
    async def fails() -> None:
        raise ValueError("no")

    assert await finish(asyncio.sleep(0, "yes")) == "yes"
    with pytest.raises(ValueError, match="no"):
        await finish(fails())
