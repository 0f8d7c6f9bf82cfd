"""The log of a container, as engines give it: times, and a beginning that comes in parts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

import pytest

from executors.docker.client import Engine
from executors.docker.confirmed import confirmed
from executors.docker.connection import Connection
from executors.docker.logs import LogReader, Mark, time_ns_of

NONCE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("stamp", "time_ns"),
    [
        (b"2026-01-02T03:04:05.000000006Z", 1767323045_000000006),
        (b"2026-01-02T03:04:05Z", 1767323045_000000000),
        (b"2026-01-02T04:04:05+01:00", 1767323045_000000000),
        (b"2026-01-02T01:34:05.5-01:30", 1767323045_500000000),
    ],
)
def test_times_of_every_engine(stamp: bytes, time_ns: int) -> None:
    assert time_ns_of(stamp) == time_ns


@pytest.mark.parametrize("size", [1, 2, 5, 31, 32, 33, 100])
@pytest.mark.parametrize("before", [b"", b"from an entrypoint\n", b"0", NONCE[:5].encode()])
def test_nonce_is_cut_out_wherever_the_engine_divides(size: int, before: bytes) -> None:
    """Podman hands on what a program has written so far, whether a line is whole or not."""
    reader = LogReader(Engine(Connection()), "container", NONCE, Mark())
    stream = before + NONCE.encode() + b"\nout\n"
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    found = b""
    for piece in pieces:
        for output in reader._pieces([(1, b"2026-01-02T03:04:05Z " + piece)], 0):
            found += output.data if not isinstance(output, int) else b""
    assert reader.has_begun
    assert found == before + b"out\n"


def test_what_only_looks_like_a_nonce_is_output() -> None:
    reader = LogReader(Engine(Connection()), "container", NONCE, Mark())
    found = b"".join(
        output.data
        for output in reader._pieces([(1, b"2026-01-02T03:04:05Z x" + NONCE[:9].encode())], 0)
        if not isinstance(output, int)
    )
    rest = reader.rest()
    assert rest is not None
    assert found + rest.data == b"x" + NONCE[:9].encode()


async def test_only_what_came_while_the_container_ran_is_taken() -> None:
    """Podman leaves lines out after the end of a container."""
    may_end = asyncio.Event()

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"one"
        yield b"two"
        await may_end.wait()
        yield b"four"

    async def is_running() -> bool:
        return not may_end.is_set()

    found = b""
    async for piece in confirmed(chunks(), is_running):
        found += piece
        if found == b"onetwo":
            may_end.set()
    assert found == b"onetwo"


async def test_a_follower_that_is_stopped_leaves_nothing_behind() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"one"
        await asyncio.Event().wait()

    async def is_running() -> bool:
        return True

    async with contextlib.aclosing(confirmed(chunks(), is_running)) as pieces:
        assert await anext(pieces) == b"one"
    assert asyncio.all_tasks() == {asyncio.current_task()}
