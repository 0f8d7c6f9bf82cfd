"""Scripts of users around the git work: they run in the helper, and again when their stage is taken again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from executors.base import ExitStatus, Output, Script
from executors.docker.helper import Helper, quote

_SHELL = "shell=sh; command -v bash >/dev/null 2>&1 && shell=bash\nexec $shell -c {text}"


@dataclass(slots=True)
class _Run:
    pieces: list[Output] = field(default_factory=list)
    size: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[int] | None = None

    def keep(self, piece: Output) -> None:
        self.size += len(piece.data)
        self.pieces.append(replace(piece, next_offset=self.size))
        self.news.set()


class HookRuns:
    """Runs by their names."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._runs: dict[str, _Run] = {}

    def __contains__(self, run: str) -> bool:
        return run in self._runs

    async def start(self, run: str, script: Script) -> None:
        """Begin a script."""
        if run in self._runs:
            return
        one = self._runs[run] = _Run()
        text = _SHELL.format(text=quote(script.text.decode(errors="surrogateescape")))
        one.task = asyncio.create_task(self._helper.run(text, one.keep))
        one.task.add_done_callback(lambda _: one.news.set())

    def ended(self, run: str) -> bool:
        """Whether it is over."""
        task = self._runs[run].task
        return task is not None and task.done()

    async def follow(self, run: str, offset: int) -> AsyncIterator[Output]:
        """Output from ``offset`` on."""
        one, at = self._runs[run], 0
        while True:
            one.news.clear()
            over = self.ended(run)
            while at < len(one.pieces):
                piece = one.pieces[at]
                at += 1
                if piece.next_offset > offset:
                    yield piece
            if over:
                return
            await one.news.wait()

    async def wait(self, run: str) -> ExitStatus:
        """How it ended."""
        task = self._runs[run].task
        assert task is not None
        return ExitStatus(exit_code=await asyncio.shield(task))

    async def stop(self, run: str) -> None:
        """End it with everything in the helper."""
        task = self._runs[run].task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
