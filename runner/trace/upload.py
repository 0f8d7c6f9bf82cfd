"""Brings the spool to the coordinator: patches while the job runs, the rest at its end, then the final update.

The coordinator says what it holds; the spool keeps everything until the end is taken. Rules: ``runner-api.md`` 6 and 7.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from runner.coordinator.port import Answer, JobReports, JobState, JobUpdate, Verdict

log = structlog.get_logger()

CHUNK_BYTES = 1024 * 1024
DEFAULT_INTERVAL_S = 3.0
FORCE_SEND_S = 30.0
FORCE_SEND_MAX_S = 1800.0
FORCE_SEND_FACTOR = 4
# A quiet job must notice a cancel soon. The server's interval is about the log; an update is a small request.
CANCEL_NOTICE_S = 10.0
# The first bytes go out at once, so that a person who looks sees the job begin. A job that ends within this time sends
# one patch in all.
FIRST_PATCH_DELAY_S = 0.05
BACKOFF_MAX_S = 3600.0
# A server that goes on saying "not yet", "send it all again" or "go on there" is asked less often in the end.
PATIENCE = 100
MAX_MISMATCHES = 5
URGENT_PAUSE_S = 1.0


class Log(Protocol):
    """What the uploader needs of a spool."""

    @property
    def size(self) -> int:
        """Bytes stored."""
        ...

    @property
    def checksum(self) -> str:
        """``crc32:%08x`` over them."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """At most ``size`` bytes from ``offset`` on."""
        ...


class ReportResult(enum.Enum):
    """How the final update ended."""

    TAKEN = "taken"  # 200
    REFUSED = "refused"  # 403, 404, Job-Status: the server does not want it
    UNREPORTED = "unreported"  # no answer that counts; to be tried again later


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadSettings:
    """``dynamic_force_send`` stretches the keep-alive with the server's interval; ``attempts`` bounds the final one."""

    debug_trace: bool = False
    dynamic_force_send: bool = False
    attempts: int = 10


