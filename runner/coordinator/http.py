"""Requests to a coordinator: base URL, headers, redirects, time limits, the retry layer (``runner-api.md`` 1)."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import aiohttp
import msgspec
import structlog
from yarl import URL

from runner.coordinator.response import JSON, NO_ANSWER, NO_CLIENT, Response
from runner.coordinator.tls import TlsFiles, make_context
from runner.errors import CoordinatorError
from runner.identity import user_agent
from runner.urls import root_path, safe_url, server_url

log = structlog.get_logger()

ATTEMPTS = 5
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 60.0
MAX_REQUESTS = 10
CONNECT_TIMEOUT_S = 30.0
HEADER_TIMEOUT_S = 600.0
TOTAL_TIMEOUT_S = 3600.0
IDLE_CONNECTION_S = 90.0
DEFAULT_PORTS = {"http": 80, "https": 443}
READ_BUFFER_BYTES = 1024 * 1024
TOKEN_HEADERS = ("JOB-TOKEN", "RUNNER-TOKEN", "PRIVATE-TOKEN")
# A body that is made anew for every request of a call.
Body = bytes | Callable[[], AsyncIterator[bytes]]


class RequestObserver(Protocol):
    """Counts requests (``config-cli-daemon.md`` 12.1)."""

    def requested(self, endpoint: str, method: str, status: int, duration_s: float) -> None:
        """A call was answered."""
        ...

    def attempted(self, path: str, method: str) -> None:
        """One request of a call was sent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What is special about a call that moves a file.

    ``attempts`` are those of the retry layer. ``sink`` gets the body of a 200, which then is not in the answer.
    ``on_wait`` hears of each pause between attempts: seconds, method, URL. The times are limits of each request.
    """

    attempts: int = ATTEMPTS
    redirects: bool = True
    sink: Callable[[bytes], None] | None = None
    on_wait: Callable[[float, str, str], None] | None = None
    total_timeout_s: float = TOTAL_TIMEOUT_S
    header_timeout_s: float = HEADER_TIMEOUT_S


CALL = Transfer()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """A request as it is sent; redirects change it."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: Body | None
    path: str
    transfer: Transfer


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonAnswer:
    """A classified answer (``runner-api.md`` 1.9): an HTTP status, -1 for no usable answer, -100 for no usable client."""

    status: int
    payload: Any = None
    text: str = ""
    response: Response | None = None


def base_url(url: str) -> str:
    """``url`` of the configuration as the root of all endpoints. Raises :class:`CoordinatorError`."""
    parts = server_url(url)
    return urlunsplit((parts.scheme, parts.netloc, f"{root_path(parts)}/api/v4/", "", ""))


