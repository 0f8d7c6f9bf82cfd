"""The daemon's side of supervisors: the warm parent that forks them, and the connection to one of them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from executors.errors import EnvironmentLost, PrepareError
from executors.open_files import restore_limit

log = structlog.get_logger()

# The interpreter of the warm parent sees neither site packages nor its environment, only this package.
_ROOT = str(Path(__file__).parents[1])
WARM_PARENT = f"import sys; sys.path.insert(0, {_ROOT!r}); from executors.warm_parent import main; main()"
CONNECT_TRIES = 50
CONNECT_PAUSE_S = 0.02


class JsonLines:
    """A unix socket that carries one JSON object a line, read by the event loop, without tasks of its own."""

    def __init__(self, sock: socket.socket, on_message: Callable[[dict[str, Any]], None], on_close: Callable[[], None]) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._on_message = on_message
        self._on_close = on_close
        self._inbox = b""
        self._outbox = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._read)
        self.closed = False

    def send(self, message: dict[str, Any]) -> None:
        """Queue a message; what the socket takes goes out at once."""
        if not self.closed:
            self._outbox += json.dumps(message).encode() + b"\n"
            self._flush()

    def close(self) -> None:
        """Close without calling anybody back."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def _flush(self) -> None:
        try:
            while self._outbox:
                self._outbox = self._outbox[self._socket.send(self._outbox) :]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:
            self._lost()
            return
        self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data = self._socket.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for line in lines:
            self._on_message(json.loads(line))

    def _lost(self) -> None:
        if not self.closed:
            self.close()
            self._on_close()


class Calls:
    """Requests that wait for the answer with their id."""

    def __init__(self) -> None:
        self._next = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def open(self) -> tuple[int, asyncio.Future[dict[str, Any]]]:
        """A new id and the future of its answer."""
        self._next += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
        return self._next, future

    def answer(self, message: dict[str, Any]) -> None:
        """Hand an answer to whoever waits for it, if anybody still does."""
        future = self._waiting.pop(message["id"], None)
        if future is not None and not future.done():
            future.set_result(message)

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._waiting.pop(number, None)

    def fail(self, error: Exception) -> None:
        """Nobody will answer any more."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(error)


class WarmParent:
    """The process that forks supervisors; started on first use, and again when it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: JsonLines | None = None
        self._calls = Calls()
        self._expected: dict[str, asyncio.Future[dict[str, Any]]] = {}

    def start(self) -> None:
        """Start the process, if it does not run."""
        if self._lines is not None and not self._lines.closed:
            return
        self._reap()
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", WARM_PARENT, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            restore_limit(self._process.pid)
        self._lines = JsonLines(ours, self._calls.answer, self._died)

    def expect(self, record_dir: Path) -> None:
        """Begin to have a supervisor forked which :meth:`spawn` will be asked for."""
        directory = str(record_dir)
        if directory not in self._expected:
            self._expected[directory] = self._send({"directory": directory})

    async def forget(self, record_dir: Path) -> None:
        """Nobody asks for this supervisor any more; returns when it is no longer about to be there."""
        answer = self._expected.pop(str(record_dir), None)
        if answer is not None:
            await asyncio.gather(answer, return_exceptions=True)

    async def spawn(self, record_dir: Path) -> None:
        """Have a supervisor forked, unless the record has one already. Raises :class:`PrepareError`."""
        self.expect(record_dir)
        answer = await self._answer(self._expected.pop(str(record_dir)))
        if "error" in answer:
            raise PrepareError(f"cannot start a supervisor: {answer['error']}")

    async def views_problem(self) -> str:
        """Why jobs cannot have a view of their own of the file system; empty when they can."""
        answer = await self._answer(self._send({"probe": True}))
        return str(answer.get("error", ""))

    def _send(self, request: dict[str, Any]) -> asyncio.Future[dict[str, Any]]:
        self.start()
        assert self._lines is not None
        number, future = self._calls.open()
        self._lines.send({**request, "id": number})
        return future

    async def _answer(self, future: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        try:
            return await future
        except EnvironmentLost as error:
            raise PrepareError("the parent process of the supervisors died; it is started again") from error

    def close(self) -> None:
        """Let the process end; the supervisors live on."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        self._forget_all()
        self._reap()

    def _died(self) -> None:
        log.warning("parent process of supervisors died")
        self._forget_all()

    def _forget_all(self) -> None:
        """No answer comes any more; whoever needs a supervisor asks the next process."""
        for answer in self._expected.values():
            answer.cancel()
        self._expected.clear()
        self._calls.fail(EnvironmentLost("the parent process of the supervisors died"))

    def _reap(self) -> None:
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=2)
            self._process = None


class SupervisorLink:
    """A connection to the supervisor of one job.

    ``moved`` is set by every event, and when the supervisor is gone; whoever waits for output clears it before looking at
    the files. ``usage`` is what everything had cost when a script ended, None where that may have grown.
    """

    def __init__(self, record_dir: Path) -> None:
        self.record_dir = record_dir
        self._lines: JsonLines | None = None
        self._calls = Calls()
        self.moved = asyncio.Event()
        self.usage: dict[str, Any] | None = None

    @property
    def connected(self) -> bool:
        """Whether commands reach the supervisor."""
        return self._lines is not None and not self._lines.closed

    async def connect(self) -> None:
        """Connect to the socket in the record. Raises :class:`PrepareError`."""
        dir_fd = os.open(self.record_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for _ in range(CONNECT_TRIES):
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    # The path of a record may be longer than the 107 bytes of a socket address.
                    sock.connect(f"/proc/self/fd/{dir_fd}/control.sock")
                except OSError:
                    sock.close()
                    await asyncio.sleep(CONNECT_PAUSE_S)
                    continue
                self._lines = JsonLines(sock, self._receive, self._died)
                return
        finally:
            os.close(dir_fd)
        raise PrepareError("the supervisor of the job does not answer")

    async def call(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer. Raises :class:`EnvironmentLost`."""
        if self._lines is None or self._lines.closed:
            raise EnvironmentLost("the supervisor of the job is gone")
        number, future = self._calls.open()
        self._lines.send({"command": command, "id": number, **arguments})
        try:
            return await future
        finally:
            self._calls.forget(number)

    def tell(self, command: str, **arguments: Any) -> None:
        """Send a command whose answer nobody waits for."""
        if self._lines is not None:
            self._lines.send({"command": command, "id": 0, **arguments})

    def close(self) -> None:
        """Let go of the supervisor; it goes on."""
        if self._lines is not None:
            self._lines.close()

    def _receive(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self.usage = message.get("usage")
            self.moved.set()
        else:
            self._calls.answer(message)

    def _died(self) -> None:
        self._calls.fail(EnvironmentLost("the supervisor of the job died"))
        self.moved.set()


def is_supervised(record_dir: Path) -> bool:
    """Whether a supervisor lives for this record: it holds the lock, whatever its process id."""
    try:
        fd = os.open(record_dir / "supervisor.lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
