"""The one owner of the connection to an engine: control calls in threads, streams on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import threading
import urllib.parse
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import aiohttp
import docker
import docker.errors
import docker.tls
import requests

from executors.docker.blocking import BlockingStream, TlsStream
from executors.docker.connection import Connection
from executors.docker.errors import EngineUnreachable, engine_error
from executors.docker.streams import Hijacked, read_head

T = TypeVar("T")

THREADS = 16
OLDEST_API = "1.41"
# The longest answer that a call waits for; a container that is stopped may take its whole grace.
CALL_TIMEOUT_S = 300
CONNECT_TIMEOUT_S = 60.0
CANCEL_PATIENCE_S = 10.0
ERROR_BYTES = 64 * 1024


class Engine:
    """An engine, connected to when it is first needed; used by all jobs of one runner entry, from one event loop.

    Every method raises :class:`EngineUnreachable` when there is no engine, and :class:`EngineError` with the engine's own
    words when it refuses.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._lock = threading.Lock()
        self._client: docker.APIClient | None = None
        self._is_podman = False
        self._creating = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    # Control calls

    async def call(self, work: Callable[[docker.APIClient], T]) -> T:
        """Do control calls in a thread.

        A call that was begun is not taken back: a caller that is cancelled waits for it (for a bounded time), so that what
        it makes is there to be removed.
        """
        running = self._threads.submit(self._guarded, work)
        future = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not running.cancel():
                await asyncio.wait([future], timeout=CANCEL_PATIENCE_S)
                future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            raise

    def do(self, work: Callable[[docker.APIClient], T]) -> T:
        """The same for a caller that is a thread already."""
        return self._guarded(work)

    def _guarded(self, work: Callable[[docker.APIClient], T]) -> T:
        with self._translated():
            return work(self._connected())

    def _connected(self) -> docker.APIClient:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> docker.APIClient:
        path = self.connection.socket_path
        if path is not None:
            # Tried first: the library leaves a socket open where nobody listens.
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.connect(path)
        self.connection.ssl_context()
        probe = self._make_client(OLDEST_API)
        try:
            about: Any = probe.version(api_version=False)
        except BaseException:
            probe.close()
            raise
        self._is_podman = any(part.get("Name") == "Podman Engine" for part in about.get("Components") or ())
        probe.close()
        return self._make_client(self.connection.api_version or str(about["ApiVersion"]))

    def _make_client(self, version: str) -> docker.APIClient:
        """A client that asks the engine nothing yet: it would with what the environment of the daemon says of proxies and
        certificates, which is not meant for the engine."""
        path, folder = self.connection.socket_path, self.connection.certificates
        tls: docker.tls.TLSConfig | bool = False
        if folder is not None:
            certificate = (str(folder / "cert.pem"), str(folder / "key.pem"))
            tls = docker.tls.TLSConfig(client_cert=certificate, ca_cert=str(folder / "ca.pem"), verify=True)
        client = docker.APIClient(
            base_url=self.connection.base_url if path is None else f"http+unix://{path}",
            version=version,
            timeout=CALL_TIMEOUT_S,
            tls=tls,
            max_pool_size=THREADS,
        )
        client.trust_env = False
        client.max_redirects = 0
        return client

    async def is_accepting(self) -> bool:
        """Whether a new connection is taken: an engine that is ending still answers on the old ones."""
        try:
            _, writer = await self._dial(urllib.parse.urlsplit(self.connection.base_url))
        except (OSError, TimeoutError):
            return False
        writer.transport.abort()
        return True

    async def api_version(self) -> tuple[int, int]:
        """The version of the API that is spoken, as numbers: ``(1, 41)``."""
        text = await self.call(lambda client: client.api_version)
        major, _, minor = text.partition(".")
        return int(major), int(minor)

    async def is_podman(self) -> bool:
        """Whether it is Podman that speaks Docker's API."""
        await self.call(lambda client: client)
        return self._is_podman

    @contextlib.asynccontextmanager
    async def creating(self) -> AsyncIterator[None]:
        """Around the making of a container. Podman locks the volumes of each in any order: two at once, with the same
        volumes, wait for each other for ever."""
        if await self.is_podman():
            async with self._creating:
                yield
        else:
            yield

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except docker.errors.APIError as error:
            raise engine_error(error.status_code or 0, str(error.explanation or error)) from error
        except requests.exceptions.Timeout as error:
            raise EngineUnreachable(f"the docker API at {self.connection.host} does not answer") from error
        except (requests.exceptions.RequestException, docker.errors.DockerException, OSError) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: BaseException) -> EngineUnreachable:
        host, path = self.connection.host, self.connection.socket_path
        cause = _os_error(error)
        if path is not None and isinstance(cause, FileNotFoundError | ConnectionRefusedError | PermissionError):
            text = f"dial unix {path}: connect: {(os.strerror(cause.errno or 0)).lower()}"
            advice = "check if the path is correct and if the daemon is running"
            return EngineUnreachable(f"failed to connect to the docker API at {host}; {advice}: {text}")
        text = f"error during connect to the docker API at {host}: {cause or error}"
        if isinstance(cause, ssl.SSLError) and self.connection.certificates is not None:
            text += f": check that engine and runner have certificates of one authority, those in {self.connection.certificates}"
        return EngineUnreachable(text)

    # Streams

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A request whose answer, or body, is as long as it wants: the response, its status checked.

        ``path`` is behind the version (``/containers/x/logs``); ``data`` may be an asynchronous generator of bytes.
        """
        session = await self._streams()
        url = await self._url(path)
        try:
            async with session.request(method, url, params=params, data=data, headers=headers, allow_redirects=False) as response:
                if response.status >= 300:
                    raise engine_error(response.status, _explanation(await response.content.read(ERROR_BYTES)))
                yield response
        except aiohttp.ClientError as error:
            raise self._unreachable(error) from error

    async def hijack(self, path: str, *, params: Mapping[str, str] | None = None, body: Any = None) -> Hijacked:
        """A request whose connection becomes a pair of raw streams (attach, exec start)."""
        target = urllib.parse.urlsplit(await self._url(path))
        request = _upgrade(target, params, body)
        try:
            found = Hijacked(*await self._dial(target))
            try:
                await found.send(request)
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    status, rest = await read_head(found.reader)
            except BaseException:
                found.close()
                raise
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            raise self._unreachable(error) from error
        if status not in (101, 200):
            found.close()
            raise engine_error(status, _explanation(rest))
        return found

    def connect_raw(self, path: str, *, body: Any = None) -> BlockingStream:
        """The same for a thread: its stream begins behind the answer's head."""
        with self._translated():
            version = self._connected().api_version
            target = urllib.parse.urlsplit(f"{self.connection.base_url}/v{version}{path}")
            stream = self._dial_raw(target)
            try:
                stream.sendall(_upgrade(target, None, body))
                status, rest = _read_head_raw(stream)
                if status in (101, 200):
                    stream.settimeout(None)
                    return stream
            except BaseException:
                stream.close()
                raise
            stream.close()
        raise engine_error(status, _explanation(rest))

    def _dial_raw(self, target: urllib.parse.SplitResult) -> BlockingStream:
        if self.connection.socket_path is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(self.connection.socket_path)
            return BlockingStream(sock)
        secure = target.scheme == "https"
        sock = socket.create_connection((target.hostname or "", target.port or (443 if secure else 80)), CONNECT_TIMEOUT_S)
        if not secure:
            return BlockingStream(sock)
        try:
            return TlsStream(sock, self.connection.ssl_context() or ssl.create_default_context(), target.hostname or "")
        except BaseException:
            sock.close()
            raise

    async def _dial(self, target: urllib.parse.SplitResult) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if self.connection.socket_path is not None:
                return await asyncio.open_unix_connection(self.connection.socket_path)
            is_secure = target.scheme == "https"
            port = target.port or (443 if is_secure else 80)
            return await asyncio.open_connection(
                target.hostname, port, ssl=(self.connection.ssl_context() or True) if is_secure else None
            )

    async def _url(self, path: str) -> str:
        # The client is made, and the version agreed upon, by the first control call.
        client = self._client
        if client is None:
            client = await self.call(lambda client: client)
        return f"{self.connection.base_url}/v{client.api_version}{path}"

    async def _streams(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector: aiohttp.BaseConnector
            if self.connection.socket_path is not None:
                connector = aiohttp.UnixConnector(self.connection.socket_path, limit=0)
            else:
                connector = aiohttp.TCPConnector(ssl=self.connection.ssl_context() or True, limit=0)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=timeout, read_bufsize=1 << 20, auto_decompress=False
            )
        return self._session

    async def close(self) -> None:
        """Close connections and threads; calls that are under way end by themselves."""
        if self._session is not None:
            await self._session.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()


