"""Ends a job that cannot be run at all, so that the coordinator does not wait for it until its timeout."""

from __future__ import annotations

import zlib
from pathlib import Path

from runner.coordinator.port import JobReports, JobState, JobUpdate, Verdict
from runner.job.outcome import Outcome, Reason

SETTLED = (Verdict.OK, Verdict.NOT_COMPLETE, Verdict.ABORT, Verdict.GONE)


async def refuse(calls: JobReports, text: str, *, trace: Path | None = None) -> bool:
    """Report the job failed; False when the coordinator could not be told. ``text`` is put at the end of its log, of which
    the coordinator may have the beginning of ``trace`` already."""
    outcome = Outcome(reason=Reason.SYSTEM, message=text)
    line = f"\x1b[31;1mERROR: {outcome.last_line}\x1b[0;m\n".encode()
    held = b""
    answer = await calls.patch_trace(line, start=0, debug=False)
    if answer.verdict is Verdict.RANGE_MISMATCH:
        held = _beginning(trace, answer.offset)
        await calls.patch_trace(line, start=answer.offset, debug=False)
    log = held + line
    update = JobUpdate(
        state=JobState.FAILED,
        failure_reason=outcome.reason,
        checksum=f"crc32:{zlib.crc32(log):08x}",
        bytesize=len(log),
    )
    return (await calls.update(update)).verdict in SETTLED


def _beginning(trace: Path | None, size: int) -> bytes:
    if trace is None:
        return b""
    try:
        with trace.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""
