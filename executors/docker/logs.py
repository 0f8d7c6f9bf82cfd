"""The output of a script, read from the log of its container (``docker-executor.md`` 12.2).

The log is the durable output: whoever reads it sees the same bytes with the same times. It holds the output of all runs of
the container one after the other, so a run begins where the one before it ended. A mark of the script's own, the nonce,
says that the script has begun; it is cut out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from executors.base import Output, Stream
from executors.docker.client import Engine
from executors.docker.confirmed import confirmed
from executors.docker.measures import FiguresCut, Used
from executors.docker.stopping import is_running
from executors.docker.streams import Demultiplexer

# Times are told as finely as the log of a job shows them where many lines come at once: pieces of one time are one piece.
TIME_STEP_NS = 1_000_000
PIECE_BYTES = 256 * 1024
# Records of two streams may stand in the file a moment out of order.
OVERLAP_S = 2
SECOND_BYTES = len("2026-01-02T03:04:05")
ZONE_BYTES = len("+01:00")


@dataclass(slots=True)
class Mark:
    """A place in a container's log, to go on from: ``skip`` bytes behind the first record that is not older than
    ``since_s`` (Unix seconds of the engine's clock)."""

    since_s: int = 0
    skip: int = 0
    _seconds: dict[int, int] = field(default_factory=dict)

    def advance(self, second: int, size: int) -> None:
        """A record was read up to its end."""
        self._seconds[second] = self._seconds.get(second, 0) + size
        since_s = max(self._seconds) - OVERLAP_S
        if since_s > self.since_s and len(self._seconds) > OVERLAP_S + 1:
            self._seconds = {one: count for one, count in self._seconds.items() if one >= since_s}
            self.since_s = since_s
            self.skip = sum(self._seconds.values())
        else:
            self.skip += size

    def copy(self) -> Mark:
        """The same place, which does not move along."""
        return Mark(self.since_s, self.skip, dict(self._seconds))

    def as_json(self) -> dict[str, Any]:
        """For a journal."""
        return {"since_s": self.since_s, "skip": self.skip, "seconds": sorted(self._seconds.items())}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Mark:
        """From a journal."""
        return cls(found["since_s"], found["skip"], {int(second): int(size) for second, size in found["seconds"]})


class LogReader:
    """Reads the output of one run. ``start`` is where the log stood when the run was due.

    ``has_begun`` tells that the nonce was seen; ``end`` is the place behind everything that was read. Neither the nonce nor
    what the script's shell says of its container is output.
    """

    def __init__(self, engine: Engine, container: str, nonce: str, start: Mark) -> None:
        self._engine = engine
        self.container = container
        self._nonce = nonce.encode() + b"\n"
        self._start = start
        self.end = start.copy()
        self.offset = 0
        self.has_begun = False
        self._held = b""
        self._figures = FiguresCut(nonce)
        self._last_ns = 0

    @property
    def used(self) -> Used | None:
        """What the container has used, if its shell has said it."""
        return self._figures.used

    async def read(self, *, follow: bool) -> AsyncGenerator[Output, None]:
        """Output from where the last reading stopped; with ``follow`` up to the end of the container, but for what Podman
        may then leave out: read again, without it.

        Raises :class:`executors.docker.errors.EngineUnreachable` when the connection breaks: read again then.
        """
        params = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": "1" if follow else "0"}
        if self.end.since_s:
            params["since"] = str(self.end.since_s)
        to_skip = self.end.skip
        parts = Demultiplexer()
        async with self._engine.stream("GET", f"/containers/{self.container}/logs", params=params) as response:
            chunks: AsyncIterator[bytes] = aiter(response.content.iter_any())
            if follow and await self._engine.is_podman():
                chunks = confirmed(chunks, lambda: is_running(self._engine, self.container))
            async for chunk in chunks:
                for piece in self._pieces(parts.feed(chunk), to_skip):
                    if isinstance(piece, int):
                        to_skip = piece
                    else:
                        yield piece

    def rewind(self) -> None:
        """Begin again with the run's first byte."""
        self.end = self._start.copy()
        self.offset = 0
        self.has_begun = False
        self._held = b""
        self._figures = FiguresCut(self._figures.nonce)

    def rest(self) -> Output | None:
        """The end of the output, where it was not clear before that it is output."""
        data = self._held + self._figures.rest()
        self._held = b""
        if not data:
            return None
        self.offset += len(data)
        return Output(Stream.STDOUT, self._last_ns, data, self.offset)

    def _pieces(self, frames: list[tuple[int, bytes]], to_skip: int) -> list[Output | int]:
        """The output in frames, neighbours of one stream and time put together; at the end how much is still to be
        passed over."""
        found: list[Output | int] = []
        waiting: list[bytes] = []
        stream = time_ns = size = 0

        def hand_on() -> None:
            nonlocal waiting, size
            if waiting:
                self.offset += size
                found.append(Output(Stream(stream), time_ns, b"".join(waiting), self.offset))
                waiting, size = [], 0

        for kind, payload in frames:
            stamp, _, data = payload.partition(b" ")
            if to_skip:
                passed = min(to_skip, len(data))
                to_skip -= passed
                if passed == len(data):
                    continue
                data = data[passed:]
            at_ns = time_ns_of(stamp)
            self.end.advance(at_ns // 1_000_000_000, len(data))
            if not self.has_begun and kind == Stream.STDOUT:
                data = self._without_nonce(data)
            if self._figures.concern(data):
                data = self._figures.feed(kind, data)
            self._last_ns = rounded_ns = at_ns - at_ns % TIME_STEP_NS
            if (kind, rounded_ns) != (stream, time_ns) or size > PIECE_BYTES:
                hand_on()
                stream, time_ns = kind, rounded_ns
            if data:
                waiting.append(data)
                size += len(data)
        hand_on()
        found.append(to_skip)
        return found

    def _without_nonce(self, data: bytes) -> bytes:
        """The first stream up to and with the nonce, which is cut out; what may be its beginning waits for the rest."""
        data = self._held + data
        before, seen, behind = data.partition(self._nonce)
        if seen:
            self.has_begun = True
            self._held = b""
            return before + behind
        longest = range(min(len(data), len(self._nonce) - 1), 0, -1)
        keep = next((size for size in longest if data.endswith(self._nonce[:size])), 0)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]


_known: dict[bytes, int] = {}


def time_ns_of(stamp: bytes) -> int:
    """``2026-01-02T03:04:05.000000006Z`` as Unix nanoseconds; Podman writes whole seconds of its own zone (``+01:00``)."""
    zone_at = len(stamp) - (1 if stamp.endswith(b"Z") else ZONE_BYTES)
    whole, fraction = stamp[:SECOND_BYTES] + stamp[zone_at:], stamp[SECOND_BYTES + 1 : zone_at]
    second = _known.get(whole)
    if second is None:
        if len(_known) > 64:
            _known.clear()
        second = _known[whole] = int(datetime.fromisoformat(whole.decode()).timestamp())
    return second * 1_000_000_000 + int(fraction.ljust(9, b"0") or b"0")


async def has_begun(engine: Engine, container: str, nonce: str, start: Mark) -> bool:
    """Whether the script of a run has begun, by the log of its container."""
    reader = LogReader(engine, container, nonce, start)
    async for _ in reader.read(follow=False):
        await asyncio.sleep(0)
    return reader.has_begun
