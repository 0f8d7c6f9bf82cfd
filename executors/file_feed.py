"""Files of a job, read and written by a child of its supervisor that has its user's rights, over a socket of the record."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from executors.errors import EntryRefused, WorkspaceError
from executors.file_channel import (
    ADORN,
    ANSWER,
    BATCH_BYTES,
    DIR,
    ENTRY,
    FILE,
    LINK,
    MESSAGE_BYTES,
    NEW,
    READ,
    SMALL_BYTES,
    WRITE,
)
from executors.file_operations import write_all
from executors.workspace import PIECE_BYTES, ZEROS, Entry, FileContent

# Descriptors on their way count against limits: so many files are asked for at once.
FILES_AHEAD = 64
BATCHES_AHEAD = 2
WRITES_AHEAD = 4
WORKERS = 2


class Channel:
    """The receiving end: a socket in the record directory, which only the daemon and the supervisor can reach.

    ``name`` is what the sender connects to; :meth:`accept` is called once it has.
    """

    def __init__(self, record_dir: Path) -> None:
        self._dir_fd = os.open(record_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.name = f"files-{secrets.token_hex(4)}.sock"
        self._listener: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The path of a record may be longer than the 107 bytes of a socket address.
        self._listener.bind(f"/proc/self/fd/{self._dir_fd}/{self.name}")
        self._listener.listen(1)
        self._sock: socket.socket | None = None

    def accept(self) -> None:
        """Take the sender's connection, which is waiting, and nobody else's."""
        assert self._listener is not None
        self._sock, _ = self._listener.accept()
        self._stop_listening()

    def send(self, message: bytes) -> None:
        """Blocks while the other end is busy."""
        assert self._sock is not None
        try:
            self._sock.sendall(message)
        except OSError as error:
            raise WorkspaceError("files: the file operation was ended") from error

    def receive(self) -> tuple[bytes, int]:
        """A message and the descriptor that came with it, or -1."""
        assert self._sock is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, MESSAGE_BYTES, 1)
        except OSError as error:
            raise WorkspaceError("files: the file operation was ended") from error
        if not data:
            raise WorkspaceError("files: the file operation was killed")
        return data, fds[0] if fds else -1

    def close(self) -> None:
        """Ask for nothing more; a thread that waits is woken."""
        self._stop_listening()
        if self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def dispose(self) -> None:
        """Give the socket back; nobody waits at it."""
        if self._sock is not None:
            self._sock.close()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            os.unlink(self.name, dir_fd=self._dir_fd)
            os.close(self._dir_fd)


class OpenedFile:
    """See :class:`executors.workspace.FileContent`: a file as a descriptor, or the whole content of a small one."""

    def __init__(self, path: str, size: int, *, fd: int = -1, content: bytes = b"", error: str = "") -> None:
        self.path = path
        self.size = size
        self.error = error
        self._fd = fd
        self._content = content

    def pieces(self) -> Iterator[bytes]:
        """See :class:`executors.workspace.FileContent`."""
        if self._fd < 0:
            if self._content:
                yield self._content
            return
        fd, self._fd = self._fd, -1
        try:
            yield from _pieces(fd, self.size)
        finally:
            os.close(fd)

    def drop(self) -> None:
        """Give back what was not read."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    """The content of a file; what lies in a hole is not read."""
    at, hole_until = 0, -1
    while at < size:
        wanted = min(PIECE_BYTES, size - at)
        if wanted == PIECE_BYTES and at >= hole_until:
            hole_until = _end_of_hole(fd, at, size)
        if wanted == PIECE_BYTES and at + wanted <= hole_until:
            at += wanted
            yield ZEROS
            continue
        piece = os.pread(fd, wanted, at)
        if not piece:
            return
        at += len(piece)
        yield piece


def _end_of_hole(fd: int, at: int, size: int) -> int:
    """Where data begins; ``at`` where there is some, or none can tell."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        # Nothing but a hole up to the end, which may have moved meanwhile.
        return min(size, os.fstat(fd).st_size)


