"""Somebody between a runner and its engine: passes everything on, but for what a test wants to go wrong at a moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

ENGINE = "/var/run/docker.sock"
PIECE_BYTES = 64 * 1024
HEAD_BYTES = 1024 * 1024


@dataclass(kw_only=True)
class Meddling:
    """Acts on the first ``count`` requests in whose ``METHOD /path`` the pattern is found, after ``skip`` of them.

    ``act`` gets what the pattern has found, and is done before the request is passed on. With ``status`` the answer is that
    one and the engine hears nothing; with ``cut_after`` that many bytes of the engine's answer are passed on before the
    connection breaks; with ``is_deaf`` the engine sees the end of its input where there would be some.
    """

    pattern: str
    count: int = 1
    skip: int = 0
    act: Callable[[re.Match[str]], object] | None = None
    status: int = 0
    cut_after: int | None = None
    is_deaf: bool = False

    def is_due(self, line: str) -> re.Match[str] | None:
        found = re.search(self.pattern, line)
        if found is None or self.count <= 0:
            return None
        if self.skip > 0:
            self.skip -= 1
            return None
        self.count -= 1
        return found


@dataclass(kw_only=True)
class Meddler:
    """An engine's address, and what goes wrong there; ``requests`` are all that were seen."""

    host: str
    plans: list[Meddling] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request, whose answer ends the connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            first, _, fields = head.partition(b"\r\n")
            method, path, _ = first.decode().split(" ", 2)
            line = f"{method} {re.sub(r'^/v[0-9.]+', '', path)}"
            self.requests.append(line)
            plan, found = next(((plan, found) for plan in self.plans if (found := plan.is_due(line))), (None, None))
            if plan is not None and found is not None and plan.act is not None:
                await asyncio.to_thread(plan.act, found)
            if plan is not None and plan.status:
                writer.write(_answer(plan.status))
                await writer.drain()
                return
            if b"upgrade: tcp" not in fields.lower():
                fields = b"Connection: close\r\n" + re.sub(rb"(?im)^connection:.*\r\n", b"", fields)
            await _pass_on(reader, writer, first + b"\r\n" + fields, plan or Meddling(pattern=""))
        except (OSError, asyncio.IncompleteReadError):
            writer.transport.abort()
        finally:
            writer.close()


def _answer(status: int) -> bytes:
    body = json.dumps({"message": f"meddled with: {status}"}).encode()
    head = f"HTTP/1.1 {status} Meddled\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, plan: Meddling) -> None:
    cut_after = plan.cut_after
    engine_reader, engine_writer = await asyncio.open_unix_connection(ENGINE)
    engine_writer.write(head)

    async def send() -> None:
        with contextlib.suppress(OSError):
            while (data := await reader.read(PIECE_BYTES)) and not plan.is_deaf:
                engine_writer.write(data)
                await engine_writer.drain()
            engine_writer.write_eof()

    sending = asyncio.create_task(send())
    passed = 0
    try:
        while data := await engine_reader.read(PIECE_BYTES):
            if cut_after is not None and passed + len(data) > cut_after:
                writer.write(data[: cut_after - passed])
                await writer.drain()
                raise ConnectionResetError
            passed += len(data)
            writer.write(data)
            await writer.drain()
    finally:
        sending.cancel()
        await asyncio.wait([sending])
        engine_writer.transport.abort()


@contextlib.asynccontextmanager
async def meddler() -> AsyncIterator[Meddler]:
    """One in front of this machine's engine."""
    # A socket's path is short.
    folder = tempfile.mkdtemp(prefix="pyr-", dir="/tmp")
    found = Meddler(host=f"unix://{folder}/s")
    server = await asyncio.start_unix_server(found.accept, f"{folder}/s", limit=HEAD_BYTES)
    try:
        yield found
    finally:
        server.close()
        for task in found.serving:
            task.cancel()
        if found.serving:
            await asyncio.wait(found.serving)
        shutil.rmtree(folder)
