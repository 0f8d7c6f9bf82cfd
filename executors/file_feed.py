"""Files of a job, opened with its user's rights by a child of its supervisor, and handed over as descriptors."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from executors.base import OpenedFile, WorkspaceError
from executors.file_operations import FILE_MESSAGE, WINDOW


class FileFeed:
    """The receiving end: a socket in the record directory, which only the daemon and the supervisor can reach.

    ``name`` is what the sender connects to; :meth:`accept` is called once it has.
    """

    def __init__(self, record_dir: Path, paths: Sequence[str]) -> None:
        self._paths = list(paths)
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

    def __iter__(self) -> Iterator[OpenedFile]:
        """See :class:`executors.base.OpenedFiles`."""
        assert self._sock is not None
        for number, path in enumerate(self._paths):
            if number and number % WINDOW == 0:
                self._sock.send(b".")
            data, fds, _, _ = socket.recv_fds(self._sock, FILE_MESSAGE.size, 1)
            if len(data) < FILE_MESSAGE.size:
                raise WorkspaceError(f"open files: the file operation was killed at {path}")
            _, error = FILE_MESSAGE.unpack(data)
            yield OpenedFile(path, fds[0]) if fds else OpenedFile(path, -1, os.strerror(error))

    def close(self) -> None:
        """See :class:`executors.base.OpenedFiles`."""
        self._stop_listening()
        if self._sock is not None:
            # A thread that waits for the next file is woken.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            os.unlink(self.name, dir_fd=self._dir_fd)
            os.close(self._dir_fd)