def _upgrade(target: urllib.parse.SplitResult, params: Mapping[str, str] | None, body: Any) -> bytes:
    """The request of a connection that is to be handed over."""
    query = urllib.parse.urlencode(params or {})
    payload = b"" if body is None else json.dumps(body).encode()
    head = (
        f"POST {target.path}{'?' if query else ''}{query} HTTP/1.1\r\nHost: {target.netloc}\r\n"
        "Content-Type: application/json\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


def _read_head_raw(stream: BlockingStream) -> tuple[int, bytes]:
    """The status of an answer; for one that is no success what came of its body."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # Byte by byte: what is behind the head belongs to the stream.
        byte = stream.recv(1)
        if not byte:
            raise ConnectionResetError("the engine closed the connection")
        head += byte
    status = int(head.split(b" ", 2)[1])
    return status, b"" if status in (101, 200) else stream.recv(ERROR_BYTES)


def _explanation(body: bytes) -> str:
    text = body.decode(errors="replace").strip()
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text or "no explanation"


def _os_error(error: BaseException | None) -> OSError | None:
    """The system's error at the root of what the libraries made of it."""
    seen: set[int] = set()
    found: OSError | None = None
    pending: list[Any] = [error]
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno is not None and not isinstance(one, requests.exceptions.RequestException):
            found = one
        pending += [one.__cause__, one.__context__, *one.args, getattr(one, "reason", None)]
    return found
