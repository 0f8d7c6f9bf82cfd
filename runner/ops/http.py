"""The HTTP server of ``listen_address``: metrics, health, state (``config-cli-daemon.md`` 12). Plain HTTP/1.1."""

from __future__ import annotations

import asyncio
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import structlog

log = structlog.get_logger()

DEFAULT_PORT = 9252
REQUEST_TIMEOUT_S = 10.0
TEXT = "text/plain; charset=utf-8"
# The one page that minds how it is asked for, as the reference's.
METRICS = "/metrics"
REASONS = {200: "OK", 404: "Not Found", 405: "Method Not Allowed", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """An answer."""

    body: bytes
    status: int = 200
    content_type: str = TEXT
    headers: tuple[tuple[str, str], ...] = ()


def parse_address(text: str) -> tuple[str, int]:
    """``[host]:port`` with a default port. Raises :class:`ValueError`."""
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, str(DEFAULT_PORT)
    if not port.isdigit() or not 0 <= int(port) <= 65535 or "/" in host:
        raise ValueError(f"invalid listen address: {text}")
    return host.strip("[]"), int(port)


class StatusServer:
    """Serves ``pages``: a path to the function that makes its answer."""

    def __init__(self, pages: dict[str, Callable[[], Page]]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, address: str) -> None:
        """Listen. Raises :class:`OSError` when the address is taken, :class:`ValueError` when it is none."""
        host, port = parse_address(address)
        self._server = await asyncio.start_server(self._serve, host or None, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                method, path = _request_line(head)
                page = self._answer(method, path)
                writer.write(_response(page, with_body=method != "HEAD"))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, method: str, path: str) -> Page:
        make = self._pages.get(path)
        if make is None:
            return Page(status=404, body=b"404 page not found\n")
        if path == METRICS and method not in ("GET", "HEAD"):
            return Page(status=405, body=b"Method Not Allowed\n")
        return make()


def stacks() -> str:
    """Tasks of the loop and stacks of all threads, as text."""
    parts = []
    for task in asyncio.all_tasks():
        frames = [line for frame in task.get_stack() for line in traceback.format_stack(frame, limit=1)]
        parts.append(f"task {task.get_name()}\n{''.join(frames)}")
    for number, top in sys._current_frames().items():  # noqa: SLF001 - the documented way to see other threads
        parts.append(f"thread {number}\n{''.join(traceback.format_stack(top))}")
    return "\n".join(parts)


def _request_line(head: bytes) -> tuple[str, str]:
    method, _, rest = head.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    return method, rest.partition(" ")[0].partition("?")[0]


def _response(page: Page, *, with_body: bool) -> bytes:
    lines = [f"HTTP/1.1 {page.status} {REASONS[page.status]}", f"Content-Type: {page.content_type}"]
    lines += [f"Content-Length: {len(page.body)}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in page.headers]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head + page.body if with_body else head
