"""What is written beside a script, by services, and stands between the lines of its output.

Each text is stored with the place in the output at which it stands before it is put into the log. So a process that reads
the output of the script again puts the same texts at the same places, and the place's position goes on where they end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import msgspec
import structlog

from executors.base import Environment, KeepsCompany
from executors.errors import ExecutorError
from executors.file_operations import write_all

log = structlog.get_logger()

FILE = "company.jsonl"
CATCH_UP_S = 10.0


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """A text in the output of a run, behind its first ``offset`` bytes; ``position`` is that of
    :meth:`executors.base.KeepsCompany.company`."""

    run: str
    offset: int
    time_ns: int
    text: str
    position: str


class Company:
    """The texts of one job. For a place that keeps none there is never one."""

    def __init__(self, record_dir: Path, environment: Environment) -> None:
        self._path = record_dir / FILE
        self._place = environment if isinstance(environment, KeepsCompany) else None

    def resume(self) -> None:
        """Let the place go on where the last text ended."""
        for last in deque(self._read(), maxlen=1):
            if self._place is not None:
                self._place.resume_company(last.position)

    async def catch_up(self) -> None:
        """Wait for what was written up to now."""
        if self._place is not None:
            with contextlib.suppress(TimeoutError, ExecutorError):
                async with asyncio.timeout(CATCH_UP_S):
                    await self._place.catch_up()

    def take(self, run: str, offset: int, time_ns: int) -> Said | None:
        """What is new, stored as standing at this place of a run's output."""
        text, position = self._place.company() if self._place is not None else ("", "")
        if not text:
            return None
        said = Said(run=run, offset=offset, time_ns=time_ns, text=_plain(text), position=position)
        try:
            self._store(said)
        except OSError as error:
            log.warning("what services write could not be stored", error=error.strerror)
            return None
        return said

    def _store(self, said: Said) -> None:
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, msgspec.json.encode(said) + b"\n")
        finally:
            os.close(fd)

    def of(self, run: str) -> Iterator[Said]:
        """The texts of a run that an earlier process has stored, in their order."""
        return (said for said in self._read() if said.run == run)

    def _read(self) -> Iterator[Said]:
        if not self._path.exists():
            return
        whole = 0
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    # Torn by the end of the process that wrote it: its text never came into the log.
                    os.truncate(self._path, whole)
                    return
                whole += len(line)
                yield msgspec.json.decode(line, type=Said)


def _plain(text: str) -> str:
    """Text that JSON can hold: bytes that are no UTF-8 are replaced, as the log would do."""
    return text.encode(errors="surrogateescape").decode(errors="replace")
