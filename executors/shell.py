"""The shell executor: scripts run on this host, under a supervisor of their own, as the job's user."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from executors.accounts import Account, account, job_environment, owner_name
from executors.base import Environment, ExitStatus, JobSpec, Output, OutputSink, Script, Sharing, Stream
from executors.errors import InvalidSpec, PrepareError
from executors.file_operations import write_private
from executors.host_workspace import HostWorkspace
from executors.registry import HostSettings
from executors.supervised import SupervisedExecutor, SupervisedPlace
from executors.workspace import Workspace

LOGIN_TIMEOUT_S = 30.0
PROFILES = ("/etc/profile", "~/.bash_profile", "~/.bash_login", "~/.profile")


class ShellExecutor(SupervisedExecutor):
    """What all shell jobs of this daemon share: the warm parent, and the login environments it has read."""

    def __init__(self, host: HostSettings) -> None:
        super().__init__(host)
        self._views_problem: str | None = None
        self.logins: dict[tuple[str, str], tuple[tuple[int, ...], dict[str, str]]] = {}

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

    async def sharing(self, user: str | None, table: Mapping[str, Any]) -> Sharing:
        """Mounts for one job alone need root, and jobs that are not root's: those could undo them."""
        del table
        found = account(user)
        if self._views_problem is None and found.switch:
            self._views_problem = await self.parent.views_problem()
        problem = self._views_problem if found.switch else "jobs run under the account of the runner itself"
        return Sharing(problem=problem or "", uid=found.uid, gid=found.gid)


class ShellEnvironment(SupervisedPlace):
    """One job on this host."""

    def __init__(self, executor: ShellExecutor, spec: JobSpec) -> None:
        super().__init__(executor.parent, spec)
        self._executor = executor
        self._user = account(spec.user)
        self._workspace = HostWorkspace(self._link)
        self._warnings: list[tuple[str, str]] = []
        self.files: Workspace = self._workspace

    async def prepare(self) -> None:
        """Find the shell, then find or start the supervisor."""
        if shutil.which(self._spec.shell) is None or self._spec.shell not in ("bash", "sh"):
            raise PrepareError(f"shell {self._spec.shell} not found")
        if await self._connect(self._user):
            await self._clear()
        self._remarks = [("plain", f"Using Shell ({self._spec.shell}) executor..."), *self._warnings]

    async def _clear(self) -> None:
        """Have a way to the project directory. What is left from another account, or cannot be made, is said plainly."""
        own = (self._spec.project_dir, f"{self._spec.project_dir}/.git", self._spec.tmp_dir)
        taken, kept = await self._workspace.clear_path(self._spec.project_dir, own)
        self._warnings += [("warning", f"{path} was no directory and was taken away") for path in taken]
        if kept is not None:
            remedy = "change its owner, or remove it" if kept.path in own else "give jobs a builds_dir that they can write"
            who = f"jobs run as {self._user.name!r} and cannot write {kept.path}"
            raise InvalidSpec(f"{who}, which belongs to {owner_name(kept.owner)!r}: {remedy}")

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
        write_private(f"{directory}/script", script.text)
        try:
            await self._begin(
                name,
                argv=[self._spec.shell, "-l"],
                env={**self._executor.base_environment(self._user), **self._spec.environment},
                cwd=self._working_dir(),
                stdin="script",
                limit=self._spec.output_limit_bytes,
                kill_leftovers=self._spec.kill_leftovers,
            )
        except PrepareError as error:
            raise PrepareError(f"the script could not be started: {error}") from error

    async def stop(self, run: str, *, grace_s: float) -> None:
        """End everything that the job has started."""
        if await self.ended(run) or not self._link.connected:
            return
        await self._link.call("stop", run=f"run-{run}", grace=grace_s)

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
        name = self._new_directory("tool")
        directory = self._spec.record_dir / name
        write_private(f"{directory}/stdin", stdin)
        try:
            await self._begin(name, argv=list(argv), env=dict(env), cwd=cwd or self._working_dir(), stdin="stdin", tool=True)
            async for piece in self._follow(name, 0):
                if output is not None:
                    output(piece)
            return await self._wait(name)
        except PrepareError as error:
            raise PrepareError(f"{argv[0]} could not be started: {error}") from error
        except asyncio.CancelledError:
            self._link.tell("kill_tools")
            raise
        finally:
            self._alive.discard(name)
            shutil.rmtree(directory, ignore_errors=True)

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

    async def cleanup(self) -> None:
        """End the supervisor and whatever script still runs under it."""
        await self._close(kill=True)


def _mtime_ns(path: str) -> int:
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0
