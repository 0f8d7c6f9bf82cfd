"""Lines of a stage that the runner itself carries out, where the reference runs a helper program."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from executors.base import Output, Stream
from runner.archive.match import Level, Line
from runner.config.duration import format_duration, parse_duration
from runner.coordinator.port import ArtifactAnswer
from runner.identity import short_token
from runner.job.costs import DOWN, UP, Tally
from runner.trace.log import StageLog

METER = "TRANSFER_METER_FREQUENCY"
WAITING = "Waiting before making the next call"


class Move(enum.StrEnum):
    """What is moved, as the meter calls it."""

    UPLOAD_ARTIFACTS = "Uploading artifacts"
    DOWNLOAD_ARTIFACTS = "Downloading artifacts"
    UPLOAD_CACHE = "Uploading cache"
    DOWNLOAD_CACHE = "Downloading cache"

    @property
    def direction(self) -> str:
        """What is counted."""
        return UP if self in (Move.UPLOAD_ARTIFACTS, Move.UPLOAD_CACHE) else DOWN


class Lines:
    """Writes into the log of a stage, stamped with the present time. ``tally`` counts what the stage moves and finds."""

    def __init__(self, stage: StageLog, tally: Tally | None = None) -> None:
        self._stage = stage
        self.tally = tally or Tally()

    def notice(self, text: str) -> None:
        """A green line."""
        self._stage.notice(text, time.time_ns())

    def odd(self, text: str) -> None:
        """A yellow line, without the word WARNING."""
        self._stage.warning(text, time.time_ns())

    def say(self, level: Level, text: str, **facts: object) -> None:
        """A line with facts behind it."""
        self._stage.tool(level, text, time.time_ns(), facts)

    def info(self, text: str, **facts: object) -> None:
        """Something went as it should."""
        self.say(Level.INFO, text, **facts)

    def warning(self, text: str, **facts: object) -> None:
        """Something is odd; the work goes on."""
        self.say(Level.WARNING, text, **facts)

    def error(self, text: str, **facts: object) -> None:
        """Something failed."""
        self.say(Level.ERROR, text, **facts)

    def fatal(self, text: str) -> None:
        """The stage fails."""
        self.say(Level.FATAL, text)

    def show(self, lines: Iterable[Line]) -> None:
        """Lines that somebody else worked out."""
        for line in lines:
            self.say(line.level, line.text)

    def say_wait(self, wait_s: float, method: str, url: str) -> None:
        """A server is given time before the next request."""
        self.info(WAITING, duration=format_duration(wait_s), method=method, url=url)

    def output(self, piece: Output) -> None:
        """Output of a program."""
        self._stage.write(piece.stream, piece.data, piece.time_ns)

    def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self._stage.write(Stream.STDERR, data, time.time_ns())


def facts_of(answer: ArtifactAnswer, *, job_id: int, token: str) -> dict[str, object]:
    """What stands behind a line about a transfer for a job."""
    facts: dict[str, object] = {"correlation_id": answer.correlation_id, "id": job_id, "token": short_token(token)}
    return facts if answer.status < 0 else {**facts, "status": answer.status}


class Meter:
    """Shows how much has been moved, again and again in one line of the log."""

    def __init__(self, lines: Lines, move: Move) -> None:
        self._lines = lines
        self._move = move
        self._began = time.monotonic()
        self._moved = 0

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._moved += count
        self._lines.tally.add(self._move.direction, count)

    def show(self) -> None:
        """The present state, over the one before."""
        speed = self._moved / max(time.monotonic() - self._began, 1e-6)
        text = f"{self._move} {_size(self._moved)} ({_size(speed, digits=1)}/s)"
        self._lines.raw(f"\r{text}                ".encode())


@asynccontextmanager
async def meter(lines: Lines, move: Move, frequency_s: float) -> AsyncIterator[Meter]:
    """A meter that shows itself every so often; never with a frequency of 0."""
    found = Meter(lines, move)
    if frequency_s <= 0:
        yield found
        return

    async def run() -> None:
        while True:
            found.show()
            await asyncio.sleep(frequency_s)

    task = asyncio.create_task(run())
    try:
        yield found
    finally:
        task.cancel()
        found.show()
        lines.raw(b"\n")


def meter_frequency(text: str | None, lines: Lines) -> float:
    """Seconds between two looks at the meter; 0 where there is none, which a malformed value means too."""
    try:
        return parse_duration(text) if text else 0.0
    except ValueError:
        lines.warning(f"{METER}: expected a duration got {text!r}, no transfer meter is shown")
        return 0.0


def _size(count: float, *, digits: int = 2) -> str:
    unit = "B"
    for larger in ("kB", "MB", "GB"):
        if count < 1000:
            break
        count, unit = count / 1000, larger
    return f"{count:.{0 if unit == 'B' else digits}f} {unit}"
