"""The shell in the helper container: fed command by command, for all the work that is the runner's own (12.2).

One connection is kept to it. Commands are put together from quoted words only, so none can leave its place; a mark with a
nonce on both streams says that a command is over. A shell that is not where it should be is thrown away with its container,
and the next command gets another one.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import structlog

from executors.base import Output, OutputSink, Stream
from executors.docker.client import Engine
from executors.docker.containers import remove
from executors.docker.streams import Hijacked
from executors.errors import EnvironmentLost, ExecutorError

log = structlog.get_logger()

ATTACHED = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
# Longest part of a mark behind its nonce.
STATUS_BYTES = 8
# Where commands find their input, in the container.
INPUT = "/tmp/pyrunner-input"  # noqa: S108


def quote(word: str) -> str:
    """A word that any POSIX shell reads back as it is."""
    return "'" + word.replace("'", "'\\''") + "'"


def command(argv: Sequence[str], *, cwd: str = "/", env: Mapping[str, str] | None = None, stdin: bytes = b"") -> str:
    """A program as a shell runs it: in a directory, with more variables, with a text on its standard input."""
    parts = [f"cd {quote(cwd)} || exit"]
    parts += [f"export {name}={quote(value)}" for name, value in (env or {}).items()]
    words = " ".join(map(quote, argv))
    if stdin:
        parts.append(f"printf %s {quote(stdin.decode(errors='surrogateescape'))} | {words}")
    else:
        parts.append(f"exec {words}")
    return "\n".join(parts)


class Helper:
    """The helper of one job. ``make`` creates its container and gives the id; ``open_paths`` are directories that any
    user may write to from then on. ``umask`` is that of all commands."""

    def __init__(
        self,
        engine: Engine,
        make: Callable[[], Awaitable[str]],
        open_paths: Callable[[], Sequence[str]],
        *,
        umask: str = "0000",
    ) -> None:
        self._engine = engine
        self._make = make
        self._open_paths = open_paths
        self.umask = umask
        self._lock = asyncio.Lock()
        self._shell: Hijacked | None = None
        self._nonce = ""
        self._buffers = {1: b"", 2: b""}
        self.container = ""

    @property
    def is_running(self) -> bool:
        """Whether there is a shell to be fed."""
        return self._shell is not None and not self._shell.is_over

    async def start(self) -> None:
        """Make sure that there is a shell. Raises :class:`ExecutorError`."""
        async with self._lock:
            await self._start()

    async def _start(self) -> None:
        if self.is_running:
            return
        await self.close()
        self.container = await self._make()
        container = self.container
        shell = await self._engine.hijack(f"/containers/{container}/attach", params=ATTACHED)
        try:
            await self._engine.call(lambda client: client.start(container))
        except BaseException:
            shell.close()
            raise
        self._shell = shell
        self._nonce = f"\1{secrets.token_hex(16)}:"
        self._buffers = {1: b"", 2: b""}
        paths = " ".join(map(quote, self._open_paths()))
        # What an entrypoint writes comes before the first mark, and is nobody's output.
        await self._feed(f"chmod 0777 {paths}" if paths else ":", None)

    async def run(self, text: str, output: OutputSink | None = None, data: bytes = b"") -> int:
        """Run commands in a subshell and give its status; files that they make get ``umask``. They find ``data``, where there
        is any, in the file :data:`INPUT`.

        When it is cancelled, or loses its shell, the container is removed with everything that ran in it.
        """
        async with self._lock:
            await self._start()
            try:
                return await self._feed(text, output, data)
            except BaseException as error:
                await asyncio.shield(self._throw_away())
                if isinstance(error, OSError | asyncio.IncompleteReadError):
                    raise EnvironmentLost("the helper container is gone") from error
                raise

    async def _feed(self, text: str, output: OutputSink | None, data: bytes = b"") -> int:
        tell = f"printf '%s%d\\n' {quote(self._nonce)}"
        work = f"(umask {self.umask}\n{text}\n) </dev/null\npyrunner_status=$?\n"
        if not data:
            return await self._send(
                f"{work}{tell} $pyrunner_status >&2\n{tell} $pyrunner_status\n".encode(errors="surrogateescape"), output
            )
        # The shell has read the whole command before it says that it is ready, and nothing behind it was sent. It ends where
        # not all of the data was taken: no byte of that may be read as a command.
        take = f"{tell} 0 >&2\n{tell} 0\nhead -c {len(data)} >{INPUT} || exit\n"
        line = f"{{ {take}{work}rm -f {INPUT}\n{tell} $pyrunner_status >&2\n{tell} $pyrunner_status\n}}\n"
        await self._send(line.encode(errors="surrogateescape"), None)
        return await self._send(data, output)

    async def _send(self, data: bytes, output: OutputSink | None) -> int:
        """What the shell is to read, up to the mark with which it answers."""
        assert self._shell is not None
        sending = asyncio.ensure_future(self._shell.send(data))
        try:
            return await self._until_mark(output)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
            if not sending.cancelled():
                sending.exception()

    async def _until_mark(self, output: OutputSink | None) -> int:
        assert self._shell is not None
        mark = self._nonce.encode()
        found: dict[int, int] = {}
        async for kind, data in self._shell.frames():
            data = self._buffers[kind] + data
            before, seen, behind = data.partition(mark)
            if seen and b"\n" in behind:
                status, _, rest = behind.partition(b"\n")
                found[kind] = int(status)
                self._buffers[kind] = rest
                _hand_on(output, kind, before)
            else:
                at = data.rfind(b"\1", max(0, len(data) - len(mark) - STATUS_BYTES))
                keep = len(data) - at if at >= 0 else 0
                self._buffers[kind] = data[len(data) - keep :]
                _hand_on(output, kind, data[: len(data) - keep])
            if len(found) == len(self._buffers):
                return found[1]
        raise EnvironmentLost("the helper container ended while it was at work")

    async def close(self) -> None:
        """Let go of the shell; its container stays."""
        if self._shell is not None:
            self._shell.close()
            self._shell = None

    async def _throw_away(self) -> None:
        await self.close()
        try:
            await remove(self._engine, self.container)
        except ExecutorError as error:
            log.warning("helper could not be removed", container=self.container, error=str(error))


def _hand_on(output: OutputSink | None, kind: int, data: bytes) -> None:
    if output is not None and data:
        output(Output(Stream(kind), time.time_ns(), data, 0))
