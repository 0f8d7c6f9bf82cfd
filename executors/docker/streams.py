"""Raw streams of an engine: connections that were handed over, and the frames in which two streams share one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

HEAD_BYTES = 64 * 1024
READ_BYTES = 256 * 1024
HEADER_SIZE = 8


class Demultiplexer:
    """Takes a multiplexed stream apart (``docker-executor.md`` 3): 8 bytes of header, type and length, then a payload."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """The frames that are whole now, each as type (1 stdout, 2 stderr) and payload."""
        data = self._rest + data if self._rest else data
        found: list[tuple[int, bytes]] = []
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            behind = at + HEADER_SIZE + int.from_bytes(data[at + 4 : at + HEADER_SIZE], "big")
            if behind > end:
                break
            found.append((data[at], data[at + HEADER_SIZE : behind]))
            at = behind
        self._rest = data[at:]
        return found


class Hijacked:
    """The connection of an attach or exec: what is written is the program's input, frames are its output."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def is_over(self) -> bool:
        """Whether the program has ended and all of its output was read."""
        return self.reader.at_eof()

    async def send(self, data: bytes) -> None:
        """Write input, at the speed at which it is taken."""
        self.writer.write(data)
        await self.writer.drain()

    def end_input(self) -> bool:
        """Let the program see the end of its input; False where the connection cannot do that (TLS)."""
        if not self.writer.can_write_eof():
            return False
        self.writer.write_eof()
        return True

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Output as it comes, each as type and bytes, until the connection ends."""
        parts = Demultiplexer()
        while data := await self.reader.read(READ_BYTES):
            for frame in parts.feed(data):
                yield frame

    def close(self) -> None:
        """Drop the connection at once."""
        self.writer.transport.abort()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status of an HTTP answer; for one that is no success its body, too.

    Raises :class:`asyncio.IncompleteReadError` when the connection ends before.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split(" ", 2)[1])
    if status in (101, 200):
        return status, b""
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    length = headers.get("content-length", "")
    if length.isdigit():
        return status, await reader.readexactly(min(int(length), HEAD_BYTES))
    # A connection that was handed over already carries the refusal up to its end.
    body = b""
    while len(body) < HEAD_BYTES and (data := await reader.read(HEAD_BYTES)):
        body += data
    return status, body
