"""Small contents of files that travel with the commands of the helper's shell: a program with streams of its own, which an
engine takes a tenth of a second to start, is for large ones."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

from executors.base import Output, Stream
from executors.errors import WorkspaceError

if TYPE_CHECKING:
    from executors.docker.helper import Helper

# What is held in memory for each job that moves files.
SMALL_BYTES = 2 * 1024 * 1024


class ReadBefore:
    """Standard output of a program that has ended, in the place of :class:`executors.docker.transfers.Exec`."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def start(self) -> None:
        """It was started before."""

    def end_input(self) -> None:
        """It never had any."""

    def receive(self) -> bytes | memoryview:
        """All that is left."""
        found, self._rest = self._rest, self._rest[len(self._rest) :]
        return found

    def broken(self, what: str, error: Exception) -> WorkspaceError:
        """The error to raise when what it wrote cannot be read."""
        return WorkspaceError(f"{what}: {error}")

    def close(self) -> None:
        """Nobody waits for it."""

    def dispose(self) -> None:
        """There is nothing to give back."""
        self._rest = memoryview(b"")


class Carrier:
    """Commands of a helper that read ``data`` in the file :data:`executors.docker.helper.INPUT`, for a thread that waits."""

    def __init__(self, helper: Helper, text: str) -> None:
        self._helper = helper
        self._text = text
        self._loop = asyncio.get_running_loop()
        self._work: concurrent.futures.Future[int] | None = None
        self._is_closed = False
        self.errors = b""

    def run(self, data: bytes) -> int:
        """The status of the commands. Raises :class:`ExecutorError`."""
        said: list[bytes] = []

        def keep(piece: Output) -> None:
            if piece.stream is Stream.STDERR:
                said.append(piece.data)

        self._work = asyncio.run_coroutine_threadsafe(self._helper.run(self._text, keep, data), self._loop)
        if self._is_closed:
            self._work.cancel()
        try:
            return self._work.result()
        except concurrent.futures.CancelledError as error:
            raise WorkspaceError("write files: nobody waits for them any more") from error
        finally:
            self.errors = b"".join(said)

    def close(self) -> None:
        """End them, from any thread."""
        self._is_closed = True
        if self._work is not None:
            self._work.cancel()
