"""Connections that were handed over, for threads: their input can be ended while their output goes on."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

BUFFER_BYTES = 256 * 1024


class BlockingStream:
    """A plain connection; for one thread at a time, but for :meth:`interrupt`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def sendall(self, data: bytes | bytearray) -> None:
        """Write all of it. Raises :class:`OSError`."""
        self._sock.sendall(data)

    def recv(self, size: int) -> bytes:
        """What has come, ``size`` bytes at most; empty at the end. Raises :class:`OSError`."""
        return self._sock.recv(size)

    def end_input(self) -> None:
        """Let the other side see the end of what was written. Raises :class:`OSError`."""
        self._sock.shutdown(socket.SHUT_WR)

    def settimeout(self, timeout_s: float | None) -> None:
        """How long a step may take."""
        self._sock.settimeout(timeout_s)

    def interrupt(self) -> None:
        """End it in both directions; the thread that waits at it is woken."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give it back."""
        self._sock.close()


class TlsStream(BlockingStream):
    """The same with TLS. The library's own sockets cannot end one direction alone."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, server: str) -> None:
        """Agree upon keys. Raises :class:`OSError`."""
        super().__init__(sock)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server)
        self._ahead = b""
        self._until_done(self._tls.do_handshake)

    def _until_done(self, step: Callable[[], T]) -> T:
        while True:
            try:
                found = step()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._sock.recv(BUFFER_BYTES)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
            else:
                self._flush()
                return found

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._sock.sendall(data)

    def sendall(self, data: bytes | bytearray) -> None:
        """See :class:`BlockingStream`."""
        rest = memoryview(data)
        while rest:
            piece = rest[:BUFFER_BYTES]
            rest = rest[self._until_done(lambda piece=piece: self._tls.write(piece)) :]  # type: ignore[misc]

    def recv(self, size: int) -> bytes:
        """See :class:`BlockingStream`."""
        if self._ahead:
            found, self._ahead = self._ahead[:size], self._ahead[size:]
            return found
        try:
            return self._until_done(lambda: self._tls.read(size))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""

    def end_input(self) -> None:
        """See :class:`BlockingStream`."""
        # Only what comes after the farewell may still be read: what has come before it is taken now.
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while data := self._tls.read(BUFFER_BYTES):
                self._ahead += data
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._flush()