class TraceUploader:
    """One job's way to the coordinator. ``run`` ticks while the job runs; ``report`` ends it.

    ``on_cancel`` and ``on_abort`` are called from within ``run``, at most once each. ``on_send`` is called with the end
    offset of every patch before it is sent. ``promised`` is the highest such offset of an earlier process: the log up to
    there comes again, the same to the byte.
    """

    def __init__(
        self,
        *,
        coordinator: JobReports,
        spool: Log,
        settings: UploadSettings,
        on_cancel: Callable[[], None],
        on_abort: Callable[[], None],
        on_send: Callable[[int], None],
        promised: int = 0,
    ) -> None:
        self._coordinator = coordinator
        self._spool = spool
        self._settings = settings
        self._on_cancel = on_cancel
        self._on_abort = on_abort
        self._on_send = on_send
        self._promised = promised
        self._offset = 0
        self._interval_s = DEFAULT_INTERVAL_S
        self._interval_given = False
        self._offset_known = False
        self._last_sent = 0.0
        self._canceling_seen = False
        self._ended = asyncio.Event()
        self._urgent = asyncio.Event()

    @property
    def offset(self) -> int:
        """Where the next patch begins: so much the coordinator has."""
        return self._offset

    def take_interval(self, answer: Answer) -> None:
        """Honour the update interval of an answer."""
        if answer.interval_s:
            self._interval_s = float(answer.interval_s)
            self._interval_given = True

    def hurry(self) -> None:
        """This process must stop soon: waits become short and the number of attempts does not count."""
        self._urgent.set()

    def end(self) -> None:
        """The job has ended: ``run`` returns after the request that is in flight."""
        self._ended.set()

    async def run(self) -> None:
        """Tick until :meth:`end`, or until the server has ended the job."""
        loop = asyncio.get_running_loop()
        self._last_sent = loop.time()
        if await self._sleep(FIRST_PATCH_DELAY_S):
            return
        if self._spool.size > self._offset and not await self._send_chunk():
            return
        patch_at = loop.time() + min(self._interval_s, DEFAULT_INTERVAL_S - FIRST_PATCH_DELAY_S)
        while not await self._sleep(min(patch_at, self._last_sent + self._quiet_s()) - loop.time()):
            interval_s = self._interval_s
            if loop.time() >= patch_at:
                if not await self._send_chunk():
                    return
                patch_at = loop.time() + self._interval_s
            if loop.time() >= self._last_sent + self._quiet_s() and not await self._keep_alive():
                return
            if self._interval_s != interval_s:
                patch_at = loop.time() + self._interval_s  # counts from the answer that brought it

    async def _keep_alive(self) -> bool:
        """Tell the server that the job runs, and hear what it has to say; False when it has ended the job."""
        update = JobUpdate(state=JobState.RUNNING, checksum=self._spool.checksum, bytesize=self._spool.size)
        answer = await self._coordinator.update(update)
        self.take_interval(answer)
        # Only 200 counts as sent (``runner-api.md`` 7.2), but the next try waits for a tick all the same.
        pause_s = self._quiet_s() if answer.verdict is Verdict.OK else self._interval_s
        self._last_sent = asyncio.get_running_loop().time() - self._quiet_s() + pause_s
        return self._react(answer)

    def _quiet_s(self) -> float:
        """How long a job may send nothing before it says that it runs."""
        if self._settings.dynamic_force_send:
            return min(max(FORCE_SEND_FACTOR * self._interval_s, FORCE_SEND_S), FORCE_SEND_MAX_S)
        if self._canceling_seen:
            return FORCE_SEND_S
        return min(self._interval_s, CANCEL_NOTICE_S) if self._interval_given else CANCEL_NOTICE_S

    async def _send_chunk(self) -> bool:
        """Send what fits into one patch; False when the server has ended the job."""
        answer = await self._patch()
        return answer is None or self._react(answer)

    async def _patch(self) -> Answer | None:
        """Send the next chunk, if there is one, and move the offset as the answer says."""
        content = self._spool.read(self._offset, CHUNK_BYTES)
        if not content:
            return None
        end = self._offset + len(content)
        self._on_send(end)
        answer = await self._coordinator.patch_trace(content, start=self._offset, debug=self._settings.debug_trace)
        self.take_interval(answer)
        if answer.verdict is Verdict.OK:
            self._offset = end
            self._mark_sent()
        elif answer.verdict is Verdict.RANGE_MISMATCH:
            self._mark_sent()
            self._resume_at(answer.offset)
        return answer

    def _resume_at(self, offset: int) -> None:
        if offset > max(self._spool.size, self._promised):
            # The server claims bytes that never were. Nothing can be added to such a log, but the result still counts.
            log.error("trace offset beyond the log", offset=offset, size=self._spool.size)
            self._offset = self._spool.size
        else:
            self._offset = offset

    def _mark_sent(self) -> None:
        self._last_sent = asyncio.get_running_loop().time()

    def _react(self, answer: Answer) -> bool:
        if answer.verdict in (Verdict.ABORT, Verdict.GONE):
            self._on_abort()
            return False
        if answer.canceling and not self._canceling_seen:
            self._canceling_seen = True
            self._on_cancel()
        return True

    async def _sleep(self, seconds: float) -> bool:
        """Wait; True as soon as the job has ended."""
        if self._ended.is_set():
            return True
        try:
            await asyncio.wait_for(self._ended.wait(), max(seconds, 0.0))
        except TimeoutError:
            return False
        return True

    async def find_offset(self) -> None:
        """Ask how much of the log the server holds, by offering its first byte: for who adopts a job."""
        content = self._spool.read(0, 1)
        if not content or self._offset_known:
            return
        self._offset_known = True
        answer = await self._coordinator.patch_trace(content, start=0, debug=self._settings.debug_trace)
        self.take_interval(answer)
        if answer.verdict is Verdict.OK:
            self._offset = len(content)
        elif answer.verdict is Verdict.RANGE_MISMATCH:
            self._resume_at(answer.offset)

    async def report(self, final: JobUpdate) -> ReportResult:
        """Send the rest of the log, then the final update, as often as it takes (``runner-api.md`` 7.4)."""
        backoff_s = 1.0
        attempt = 0
        while True:
            attempt += 1
            self._interval_s = DEFAULT_INTERVAL_S
            last = attempt >= self._settings.attempts and not self._urgent.is_set()
            result = await self._attempt(final, give_up_log=last)
            if result is not None:
                return result
            if last:
                log.error("Final update not taken, kept for later", attempts=attempt)
                return ReportResult.UNREPORTED
            await self._pause(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    async def _attempt(self, final: JobUpdate, *, give_up_log: bool) -> ReportResult | None:
        for _ in range(PATIENCE):
            flushed = await self._flush()
            if not flushed:
                await self._pause(self._interval_s)
                if not give_up_log:
                    return None
                # The log cannot be delivered; the result of the job must not be lost with it.
                log.error("Job log not delivered", sent=self._offset, size=self._spool.size)
            answer = await self._coordinator.update(self._complete(final))
            self.take_interval(answer)
            match answer.verdict:
                case Verdict.OK:
                    return ReportResult.TAKEN
                case Verdict.ABORT | Verdict.GONE:
                    # A final update that was taken answers with the final state, which reads like an abort.
                    return ReportResult.TAKEN if answer.status == 200 else ReportResult.REFUSED
                case Verdict.NOT_COMPLETE:
                    await self._pause(self._interval_s)
                case Verdict.TRACE_INVALID:
                    self._offset = 0
                    await self._pause(self._interval_s)
                case Verdict.RANGE_MISMATCH | Verdict.FAILED:
                    await self._pause(self._interval_s)
                    return None
        return None

    def _complete(self, final: JobUpdate) -> JobUpdate:
        return JobUpdate(
            state=final.state,
            failure_reason=final.failure_reason,
            exit_code=final.exit_code,
            checksum=self._spool.checksum,
            bytesize=self._spool.size,
        )

    async def _flush(self) -> bool:
        """Send everything that is left; False when a patch failed and should be tried again."""
        mismatches = 0
        while self._offset < self._spool.size:
            answer = await self._patch()
            if answer is None:
                return True
            match answer.verdict:
                case Verdict.OK:
                    mismatches = 0
                case Verdict.ABORT:
                    return True
                case Verdict.GONE:
                    log.error("Job log not delivered", sent=self._offset, size=self._spool.size, status=answer.status)
                    return True
                case Verdict.RANGE_MISMATCH:
                    mismatches += 1
                    if mismatches == MAX_MISMATCHES:
                        return False
                    await self._pause(self._interval_s)
                case _:
                    return False
        return True

    async def _pause(self, seconds: float) -> None:
        """Sleep; while the process stops, one second at most."""
        if not self._urgent.is_set():
            try:
                await asyncio.wait_for(self._urgent.wait(), seconds)
            except TimeoutError:
                return
        await asyncio.sleep(min(seconds, URGENT_PAUSE_S))
