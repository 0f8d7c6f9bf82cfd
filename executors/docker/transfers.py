"""Contents of files on their way out of a helper container and into it: one tar stream each way, of any size.

A stream belongs to the thread that packs or unpacks. It reads and writes the engine's socket itself, so what is on its way
is never more than a few buffers.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from executors.docker.blocking import BlockingStream
from executors.docker.carried import SMALL_BYTES, Carrier, ReadBefore
from executors.docker.client import Engine
from executors.docker.errors import NotFound
from executors.errors import EntryRefused, EnvironmentLost, ExecutorError, WorkspaceError
from executors.workspace import PIECE_BYTES, Entry, FileContent

BUFFER_BYTES = 256 * 1024
BLOCK = 512
ERROR_BYTES = 4096
REFUSALS = (
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.ENOSPC,
    errno.EACCES,
    errno.EDQUOT,
    errno.ENAMETOOLONG,
)


class Exec:
    """A program in a container, with its streams; for one thread at a time."""

    def __init__(self, engine: Engine, container: str, script: str) -> None:
        self._engine = engine
        self._container = container
        self._script = script
        self._id = ""
        self._stream: BlockingStream | None = None
        self._left = (0, 0)
        self.errors = b""

    def start(self) -> None:
        """Start it. Raises :class:`ExecutorError`."""
        argv = ["sh", "-c", self._script]
        made = self._engine.do(lambda client: client.exec_create(self._container, argv, stdin=True, workdir="/"))
        self._id = str(made["Id"])
        self._stream = self._engine.connect_raw(f"/exec/{self._id}/start", body={"Detach": False, "Tty": False})

    def send(self, data: bytes | bytearray) -> None:
        """Write to its standard input."""
        assert self._stream is not None
        self._stream.sendall(data)

    def end_input(self) -> None:
        """End its standard input."""
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.end_input()

    def receive(self) -> bytes:
        """The next bytes of its standard output; empty at the end. What it says on the other stream is kept."""
        while True:
            kind, size = self._left
            if size == 0:
                header = self._exactly(8)
                if len(header) < 8:
                    return b""
                self._left = header[0], int.from_bytes(header[4:], "big")
                continue
            assert self._stream is not None
            data = self._stream.recv(min(size, BUFFER_BYTES))
            if not data:
                return b""
            self._left = kind, size - len(data)
            if kind == 1:
                return data
            self.errors = (self.errors + data)[:ERROR_BYTES]

    def _exactly(self, count: int) -> bytes:
        assert self._stream is not None
        found = b""
        while len(found) < count and (data := self._stream.recv(count - len(found))):
            found += data
        return found

    def finish(self) -> int:
        """Its exit status; its output must have been read to the end."""
        while self.receive():
            pass
        found = self._engine.do(lambda client: client.exec_inspect(self._id))
        return int(found["ExitCode"] or 0)

    def broken(self, what: str, error: Exception) -> ExecutorError:
        """The error to raise when its streams broke: the place of the job is lost where its container has ended."""
        try:
            found = self._engine.do(lambda client: client.inspect_container(self._container))
            is_gone = not found["State"]["Running"]
        except NotFound:
            is_gone = True
        except ExecutorError:
            is_gone = False
        if is_gone:
            return EnvironmentLost("the helper container ended while it was at work")
        said = self.errors.decode(errors="replace").strip()
        return WorkspaceError(f"{what}: {said or error}")

    def close(self) -> None:
        """End the streams; whoever waits for them is woken."""
        if self._stream is not None:
            self._stream.interrupt()

    def dispose(self) -> None:
        """Give the connection back; nobody waits at it."""
        if self._stream is not None:
            self._stream.close()


class _Stdout(io.RawIOBase):
    """Standard output of a program as a file."""

    def __init__(self, program: Exec | ReadBefore) -> None:
        self._program = program
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(self._program.receive())
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


class TarredFile:
    """See :class:`executors.workspace.FileContent`: a file that comes out of a tar stream."""

    def __init__(self, program: Exec | ReadBefore, path: str, size: int, content: IO[bytes] | None, error: str = "") -> None:
        self._program = program
        self.path = path
        self.size = size
        self.error = error
        self._content = content

    def pieces(self) -> Iterator[bytes]:
        """See :class:`executors.workspace.FileContent`."""
        try:
            while self._content is not None and (piece := self._content.read(PIECE_BYTES)):
                yield piece
        except (tarfile.TarError, OSError) as error:
            raise self._program.broken(f"read files: the stream broke at {self.path}", error) from error


class TarReader:
    """See :class:`executors.workspace.FilesReader`: files that a program writes as a tar file, in the order of ``paths``.
    Those that are missing in it were not there."""

    def __init__(self, program: Exec | ReadBefore, paths: Sequence[str]) -> None:
        self._program = program
        self._paths = list(paths)

    def __iter__(self) -> Iterator[FileContent]:
        """See :class:`executors.workspace.FilesReader`."""
        wanted = iter(self._paths)
        path = next(wanted, None)
        if path is None:
            return
        try:
            self._program.start()
            self._program.end_input()
            raw = io.BufferedReader(_Stdout(self._program), BUFFER_BYTES)
            with tarfile.open(fileobj=raw, mode="r|", bufsize=BUFFER_BYTES) as archive:
                for member in archive:
                    while path is not None and path != member.name:
                        yield self._missing(path)
                        path = next(wanted, None)
                    if path is None:
                        return
                    yield self._content(archive, member, path)
                    archive.members = []  # type: ignore[attr-defined] # it would remember all of them
                    path = next(wanted, None)
        except (tarfile.TarError, OSError, ExecutorError) as error:
            raise self._program.broken(f"read files: the stream broke at {path}", error) from error
        while path is not None:
            yield self._missing(path)
            path = next(wanted, None)

    def _missing(self, path: str) -> TarredFile:
        return TarredFile(self._program, path, 0, None, os.strerror(errno.ENOENT))

    def _content(self, archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> TarredFile:
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            return TarredFile(self._program, path, 0, None, os.strerror(errno.EINVAL))
        return TarredFile(self._program, path, member.size, content)

    def close(self) -> None:
        """See :class:`executors.workspace.FilesReader`."""
        self._program.close()

    def dispose(self) -> None:
        """See :class:`executors.workspace.FilesReader`."""
        self._program.dispose()


class TarWriter:
    """See :class:`executors.workspace.EntriesWriter`: entries that a program reads as a tar file. The program is started
    for many bytes only; few go with ``carrier``."""

    def __init__(self, program: Exec, root: str, carrier: Carrier) -> None:
        self._program = program
        self._root = root
        self._carrier = carrier
        self._buffer = bytearray()
        self._is_started = False

    def add_dir(self, entry: Entry) -> None:
        """See :class:`executors.workspace.EntriesWriter`. The program gives directories their times at the end."""
        self._put(_header(entry))

    def add_file(self, entry: Entry, content: Callable[[], Iterator[bytes]], *, is_shared: bool) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._put(_header(entry, size=entry.size))
        left = entry.size
        for piece in content():
            self._put(piece[:left])
            left -= min(left, len(piece))
        while left:
            self._put(bytes(min(left, BUFFER_BYTES)))
            left -= min(left, BUFFER_BYTES)
        self._put(bytes(-entry.size % BLOCK))

    def add_link(self, entry: Entry) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._put(_header(entry))

    def finish(self) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._put(bytes(2 * BLOCK))
        if not self._is_started:
            status, errors = self._carrier.run(bytes(self._buffer)), self._carrier.errors
        else:
            self._flush()
            self._program.end_input()
            try:
                status = self._program.finish()
            except (OSError, ExecutorError) as error:
                raise self._program.broken("write files", error) from error
            errors = self._program.errors
        if status != 0:
            raise self._refusal(status, errors)

    def _refusal(self, status: int, errors: bytes) -> WorkspaceError:
        """What the program could not do, in the words of the contract where it says them."""
        said = errors.decode(errors="replace").strip()
        for line in said.splitlines():
            parts = line.split(": ")
            reason = parts[-1].removesuffix("\n")
            code = next((code for code in REFUSALS if os.strerror(code) == reason), 0)
            if code and len(parts) >= 3:
                return EntryRefused(f"{self._root}/{parts[1]}", code)
        return WorkspaceError(f"write files: {said or f'tar ended with exit code {status}'}")

    def _put(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) >= (BUFFER_BYTES if self._is_started else SMALL_BYTES):
            self._flush()

    def _flush(self) -> None:
        try:
            if not self._is_started:
                self._is_started = True
                self._program.start()
            self._program.send(self._buffer)
        except (OSError, ExecutorError) as error:
            raise self._program.broken("write files: the stream into the container broke", error) from error
        self._buffer = bytearray()

    def close(self) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._carrier.close()
        self._program.close()

    def dispose(self) -> None:
        """See :class:`executors.workspace.EntriesWriter`."""
        self._program.dispose()


def _header(entry: Entry, *, size: int = 0) -> bytes:
    """The head of an entry in a tar file, with extensions for what does not fit."""
    member = tarfile.TarInfo(entry.path)
    member.mode = entry.mode & 0o1777  # nothing that runs with somebody else's rights
    member.mtime = entry.mtime_ns // 1_000_000_000
    member.size = size
    if entry.owner is not None:
        member.uid, member.gid = entry.owner
    if entry.kind == "dir":
        member.type = tarfile.DIRTYPE
    elif entry.kind == "link":
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
