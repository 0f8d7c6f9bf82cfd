"""Runs git in a job's project, by argv, so that nothing which a job left there acts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from executors.base import Environment, ExitStatus, Output, Stream
from runner.job.outcome import tool_failed
from runner.trace.log import StageLog

# Nothing that a job left in the repository may run: no hooks, no monitor, no stored logins; and nothing stands for
# something else. Submodules hear of it, too.
SAFE = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "credential.helper=",
    "-c",
    "core.useReplaceRefs=false",
)


class GitTool:
    """Git with the log of one stage. ``time_ns`` is when the newest output was read; notices bear it.

    ``login`` are settings by which git finds the job's login; they hold no secret.
    """

    def __init__(
        self,
        environment: Environment,
        stage: StageLog,
        cwd: str,
        variables: Mapping[str, str],
        time_ns: int,
        *,
        login: Iterable[tuple[str, str]] = (),
    ) -> None:
        # Behind the setting that forgets all helpers.
        self._git = ["git", *SAFE, *(part for name, value in login for part in ("-c", f"{name}={value}"))]
        self._environment = environment
        self._stage = stage
        self._cwd = cwd
        self._variables = {**variables, "GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "Never"}
        self.time_ns = time_ns

    async def run(self, *arguments: str, config: tuple[str, ...] = ()) -> None:
        """Run git; its output goes into the log. A failure raises with its exit status."""
        status = await self.try_run(*arguments, config=config)
        if status.exit_code != 0:
            raise tool_failed(status.exit_code if status.exit_code is not None else 1)

    async def try_run(self, *arguments: str, config: tuple[str, ...] = ()) -> ExitStatus:
        """The same for a command that may fail."""
        options = [part for setting in config for part in ("-c", setting)]
        return await self._environment.tool(
            [*self._git, *options, *arguments], cwd=self._cwd, env=self._variables, output=self._write
        )

    async def read(self, *arguments: str) -> bytes:
        """What git prints, which does not go into the log; empty where it fails."""
        found: list[bytes] = []

        def keep(piece: Output) -> None:
            if piece.stream is Stream.STDOUT:
                found.append(piece.data)

        status = await self._environment.tool([*self._git, *arguments], cwd=self._cwd, env=self._variables, output=keep)
        return b"".join(found) if status.exit_code == 0 else b""

    async def succeeds(self, *arguments: str) -> bool:
        """Whether git ends well; what it prints does not go into the log."""
        status = await self._environment.tool([*self._git, *arguments], cwd=self._cwd, env=self._variables, output=lambda _: None)
        return status.exit_code == 0

    async def version(self) -> tuple[int, ...]:
        """Git's version; empty where it does not say."""
        found = re.match(rb"git version (\d+)\.(\d+)", await self.read("version"))
        return tuple(int(part) for part in found.groups()) if found else ()

    async def has_lfs(self) -> bool:
        """Whether git-lfs is installed."""
        return bool(await self.read("lfs", "version"))

    def notice(self, text: str) -> None:
        """A green line."""
        self._stage.notice(text, self.time_ns)

    def warning(self, text: str) -> None:
        """A yellow line, without the word WARNING."""
        self._stage.warning(text, self.time_ns)

    def _write(self, piece: Output) -> None:
        self.time_ns = max(self.time_ns, piece.time_ns)
        self._stage.write(piece.stream, piece.data, piece.time_ns)
