"""Ends a job that cannot be run at all, so that the coordinator does not wait for it until its timeout."""

from __future__ import annotations

import zlib

from runner.coordinator.port import JobCoordinator, JobState, JobUpdate, Verdict
from runner.job.outcome import Outcome, Reason

SETTLED = (Verdict.OK, Verdict.NOT_COMPLETE, Verdict.ABORT, Verdict.GONE)


async def refuse(calls: JobCoordinator, text: str) -> bool:
    """Report the job failed; False when the coordinator could not be told. ``text`` is put at the end of its log."""
    outcome = Outcome(reason=Reason.SYSTEM, message=text)
    line = f"\x1b[31;1mERROR: {outcome.last_line}\x1b[0;m\n".encode()
    answer = await calls.patch_trace(line, start=0, debug=False)
    is_whole = answer.verdict is Verdict.OK
    if answer.verdict is Verdict.RANGE_MISMATCH:
        await calls.patch_trace(line, start=answer.offset, debug=False)
    update = JobUpdate(
        state=JobState.FAILED,
        failure_reason=outcome.reason,
        checksum=f"crc32:{zlib.crc32(line):08x}" if is_whole else "",
        bytesize=len(line) if is_whole else 0,
    )
    return (await calls.update(update)).verdict in SETTLED
