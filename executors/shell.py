"""The shell executor: scripts run on this host, under a supervisor of their own, as the job's user."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from executors.accounts import Account, account, job_environment
from executors.base import (
    EntriesWriter,
    Entry,
    Environment,
    EnvironmentLost,
    ExitStatus,
    FilesReader,
    JobSpec,
    Output,
    OutputSink,
    PrepareError,
    Script,
    Sharing,
    Stream,
    Usage,
    Workspace,
    WorkspaceError,
)
from executors.file_feed import Channel, FeedReader, FeedWriter
from executors.file_operations import write_private
from executors.frames import FRAME
from executors.registry import HostSettings
from executors.supervision import SupervisorLink, WarmParent, is_supervised
from executors.usage import FILE as USAGE_FILE

log = structlog.get_logger()

READ_BYTES = 1024 * 1024
LOGIN_TIMEOUT_S = 30.0
LOCK_POLL_S = 0.05
SUPERVISOR_TRIES = 10
PROFILES = ("/etc/profile", "~/.bash_profile", "~/.bash_login", "~/.profile")


class ShellExecutor:
    """What all shell jobs of this daemon share: the warm parent, and the login environments it has read."""

    def __init__(self, host: HostSettings) -> None:
        self._host = host
        self.parent = WarmParent()
        self._views_problem: str | None = None
        self.logins: dict[tuple[str, str], tuple[tuple[int, ...], dict[str, str]]] = {}

    async def open(self) -> None:
        """Start the warm parent, so that the first job does not wait for it."""
        self.parent.start()

    def environment(self, spec: JobSpec) -> Environment:
        """The place of one job on this host."""
        return ShellEnvironment(self, spec)

    def sweep(self, tables: Sequence[Mapping[str, Any]], kept: Callable[[], Collection[str]]) -> None:
        """Nothing outlives its supervisor."""

    def base_environment(self, user: Account) -> dict[str, str]:
        """The environment of a job's shell before its profile runs."""
        return job_environment(
            user, self._host.environment or os.environ, pass_env=self._host.pass_env, hidden=self._host.hidden_env()
        )

    async def sharing(self, user: str | None) -> Sharing:
        """Mounts for one job alone need root, and jobs that are not root's: those could undo them."""
        found = account(user)
        if self._views_problem is None and found.switch:
            self._views_problem = await self.parent.views_problem()
        problem = self._views_problem if found.switch else "jobs run under the account of the runner itself"
        return Sharing(problem=problem or "", uid=found.uid, gid=found.gid)

    async def close(self) -> None:
        """Let the warm parent end; supervisors and their scripts go on."""
        self.parent.close()


