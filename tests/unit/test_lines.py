"""Lines of stages that the runner carries out itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runner.job.lines import Lines, Move, meter, meter_frequency
from runner.trace.log import JobLog, TraceSettings
from runner.trace.spool import Spool


def a_log(tmp_path: Path, *masks: str) -> tuple[JobLog, Path]:
    path = tmp_path / "trace"
    return JobLog(Spool(path, 1 << 20), TraceSettings(masks=masks, timestamps=False)), path


def test_a_line_has_the_shape_of_the_reference(tmp_path: Path) -> None:
    log, path = a_log(tmp_path, "s3cret")
    stage = log.open_stage()
    lines = Lines(stage)
    lines.info("a: found 1 matching artifact files and directories")
    lines.warning("Retrying...", error="x s3cret", context="up")
    lines.fatal("too large")
    stage.close(0)
    assert path.read_bytes() == (
        b"a: found 1 matching artifact files and directories\x1b[0;m \n"
        b"\x1b[0;33mWARNING: Retrying...                              \x1b[0;m "
        b" \x1b[0;33mcontext\x1b[0;m=up \x1b[0;33merror\x1b[0;m=x [MASKED]\n"
        b"\x1b[31;1mFATAL: too large                                  \x1b[0;m \n"
    )


async def test_the_meter_shows_what_was_moved(tmp_path: Path) -> None:
    log, path = a_log(tmp_path)
    stage = log.open_stage()
    lines = Lines(stage)
    async with meter(lines, Move.UPLOAD_ARTIFACTS, 0.001) as moved:
        await asyncio.sleep(0.01)
        moved.add(5_000_000)
    stage.close(0)
    assert lines.tally.take() == {"up": 5_000_000}
    text = path.read_bytes().decode()
    assert text.startswith("\rUploading artifacts 0 B (0 B/s)")
    assert "\rUploading artifacts 5.00 MB (" in text
    assert text.endswith("\n")


async def test_no_meter_without_a_frequency(tmp_path: Path) -> None:
    log, path = a_log(tmp_path)
    stage = log.open_stage()
    lines = Lines(stage)
    async with meter(lines, Move.UPLOAD_ARTIFACTS, meter_frequency("", lines)) as moved:
        moved.add(5)
    assert path.read_bytes() == b""
    assert meter_frequency("often", lines) == 0.0
    assert b"TRANSFER_METER_FREQUENCY: expected a duration got 'often'" in path.read_bytes()