class HttpClient:
    """The connections of one runner entry to its coordinator; opened on first use."""

    def __init__(
        self,
        url: str,
        *,
        tls: TlsFiles | None = None,
        connection_max_age_s: float = 900.0,
        observer: RequestObserver | None = None,
    ) -> None:
        self._url = url
        self._tls = tls or TlsFiles()
        self._max_age_s = connection_max_age_s
        self._observer = observer
        self._agent = user_agent()
        self._session: aiohttp.ClientSession | None = None
        self._stamps: tuple[int, ...] = ()
        self._refreshed = 0.0

    @property
    def tls(self) -> TlsFiles:
        """The files that this client uses."""
        return self._tls

    @property
    def base(self) -> str:
        """The root of all endpoints. Raises :class:`CoordinatorError`."""
        return base_url(self._url)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        query: str = "",
        body: Body | None = None,
        content_type: str = JSON,
        endpoint: str = "",
        transfer: Transfer = CALL,
    ) -> Response:
        """One call with its retries. Status -1: no answer, -100: the URL or the TLS files cannot be used."""
        started = time.monotonic()
        request_id = uuid.uuid4().hex
        try:
            target = base_url(self._url) + path + (f"?{query}" if query else "")
            session = await self._ready()
        except CoordinatorError as error:
            return Response(status=NO_CLIENT, reason=str(error), correlation_id=request_id)
        sent = {"User-Agent": self._agent, "X-Request-Id": request_id, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = content_type
        request = _Request(method=method, target=target, headers=sent, body=body, path=path, transfer=transfer)
        response = await self._with_retries(session, request)
        if self._observer is not None and endpoint:
            self._observer.requested(endpoint, method, response.status, time.monotonic() - started)
        return response

    async def call_json(
        self,
        method: str,
        path: str,
        *,
        expected: int,
        json: Any,
        headers: Mapping[str, str] | None = None,
        endpoint: str = "",
    ) -> JsonAnswer:
        """A call whose answer is JSON, classified as in ``runner-api.md`` 1.9."""
        response = await self.request(
            method,
            path,
            headers={**(headers or {}), "Accept": JSON},
            body=msgspec.json.encode(json),
            endpoint=endpoint,
        )
        if response.status < 0:
            return JsonAnswer(status=response.status, text=response.reason, response=response)
        if response.status != expected:
            text = response.failure(method, base_url(self._url) + path)
            return JsonAnswer(status=response.status, text=text, response=response)
        if not response.is_json:
            kind = response.headers.get("Content-Type", "")
            return JsonAnswer(status=NO_ANSWER, text=f"the answer is not JSON but {kind!r}", response=response)
        try:
            return JsonAnswer(status=response.status, payload=msgspec.json.decode(response.body), response=response)
        except msgspec.DecodeError as error:
            return JsonAnswer(status=NO_ANSWER, text=f"the answer cannot be decoded: {error}", response=response)

    async def _with_retries(self, session: aiohttp.ClientSession, request: _Request) -> Response:
        retried = False
        response = Response(status=NO_ANSWER)
        attempts = request.transfer.attempts
        for attempt in range(attempts):
            if self._observer is not None:
                self._observer.attempted(request.path, request.method)
            try:
                response = await self._follow(session, request)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                return Response(
                    status=NO_ANSWER,
                    reason=_describe_error(error),
                    retried=retried,
                    correlation_id=request.headers["X-Request-Id"],
                )
            if not _is_retriable(response.status):
                return response if not retried else replace(response, retried=True)
            retried = True
            if attempt + 1 < attempts:
                wait_s = _wait_s(attempt, response.headers)
                log.warning("Waiting before making the next call", duration=f"{wait_s:.3f}s", status=response.status)
                if request.transfer.on_wait is not None:
                    request.transfer.on_wait(wait_s, request.method, safe_url(request.target))
                await asyncio.sleep(wait_s)
        return replace(response, retried=True)

    async def _follow(self, session: aiohttp.ClientSession, request: _Request) -> Response:
        """One request and the redirects that it leads to; tokens stay with the host that they were meant for."""
        origin = urlsplit(request.target)
        for number in range(MAX_REQUESTS):
            response = await self._send(session, request)
            location = response.headers.get("Location")
            is_redirect = response.status in (301, 302, 303, 307, 308) and location and request.transfer.redirects
            if not is_redirect or location is None:
                return replace(response, redirected=number > 0)
            headers = {**request.headers, "Referer": safe_url(request.target)}
            if response.status in (301, 302, 303) and request.method not in ("GET", "HEAD"):
                del headers["Content-Type"]
                request = replace(request, method="GET", body=None)
            target = urljoin(request.target, location)
            if not _may_have_tokens(origin, urlsplit(target)):
                if isinstance(request.body, bytes):
                    host = origin.hostname
                    raise ValueError(f"redirect to {safe_url(target)} refused: the request holds a token, which is for {host}")
                headers = {name: value for name, value in headers.items() if name not in TOKEN_HEADERS}
            request = replace(request, target=target, headers=headers)
        raise ValueError(f"stopped after {MAX_REQUESTS} redirects")

    async def _send(self, session: aiohttp.ClientSession, request: _Request) -> Response:
        transfer = request.transfer
        async with session.request(
            request.method,
            URL(request.target, encoded=True),
            headers=request.headers,
            data=request.body() if callable(request.body) else request.body,
            allow_redirects=False,
            timeout=_timeout(transfer.total_timeout_s, transfer.header_timeout_s),
        ) as answer:
            connection = _ssl_object(answer)
            content = b""
            if transfer.sink is not None and answer.status == 200:
                async for piece in answer.content.iter_any():
                    transfer.sink(piece)
            else:
                content = await answer.read()
            return Response(
                status=answer.status,
                reason=answer.reason or "",
                headers=answer.headers,
                body=content,
                correlation_id=answer.headers.get("X-Request-Id") or request.headers["X-Request-Id"],
                ssl=connection,
                url=safe_url(request.target),
            )

    async def _ready(self) -> aiohttp.ClientSession:
        """A session with current TLS files, and without connections that are too old."""
        stamps = self._tls.stamps()
        now = time.monotonic()
        too_old = self._max_age_s > 0 and now - self._refreshed > self._max_age_s
        if self._session is not None and stamps == self._stamps and not too_old:
            return self._session
        old, self._session = self._session, None
        context = make_context(self._tls) if urlsplit(self._url).scheme == "https" else False
        connector = aiohttp.TCPConnector(ssl=context or True, limit=0, keepalive_timeout=IDLE_CONNECTION_S)
        host = urlsplit(self._url).hostname or ""
        self._session = aiohttp.ClientSession(
            connector=connector,
            trust_env=not _is_loopback(host),
            auto_decompress=True,
            read_bufsize=READ_BUFFER_BYTES,
            headers={"Accept-Encoding": "gzip"},
            skip_auto_headers=("Accept", "User-Agent", "Content-Type"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._stamps, self._refreshed = stamps, now
        if old is not None:
            # Requests in flight finish on the old connections; they are closed when idle.
            asyncio.get_running_loop().call_later(IDLE_CONNECTION_S, _close_later, old)
        return self._session


_closing: set[asyncio.Task[None]] = set()


def _close_later(session: aiohttp.ClientSession) -> None:
    task = asyncio.ensure_future(session.close())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _may_have_tokens(origin: SplitResult, target: SplitResult) -> bool:
    """Whether a redirect stays with the server that the tokens are for; from http to https it may."""
    if target.scheme not in ("http", "https") or (target.hostname or "").lower() != (origin.hostname or "").lower():
        return False
    if origin.scheme == target.scheme:
        return _port(origin) == _port(target)
    return target.scheme == "https" and (_port(origin), _port(target)) == (DEFAULT_PORTS["http"], DEFAULT_PORTS["https"])


def _port(parts: SplitResult) -> int:
    return parts.port or DEFAULT_PORTS[parts.scheme]


def _timeout(total_s: float, header_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=header_s)


def _is_retriable(status: int) -> bool:
    return status in (408, 429, 500, 502, 503, 504) or status >= 512


def _wait_s(attempt: int, headers: Mapping[str, str]) -> float:
    """How long to wait before the next attempt: what the server says, else a growing random time."""
    reset = headers.get("RateLimit-ResetTime")
    if reset:
        try:
            left_s = email.utils.parsedate_to_datetime(reset).timestamp() - time.time()
        except (TypeError, ValueError):
            left_s = 0.0
        if left_s > 0:
            return left_s
    after = headers.get("Retry-After", "").strip()
    if after.isascii() and after.isdigit() and int(after) > 0:
        return float(after)
    if attempt == 0:
        return BACKOFF_MIN_S
    return min(random.uniform(BACKOFF_MIN_S, BACKOFF_MIN_S * 2**attempt), BACKOFF_MAX_S)  # noqa: S311 - spreads load


def _describe_error(error: BaseException) -> str:
    """Why there is no answer, for a person."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            why = getattr(error.certificate_error, "verify_message", "") or str(error.certificate_error)
            return f"{error.host}:{error.port}: certificate verify failed: {why}"
        case aiohttp.ClientConnectorError():
            return f"cannot connect to {error.host}:{error.port}: {_cause(error.os_error)}"
        case _:
            return str(error) or type(error).__name__


def _cause(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no TLS there: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if error.errno is None or error.errno <= 0 or isinstance(error, socket.gaierror):
        return error.strerror or str(error)
    return os.strerror(error.errno)


def _ssl_object(answer: aiohttp.ClientResponse) -> ssl.SSLObject | None:
    connection = answer.connection
    transport = connection.transport if connection is not None else None
    found = transport.get_extra_info("ssl_object") if transport is not None else None
    return found if isinstance(found, ssl.SSLObject) else None


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
