"""The socket on which a supervisor hears the daemon of the day: one JSON object a line. Standard library only."""

from __future__ import annotations

import json
import select
import time

# Type names only: importing ``typing`` would cost a third of the memory of a supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    Message = dict[str, Any]

# How long a daemon that asked for a supervisor may take to connect to it.
FIRST_CONNECTION_S = 60.0
READ_BYTES = 1 << 20


class DaemonLink:
    """Serves one daemon at a time, the newest; ``on_drop`` hears when one is gone or replaced."""

    def __init__(self, listener: socket.socket, epoll: select.epoll, on_drop: Callable[[], None]) -> None:
        self._listener = listener
        self._epoll = epoll
        self._on_drop = on_drop
        self._client: socket.socket | None = None
        self._inbox = b""
        self._outbox = b""
        self._was_served = False
        self._disconnected_at = time.monotonic()

    def open(self) -> None:
        """Begin to listen."""
        self._listener.setblocking(False)
        self._epoll.register(self._listener, select.EPOLLIN)

    @property
    def is_connected(self) -> bool:
        """Whether there is a daemon."""
        return self._client is not None

    @property
    def alone_s(self) -> float:
        """For how long there has been none, seconds."""
        return 0.0 if self._client is not None else time.monotonic() - self._disconnected_at

    @property
    def is_abandoned(self) -> bool:
        """Whether there is no daemon, and none is about to connect."""
        return self._client is None and (self._was_served or self.alone_s > FIRST_CONNECTION_S)

    def handle(self, fd: int, events: int) -> list[Message]:
        """What epoll saw of a descriptor that may be this link's: the requests that came with it."""
        if fd == self._listener.fileno():
            self._accept()
        elif self._client is not None and fd == self._client.fileno():
            return self._receive(events)
        return []

    def _accept(self) -> None:
        """The newest daemon is the one that counts."""
        client, _ = self._listener.accept()
        self._drop()
        client.setblocking(False)
        self._client = client
        self._was_served = True
        self._inbox = self._outbox = b""
        self._epoll.register(client, select.EPOLLIN)

    def _drop(self) -> None:
        self._on_drop()
        if self._client is not None:
            self._epoll.unregister(self._client)
            self._client.close()
            self._client = None
            self._disconnected_at = time.monotonic()

    def _receive(self, events: int) -> list[Message]:
        if events & select.EPOLLOUT:
            self._flush()
        if self._client is None or not events & ~select.EPOLLOUT:
            return []
        try:
            data = self._client.recv(READ_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self._drop()
            return []
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, message: Message) -> None:
        """Queue a message for the daemon; without one it is dropped: everything that counts is on disk."""
        if self._client is None:
            return
        self._outbox += json.dumps(message).encode() + b"\n"
        self._flush()

    def _flush(self) -> None:
        """Send what fits."""
        if self._client is None:
            return
        try:
            while self._outbox:
                sent = self._client.send(self._outbox)
                self._outbox = self._outbox[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._drop()
            return
        waiting = select.EPOLLOUT if self._outbox else 0
        self._epoll.modify(self._client, select.EPOLLIN | waiting)
