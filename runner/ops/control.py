"""The control socket: one JSON object a line asks, one answers (``config-cli-daemon.md`` 9). Only the daemon's own user and root
are listened to."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from executors.accounts import peer

log = structlog.get_logger()

RETRY_S = 60.0
LINE_BYTES = 64 * 1024

# What a command makes of a request: the answer without ``ok``.
Command = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


class Refused(Exception):
    """A command does not do what it was asked; the message says why."""


class ControlServer:
    """Answers at ``path``. ``commands`` are those that there are."""

    def __init__(self, path: Path, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._writers: set[asyncio.StreamWriter] = set()

    async def run(self) -> None:
        """Answer until cancelled; a socket that cannot be had is tried again from time to time."""
        sock = await self._opened()
        try:
            about = self._path.lstat()
            server = await asyncio.start_unix_server(self._serve, sock=sock, limit=LINE_BYTES)
            try:
                await asyncio.Event().wait()
            finally:
                server.close()
                for writer in self._writers:
                    writer.close()
                self._remove(about)
        finally:
            sock.close()

    async def _opened(self) -> socket.socket:
        said = ""
        while True:
            try:
                return await asyncio.to_thread(listen, self._path)
            except OSError as error:
                text = error.strerror or str(error)
                if text != said:
                    log.warning("control socket could not be opened", path=str(self._path), error=text)
                said = text
            await asyncio.sleep(RETRY_S)

    def _remove(self, about: os.stat_result) -> None:
        """Remove the socket, unless another daemon has put its own there."""
        with contextlib.suppress(OSError):
            if os.path.samestat(self._path.lstat(), about):
                self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            is_trusted = _is_trusted(writer.get_extra_info("socket"))
            while line := await reader.readline():
                if not is_trusted:
                    await _send(writer, _refusal("only root and the user of the daemon may ask"))
                    return
                await _send(writer, await self._answer(line))
        except ValueError:
            await _send(writer, _refusal("the request is too long"))
        except OSError as error:
            log.debug("control connection broke", error=str(error))
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
        except ValueError:
            return _refusal("the request is no JSON")
        command = self._commands.get(str(request.get("cmd"))) if isinstance(request, dict) else None
        if command is None:
            return _refusal(f'the request has no "cmd" of these: {", ".join(sorted(self._commands))}')
        try:
            return {"ok": True, **await command(request)}
        except Refused as error:
            return _refusal(str(error))
        except Exception as error:
            log.exception("control command failed", command=request.get("cmd"), error=str(error))
            return _refusal("the command failed: see the log of the daemon")


def listen(path: Path) -> socket.socket:
    """A listening socket at a path, for this user alone. Raises :class:`OSError`, also where another daemon answers."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A path may be longer than the 107 bytes of a socket address.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _make_way(path, f"/proc/self/fd/{folder}/{path.name}")
        draft = f".{path.name}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=folder)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(f"/proc/self/fd/{folder}/{draft}")
            sock.listen()
            os.rename(draft, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            sock.close()
            raise
        return sock
    finally:
        os.close(folder)


def _make_way(path: Path, address: str) -> None:
    """Find out that nobody answers there. Raises :class:`OSError`."""
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise FileExistsError(errno.EEXIST, "there is something that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
        try:
            attempt.connect(address)
        except ConnectionRefusedError:
            return
    raise OSError(errno.EADDRINUSE, "another daemon answers there")


def _is_trusted(sock: socket.socket) -> bool:
    return peer(sock)[1] in (0, os.geteuid())


def _refusal(text: str) -> Mapping[str, Any]:
    return {"ok": False, "error": text}


async def _send(writer: asyncio.StreamWriter, answer: Mapping[str, Any]) -> None:
    writer.write(json.dumps(answer).encode() + b"\n")
    await writer.drain()
