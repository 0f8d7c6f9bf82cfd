"""What executors share whose jobs run under a supervisor on this host: runs, their output, their end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import structlog

from executors.accounts import Account
from executors.base import ExitStatus, JobSpec, Output, Stream, Usage
from executors.errors import EnvironmentLost, PrepareError
from executors.frames import FRAME
from executors.registry import HostSettings
from executors.supervision import SupervisorLink, WarmParent, is_supervised
from executors.usage import FILE as USAGE_FILE

log = structlog.get_logger()

READ_BYTES = 1024 * 1024
LOCK_POLL_S = 0.05
SUPERVISOR_TRIES = 10


class SupervisedExecutor:
    """What all jobs of one such executor share: the warm parent of their supervisors."""

    def __init__(self, host: HostSettings) -> None:
        self._host = host
        self.parent = WarmParent()

    async def open(self) -> None:
        """Start the warm parent, so that the first job does not wait for it."""
        self.parent.start()

    def expect(self, record_dir: Path) -> None:
        """Have the supervisor of a job forked while the rest of the job is being found out."""
        self.parent.expect(record_dir)

    async def close(self) -> None:
        """Let the warm parent end; supervisors and what they run go on."""
        self.parent.close()


class SupervisedPlace:
    """The runs of one job. A run is a directory of the record, named for what it is and its number (``run-1``)."""

    def __init__(self, parent: WarmParent, spec: JobSpec) -> None:
        self._parent = parent
        self._spec = spec
        self._link = SupervisorLink(spec.record_dir)
        self._numbers = 0
        self._alive: set[str] = set()
        self._remarks: list[tuple[str, str]] = []

    def remarks(self) -> Sequence[tuple[str, str]]:
        """The line of the prepare stage, once there is one."""
        lines, self._remarks = self._remarks, []
        return lines

    async def _connect(self, user: Account) -> bool:
        """Find the supervisor, or start it; whether it is a new one, which no earlier daemon has started."""
        if self._link.connected:
            return False
        request = {
            "roots": [self._spec.project_dir, self._spec.tmp_dir],
            "base": self._spec.builds_root,
            "deadline": self._spec.deadline_unix_s,
            "orphan_grace": self._spec.orphan_grace_s,
            "user": {"uid": user.uid, "gid": user.gid, "groups": list(user.groups)} if user.switch else None,
            "mounts": [dataclasses.asdict(mount) for mount in self._spec.mounts],
        }
        for attempt in range(1, SUPERVISOR_TRIES + 1):
            await self._parent.spawn(self._spec.record_dir)
            try:
                await self._link.connect()
                answer = await self._link.call("begin", **request)
            except EnvironmentLost as error:
                # It was just ending, with nothing left to do and nobody connected; the next try starts another.
                if attempt == SUPERVISOR_TRIES:
                    raise PrepareError(str(error)) from error
                await asyncio.sleep(LOCK_POLL_S)
            else:
                # A supervisor knows the runs that it started; those of an earlier one that left no status are lost.
                self._alive = set(answer["runs"])
                return bool(answer["new"])
        raise AssertionError("the last try returns or raises")

    async def started(self, run: str) -> bool:
        """Whether a process was ever forked for this run."""
        return (self._spec.record_dir / f"run-{run}" / "started").exists()

    async def ended(self, run: str) -> bool:
        """Whether the supervisor has written the run's status."""
        return (self._spec.record_dir / f"run-{run}" / "status").exists()

    async def usage(self) -> Usage | None:
        """What the supervisor has added up, or left behind."""
        try:
            found = self._link.usage
            if found is None and self._link.connected:
                found = await self._link.call("usage")
            elif found is None:
                found = json.loads(self._usage_file().read_bytes())
            return Usage(cpu_user_s=found["user_s"], cpu_system_s=found["system_s"], max_rss_bytes=found["max_rss_bytes"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _usage_file(self) -> Path:
        return self._spec.record_dir / USAGE_FILE

    async def _begin(self, name: str, **request: Any) -> None:
        """Have the supervisor start a program in the directory of a run. Raises :class:`PrepareError`."""
        self._alive.add(name)
        self._link.usage = None
        answer = await self._link.call("start", run=name, **request)
        if "error" in answer:
            raise PrepareError(answer["error"])

    async def follow(self, run: str, offset: int = 0) -> AsyncIterator[Output]:
        """Frames from ``offset`` on, until the run's status is there."""
        async for piece in self._follow(f"run-{run}", offset):
            yield piece

    async def _follow(self, name: str, offset: int) -> AsyncIterator[Output]:
        directory = self._spec.record_dir / name
        try:
            fd = os.open(directory / "output", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            reader = FrameReader(fd, offset)
            while True:
                self._link.moved.clear()
                # Asked before the last reading: what there is then is all.
                over = (directory / "status").exists() or self._is_lost(name)
                while pieces := reader.read(READ_BYTES):
                    for piece in pieces:
                        yield piece
                    await asyncio.sleep(0)
                if over:
                    return
                await self._next_move()
        finally:
            os.close(fd)

    async def _next_move(self) -> None:
        """Wait for news. A supervisor that has just died may hold its lock a moment longer than its connection."""
        if self._link.connected:
            await self._link.moved.wait()
        else:
            await asyncio.sleep(LOCK_POLL_S)

    def _is_lost(self, name: str) -> bool:
        """Whether nobody is left who could write the status of a run."""
        if self._link.connected:
            return name not in self._alive
        return not is_supervised(self._spec.record_dir)

    async def wait(self, run: str) -> ExitStatus:
        """The status that the supervisor leaves behind."""
        return await self._wait(f"run-{run}")

    async def _wait(self, name: str) -> ExitStatus:
        path = self._spec.record_dir / name / "status"
        while True:
            self._link.moved.clear()
            try:
                return _status(json.loads(path.read_bytes()))
            except FileNotFoundError:
                pass
            if self._is_lost(name):
                if path.exists():
                    continue
                raise EnvironmentLost("the script is gone without a result (was the host restarted?)")
            await self._next_move()

    async def discard(self, run: str) -> None:
        """Tell the supervisor to drop further output."""
        if self._link.connected:
            await self._link.call("discard", run=f"run-{run}")

    def _new_directory(self, kind: str) -> str:
        """A directory for a run that needs no name of its own: ``<kind>-<number>``."""
        while True:
            self._numbers += 1
            name = f"{kind}-{self._numbers}"
            try:
                (self._spec.record_dir / name).mkdir(mode=0o700)
            except FileExistsError:
                continue
            return name

    async def detach(self) -> None:
        """Close the connection; supervisor and scripts go on."""
        await self._parent.forget(self._spec.record_dir)
        self._link.close()

    async def _close(self, *, kill: bool) -> None:
        """End the supervisor, and with ``kill`` whatever script still runs under it."""
        try:
            await self._parent.forget(self._spec.record_dir)
            if not self._link.connected:
                if not is_supervised(self._spec.record_dir):
                    return
                await self._link.connect()
            if kill and self._has_active_run():
                await self._link.call("stop", grace=0)
            await self._link.call("close")
        except (EnvironmentLost, PrepareError, OSError) as error:
            log.warning("supervisor could not be closed", error=str(error))
        finally:
            self._link.close()

    def _has_active_run(self) -> bool:
        return any(not (path.parent / "status").exists() for path in self._spec.record_dir.glob("*/started"))

    def _working_dir(self) -> str:
        return os.getcwd()  # noqa: PTH109 - a string for a message


class FrameReader:
    """Whole frames of a growing file; a torn one at its end waits for its rest."""

    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._offset = offset

    def read(self, about_bytes: int) -> list[Output]:
        """The next frames, until they are so many bytes together; none when there are none yet."""
        found: list[Output] = []
        end = self._offset + about_bytes
        while self._offset < end:
            header = os.pread(self._fd, FRAME.size, self._offset)
            if len(header) < FRAME.size:
                break
            stream, time_ns, size = FRAME.unpack(header)
            data = os.pread(self._fd, size, self._offset + FRAME.size)
            if len(data) < size:
                break
            self._offset += FRAME.size + size
            found.append(Output(Stream(stream), time_ns, data, self._offset))
        return found


def _status(found: dict[str, Any]) -> ExitStatus:
    return ExitStatus(
        exit_code=found["exit_code"],
        signal=found["signal"],
        dormant=found.get("dormant"),
        cpu_s=found["cpu_s"],
        max_rss_bytes=found["max_rss_bytes"],
        truncated=found["truncated"],
        held=found["held"],
        leftovers=tuple(found["leftovers"]),
    )
