"""The uploader against coordinators that are wrong or stubborn: the result always gets through."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest

from runner.coordinator.port import Answer, JobState, JobUpdate, Verdict
from runner.trace import upload
from runner.trace.upload import ReportResult, TraceUploader, UploadSettings


class Text:
    """A log in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def checksum(self) -> str:
        return f"crc32:{zlib.crc32(self.content):08x}"

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


class Stubborn:
    """Answers patches and updates as the test says, and counts them."""

    def __init__(self, patch: Callable[[int], Answer], update: Callable[[int], Answer]) -> None:
        self._patch, self._update = patch, update
        self.patches: list[tuple[int, bytes]] = []
        self.updates: list[JobUpdate] = []

    async def update(self, update: JobUpdate) -> Answer:
        self.updates.append(update)
        return self._update(len(self.updates))

    async def patch_trace(self, content: bytes, *, start: int, debug: bool) -> Answer:
        self.patches.append((start, content))
        return self._patch(len(self.patches))


OK = Answer(verdict=Verdict.OK, status=200)
FINAL = JobUpdate(state=JobState.SUCCESS)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "DEFAULT_INTERVAL_S", 0.001)


def uploader(coordinator: Stubborn, log: Text, *, attempts: int = 2, promised: int = 0) -> TraceUploader:
    return TraceUploader(
        coordinator=coordinator,
        spool=log,
        settings=UploadSettings(attempts=attempts),
        on_cancel=lambda: None,
        on_abort=lambda: None,
        on_send=lambda end: None,
        promised=promised,
    )


async def test_a_server_that_never_takes_the_log_still_gets_the_result() -> None:
    mismatch = Answer(verdict=Verdict.RANGE_MISMATCH, status=416, offset=0)
    server = Stubborn(lambda _: mismatch, lambda number: OK)
    assert await uploader(server, Text(b"log"), attempts=1).report(FINAL) is ReportResult.TAKEN
    assert len(server.patches) == upload.MAX_MISMATCHES


@pytest.mark.parametrize(("verdict", "status"), [(Verdict.TRACE_INVALID, 412), (Verdict.NOT_COMPLETE, 202)])
async def test_a_server_that_is_never_done_lets_the_slot_go(verdict: Verdict, status: int) -> None:
    server = Stubborn(lambda _: OK, lambda _: Answer(verdict=verdict, status=status))
    assert await uploader(server, Text(b"log"), attempts=1).report(FINAL) is ReportResult.UNREPORTED
    assert len(server.updates) == upload.PATIENCE


async def test_an_offset_that_an_earlier_process_reached_is_kept() -> None:
    """The log is written again up to there: nothing is sent twice meanwhile."""
    server = Stubborn(
        lambda number: Answer(verdict=Verdict.RANGE_MISMATCH, status=416, offset=6) if number == 1 else OK, lambda _: OK
    )
    log = Text(b"one\n")
    found = uploader(server, log, promised=6)
    await found.find_offset()
    log.content = b"one\ntwo\nthree\n"
    assert await found.report(FINAL) is ReportResult.TAKEN
    assert server.patches == [(0, b"o"), (6, b"o\nthree\n")]
