"""The engine of this machine behind a socket that holds some requests back, or behind a port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

SOCKET = "/var/run/docker.sock"
CHUNK = 1 << 16


class SlowEngine:
    """Requests whose first line begins with one of ``slow`` wait until they are released; ``waiting`` are theirs. Without a
    ``path`` it listens at a port."""

    def __init__(self, path: Path | None = None) -> None:
        self.host = f"unix://{path}"
        self.slow: list[str] = []
        self.waiting: list[str] = []
        self._released = asyncio.Event()
        self._path = path

    def release(self) -> None:
        """Let everything go on."""
        self.slow.clear()
        self._released.set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[SlowEngine]:
        """Listen while the block lasts."""
        if self._path is not None:
            server = await asyncio.start_unix_server(self._serve, self._path)
        else:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.host = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self.release()
            server.close()
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_engine = await asyncio.open_unix_connection(SOCKET)
        try:
            async with asyncio.TaskGroup() as group:
                back = group.create_task(self._pass(behind, writer, is_request=False))
                await self._pass(reader, to_engine, is_request=True)
                back.cancel()
        except* OSError:
            pass
        finally:
            writer.close()
            to_engine.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_request: bool) -> None:
        while data := await reader.read(CHUNK):
            line = data.partition(b"\r\n")[0].decode(errors="replace")
            if is_request and any(line.startswith(start) for start in self.slow):
                self.waiting.append(line)
                await self._released.wait()
            writer.write(data)
            await writer.drain()