class FeedReader:
    """See :class:`executors.workspace.FilesReader`."""

    def __init__(self, channel: Channel, paths: Sequence[str]) -> None:
        self._channel = channel
        self._paths = paths

    def __iter__(self) -> Iterator[FileContent]:
        """See :class:`executors.workspace.FilesReader`."""
        asked: deque[list[str]] = deque()
        batches = _batches(self._paths)
        while True:
            while len(asked) < BATCHES_AHEAD and (batch := next(batches, None)) is not None:
                self._channel.send(READ + os.fsencode("\0".join(batch)))
                asked.append(batch)
            if not asked:
                return
            yield from self._answers(asked.popleft())

    def _answers(self, batch: list[str]) -> Iterator[OpenedFile]:
        left = len(batch)
        while left:
            message, fd = self._channel.receive()
            at = 0
            while at < len(message):
                number, code, size = ANSWER.unpack_from(message, at)
                at += ANSWER.size
                left -= 1
                content = message[at : at + size] if fd < 0 else b""
                at += len(content)
                error = os.strerror(code) if code else ""
                file = OpenedFile(batch[number], size, fd=fd, content=content, error=error)
                try:
                    yield file
                finally:
                    file.drop()

    def close(self) -> None:
        """See :class:`executors.workspace.FilesReader`."""
        self._channel.close()

    def dispose(self) -> None:
        """See :class:`executors.workspace.FilesReader`."""
        self._channel.dispose()


def _batches(paths: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    waiting = 0
    for path in paths:
        if batch and (len(batch) == FILES_AHEAD or waiting > BATCH_BYTES):
            yield batch
            batch, waiting = [], 0
        batch.append(path)
        waiting += len(path)
    if batch:
        yield batch


class FeedWriter:
    """See :class:`executors.workspace.EntriesWriter`. What is small travels in messages; large files are written here."""

    def __init__(self, channel: Channel, root: str) -> None:
        self._channel = channel
        self._root = root
        self._batch: list[bytes] = [WRITE]
        self._paths: list[str] = []
        self._waiting = 0
        self._sent: deque[list[str]] = deque()
        self._late: list[Entry] = []
        self._pool = ThreadPoolExecutor(WORKERS, "write")
        self._copies: deque[Future[None]] = deque()

    def add_dir(self, entry: Entry) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._late.append(entry)
        self._add(DIR, entry)

    def add_file(self, entry: Entry, content: Callable[[], Iterator[bytes]], *, is_shared: bool) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        if entry.size <= SMALL_BYTES:
            self._add(FILE, entry, b"".join(content()))
            return
        self._late.append(entry)
        self._add(NEW, entry)
        fd = self._flush()
        if not is_shared:
            _copy(entry, fd, content)
            return
        self._copies.append(self._pool.submit(_copy, entry, fd, content))
        if len(self._copies) > WORKERS:
            self._copies.popleft().result()

    def add_link(self, entry: Entry) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._add(LINK, entry, os.fsencode(entry.target))

    def finish(self) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        while self._copies:
            self._copies.popleft().result()
        # What is in a directory before the directory: making it changed its time.
        for entry in sorted(self._late, key=lambda entry: entry.path, reverse=True):
            self._add(ADORN, entry)
        self._flush()

    def close(self) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._channel.close()

    def dispose(self) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._pool.shutdown(cancel_futures=True)
        self._channel.dispose()

    def _add(self, kind: int, entry: Entry, content: bytes = b"") -> None:
        path = os.fsencode(entry.path)
        uid, gid = (-1, -1) if entry.owner is None else entry.owner
        self._batch += (ENTRY.pack(kind, entry.mode, entry.mtime_ns, uid, gid, len(path), len(content)), path, content)
        self._paths.append(entry.path)
        self._waiting += ENTRY.size + len(path) + len(content)
        if self._waiting >= BATCH_BYTES and kind != NEW:
            self._send()

    def _send(self) -> None:
        self._channel.send(b"".join(self._batch))
        self._sent.append(self._paths)
        self._batch, self._paths, self._waiting = [WRITE], [], 0
        if len(self._sent) > WRITES_AHEAD:
            self._hear()

    def _flush(self) -> int:
        """Wait until all is done; the descriptor that the last entry asked for."""
        if self._paths:
            self._send()
        fd = -1
        while self._sent:
            fd = self._hear()
        return fd

    def _hear(self) -> int:
        message, fd = self._channel.receive()
        paths = self._sent.popleft()
        number, code, _ = ANSWER.unpack(message)
        if code:
            raise EntryRefused(f"{self._root}/{paths[number]}", code)
        return fd


def _copy(entry: Entry, fd: int, content: Callable[[], Iterator[bytes]]) -> None:
    """Write a large file; zeros become holes."""
    try:
        for piece in content():
            if len(piece) == PIECE_BYTES and piece == ZEROS:
                os.lseek(fd, len(piece), os.SEEK_CUR)
            else:
                write_all(fd, piece)
        os.ftruncate(fd, entry.size)
    except OSError as error:
        raise EntryRefused(entry.path, error.errno or 0) from error
    finally:
        os.close(fd)