class ShellEnvironment:
    """One job on this host."""

    def __init__(self, executor: ShellExecutor, spec: JobSpec) -> None:
        self._executor = executor
        self._spec = spec
        self._link = SupervisorLink(spec.record_dir)
        self._tools = 0
        self._alive: set[str] = set()
        self._remarks: list[tuple[str, str]] = []
        self._user = account(spec.user)
        self.files: Workspace = ShellWorkspace(self._link)

    async def prepare(self) -> None:
        """Find the shell, then find or start the supervisor."""
        if shutil.which(self._spec.shell) is None or self._spec.shell not in ("bash", "sh"):
            raise PrepareError(f"shell {self._spec.shell} not found")
        self._remarks = [("plain", f"Using Shell ({self._spec.shell}) executor...")]
        if self._link.connected:
            return
        user = self._user
        request = {
            "directory": str(self._spec.record_dir),
            "roots": [self._spec.project_dir, self._spec.tmp_dir],
            "deadline": self._spec.deadline_unix_s,
            "orphan_grace": self._spec.orphan_grace_s,
            "user": {"uid": user.uid, "gid": user.gid, "groups": list(user.groups)} if user.switch else None,
            "mounts": [dataclasses.asdict(mount) for mount in self._spec.mounts],
        }
        for attempt in range(1, SUPERVISOR_TRIES + 1):
            is_new = await self._executor.parent.spawn(request)
            try:
                await self._link.connect()
                # A supervisor knows the runs that it started; those of an earlier one that left no status are lost.
                self._alive = set() if is_new else set((await self._link.call("runs"))["runs"])
            except EnvironmentLost as error:
                # It was just ending, with nothing left to do and nobody connected; the next try starts another.
                if attempt == SUPERVISOR_TRIES:
                    raise PrepareError(str(error)) from error
                await asyncio.sleep(LOCK_POLL_S)
            else:
                return

    def remarks(self) -> Sequence[tuple[str, str]]:
        """The line of the prepare stage."""
        lines, self._remarks = self._remarks, []
        return lines

    async def hostname(self) -> str:
        """This host's name."""
        return socket.gethostname()

    async def login_environment(self) -> Mapping[str, str]:
        """The environment of a login shell, read again only when a profile file changed."""
        stamp = tuple(_mtime_ns(path.replace("~", self._user.home, 1)) for path in PROFILES)
        key = (self._user.name, self._spec.shell)
        known = self._executor.logins.get(key)
        if known is None or known[0] != stamp:
            known = (stamp, await self._read_login_environment())
            self._executor.logins[key] = known
        return known[1]

    async def _read_login_environment(self) -> dict[str, str]:
        pieces: list[bytes] = []

        def keep(piece: Output) -> None:
            if piece.stream is Stream.STDOUT:
                pieces.append(piece.data)

        marker = "\0pyrunner\0"
        argv = [self._spec.shell, "-l", "-c", r"printf '\0pyrunner\0'; env -0"]
        async with asyncio.timeout(LOGIN_TIMEOUT_S):
            await self._run_tool(argv, cwd=None, env=self._executor.base_environment(self._user), stdin=b"", output=keep)
        text = b"".join(pieces).decode(errors="surrogateescape").partition(marker)[2]
        found = dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)
        for name in ("_", "SHLVL", "PWD", "OLDPWD"):
            found.pop(name, None)
        return found or self._executor.base_environment(self._user)

    async def start(self, run: str, script: Script) -> None:
        """Hand the script to the supervisor as the file on its shell's standard input."""
        name = f"run-{run}"
        directory = self._spec.record_dir / name
        directory.mkdir(mode=0o700, exist_ok=True)
        if (directory / "started").exists():
            return
        self._alive.add(name)
        write_private(f"{directory}/script", script.text)
        environment = {**self._executor.base_environment(self._user), **self._spec.environment}
        answer = await self._link.call(
            "start",
            run=name,
            argv=[self._spec.shell, "-l"],
            env=environment,
            cwd=self._working_dir(),
            stdin="script",
            limit=self._spec.output_limit_bytes,
            kill_leftovers=self._spec.kill_leftovers,
        )
        if "error" in answer:
            raise PrepareError(f"the script could not be started: {answer['error']}")

    async def started(self, run: str) -> bool:
        """Whether a shell was ever forked for this run."""
        return (self._spec.record_dir / f"run-{run}" / "started").exists()

    async def ended(self, run: str) -> bool:
        """Whether the supervisor has written the run's status."""
        return (self._spec.record_dir / f"run-{run}" / "status").exists()

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

    async def stop(self, run: str, *, grace_s: float) -> None:
        """End everything that the job has started."""
        if await self.ended(run) or not self._link.connected:
            return
        await self._link.call("stop", run=f"run-{run}", grace=grace_s)

    async def discard(self, run: str) -> None:
        """Tell the supervisor to drop further output."""
        if self._link.connected:
            await self._link.call("discard", run=f"run-{run}")

    async def tool(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        output: OutputSink | None = None,
    ) -> ExitStatus:
        """Run a program as a child of the supervisor."""
        environment = {**await self.login_environment(), **(env or {})}
        return await self._run_tool(argv, cwd=cwd, env=environment, stdin=stdin, output=output)

    async def _run_tool(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None,
        env: Mapping[str, str],
        stdin: bytes,
        output: OutputSink | None,
    ) -> ExitStatus:
        name = self._tool_directory()
        directory = self._spec.record_dir / name
        write_private(f"{directory}/stdin", stdin)
        self._alive.add(name)
        try:
            answer = await self._link.call(
                "start",
                run=name,
                argv=list(argv),
                env=dict(env),
                cwd=cwd or self._working_dir(),
                stdin="stdin",
                tool=True,
            )
            if "error" in answer:
                raise PrepareError(f"{argv[0]} could not be started: {answer['error']}")
            async for piece in self._follow(name, 0):
                if output is not None:
                    output(piece)
            return await self._wait(name)
        except asyncio.CancelledError:
            self._link.tell("kill_tools")
            raise
        finally:
            self._alive.discard(name)
            shutil.rmtree(directory, ignore_errors=True)

    def _tool_directory(self) -> str:
        while True:
            self._tools += 1
            name = f"tool-{self._tools}"
            try:
                (self._spec.record_dir / name).mkdir(mode=0o700)
            except FileExistsError:
                continue
            return name

    async def kill_tools(self) -> None:
        """End what an earlier daemon left running beside the script."""
        active = [name for name in self._alive if not (self._spec.record_dir / name / "status").exists()]
        if active and self._link.connected:
            await self._link.call("stop", grace=0)
        if not self._alive:
            return
        self._alive.clear()
        for directory in self._spec.record_dir.glob("tool-*"):
            shutil.rmtree(directory, ignore_errors=True)

    async def usage(self) -> Usage | None:
        """What the supervisor has added up, or left behind."""
        try:
            found = await self._link.call("usage") if self._link.connected else json.loads(self._usage_file().read_bytes())
            return Usage(cpu_user_s=found["user_s"], cpu_system_s=found["system_s"], max_rss_bytes=found["max_rss_bytes"])
        except (FileNotFoundError, ValueError, KeyError):
            return None

    def _usage_file(self) -> Path:
        return self._spec.record_dir / USAGE_FILE

    async def detach(self) -> None:
        """Close the connection; supervisor and scripts go on."""
        self._link.close()

    async def cleanup(self) -> None:
        """End the supervisor and whatever script still runs under it."""
        try:
            if not self._link.connected:
                if not is_supervised(self._spec.record_dir):
                    return
                await self._link.connect()
            if self._has_active_run():
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


class ShellWorkspace:
    """File operations, carried out below the job's directories by a child of its supervisor."""

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link

    async def _do(self, *operations: dict[str, Any]) -> list[Any]:
        answer = await self._link.call("files", operations=list(operations))
        if "error" in answer:
            kinds = ", ".join(sorted({operation["kind"].replace("_", " ") for operation in operations}))
            raise WorkspaceError(f"{kinds}: {answer['error']}")
        results: list[Any] = answer["results"]
        return results

    async def make_dir(self, path: str, *, parents: bool = True) -> None:
        """See :class:`executors.base.Workspace`."""
        await self._do({"kind": "make_dir", "path": path})

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See :class:`executors.base.Workspace`."""
        await self._do({"kind": "write", "path": path, "data": base64.b64encode(data).decode(), "mode": mode})

    async def read(self, path: str, *, limit: int = 16 * 1024 * 1024) -> bytes | None:
        """See :class:`executors.base.Workspace`."""
        (result,) = await self._do({"kind": "read", "path": path, "limit": limit})
        return None if result is None else base64.b64decode(result)

    async def read_files(self, root: str, paths: Sequence[str]) -> FilesReader:
        """See :class:`executors.base.Workspace`."""
        return FeedReader(await self._channel(root), paths)

    async def write_entries(self, root: str) -> EntriesWriter:
        """See :class:`executors.base.Workspace`."""
        return FeedWriter(await self._channel(root), root)

    async def _channel(self, root: str) -> Channel:
        channel = Channel(self._link.record_dir)
        problem = "cancelled"
        try:
            answer = await self._link.call("open_channel", socket=channel.name, root=root)
            problem = answer.get("error", "")
        finally:
            if problem:
                channel.close()
        if problem:
            raise WorkspaceError(f"files: {problem}")
        channel.accept()
        return channel

    async def remove(self, paths: Sequence[str]) -> None:
        """See :class:`executors.base.Workspace`."""
        if paths:
            await self._do(*({"kind": "remove", "path": path} for path in paths))

    async def remove_matching(self, root: str, names: Sequence[str], *, suffixes: Sequence[str] = ()) -> None:
        """See :class:`executors.base.Workspace`."""
        await self._do({"kind": "remove_matching", "path": root, "names": list(names), "suffixes": list(suffixes)})

    async def list(self, root: str, *, max_depth: int | None = None) -> list[Entry]:
        """See :class:`executors.base.Workspace`."""
        (result,) = await self._do({"kind": "list", "path": root, "max_depth": max_depth})
        return [
            Entry(path=path, kind=kind, mode=mode, size=size, mtime_ns=mtime_ns, target=target)
            for path, kind, mode, size, mtime_ns, target in result
        ]

    async def exists(self, path: str) -> bool:
        """See :class:`executors.base.Workspace`."""
        (result,) = await self._do({"kind": "exists", "path": path})
        return bool(result)


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
        cpu_s=found["cpu_s"],
        max_rss_bytes=found["max_rss_bytes"],
        truncated=found["truncated"],
        held=found["held"],
        leftovers=tuple(found["leftovers"]),
    )


def _mtime_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
