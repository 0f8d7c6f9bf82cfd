"""Requests to a coordinator: base URL, headers, redirects, time limits, the retry layer (``runner-api.md`` 1)."""

from __future__ import annotations

import asyncio
import email.utils
import random
import ssl
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import aiohttp
import msgspec
import structlog
from yarl import URL

from runner.coordinator.tls import TlsFiles, make_context
from runner.errors import CoordinatorError
from runner.identity import user_agent

log = structlog.get_logger()

ATTEMPTS = 5
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 60.0
MAX_REQUESTS = 10
CONNECT_TIMEOUT_S = 30.0
HEADER_TIMEOUT_S = 600.0
TOTAL_TIMEOUT_S = 3600.0
IDLE_CONNECTION_S = 90.0
NO_ANSWER = -1
NO_CLIENT = -100
DEFAULT_PORTS = {"http": 80, "https": 443}
TOKEN_HEADERS = ("JOB-TOKEN", "RUNNER-TOKEN", "PRIVATE-TOKEN")
JSON = "application/json"


class RequestObserver(Protocol):
    """Counts requests (``config-cli-daemon.md`` 12.1)."""

    def requested(self, endpoint: str, method: str, status: int, duration_s: float) -> None:
        """A call was answered."""
        ...

    def attempted(self, path: str, method: str) -> None:
        """One request of a call was sent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer. ``retried`` tells that a status was seen that asks for another try. ``ssl`` is the connection's."""

    status: int
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    retried: bool = False
    correlation_id: str = ""
    ssl: ssl.SSLObject | None = None

    @property
    def is_json(self) -> bool:
        """Whether the body says that it is JSON."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower() == JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonAnswer:
    """A classified answer (``runner-api.md`` 1.9): an HTTP status, -1 for no usable answer, -100 for no usable client."""

    status: int
    payload: Any = None
    text: str = ""
    response: Response | None = None


def base_url(url: str) -> str:
    """``url`` of the configuration as the root of all endpoints. Raises :class:`CoordinatorError`."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CoordinatorError(f"only http and https URLs with a host can be used, not {safe_url(url)!r}")
    path = parts.path.rstrip("/").removesuffix("/ci")
    return urlunsplit((parts.scheme, parts.netloc, f"{path.rstrip('/')}/api/v4/", "", ""))


def safe_url(url: str) -> str:
    """A URL without credentials and query."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


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
        body: bytes | None = None,
        content_type: str = JSON,
        endpoint: str = "",
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
        response = await self._with_retries(session, method, target, sent, body, path)
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
            text = describe_failure(method, base_url(self._url) + path, response)
            return JsonAnswer(status=response.status, text=text, response=response)
        if not response.is_json:
            kind = response.headers.get("Content-Type", "")
            return JsonAnswer(status=NO_ANSWER, text=f"the answer is not JSON but {kind!r}", response=response)
        try:
            return JsonAnswer(status=response.status, payload=msgspec.json.decode(response.body), response=response)
        except msgspec.DecodeError as error:
            return JsonAnswer(status=NO_ANSWER, text=f"the answer cannot be decoded: {error}", response=response)

    async def _with_retries(
        self,
        session: aiohttp.ClientSession,
        method: str,
        target: str,
        headers: dict[str, str],
        body: bytes | None,
        path: str,
    ) -> Response:
        retried = False
        response = Response(status=NO_ANSWER)
        for attempt in range(ATTEMPTS):
            if self._observer is not None:
                self._observer.attempted(path, method)
            try:
                response = await self._follow(session, method, target, headers, body)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                return Response(
                    status=NO_ANSWER,
                    reason=_describe_error(error),
                    retried=retried,
                    correlation_id=headers["X-Request-Id"],
                )
            if not _is_retriable(response.status):
                return response if not retried else _marked(response)
            retried = True
            if attempt + 1 < ATTEMPTS:
                wait_s = _wait_s(attempt, response.headers)
                log.warning("Waiting before making the next call", duration=f"{wait_s:.3f}s", status=response.status)
                await asyncio.sleep(wait_s)
        return _marked(response)

    async def _follow(
        self, session: aiohttp.ClientSession, method: str, target: str, headers: dict[str, str], body: bytes | None
    ) -> Response:
        """One request and the redirects that it leads to; tokens stay with the host that they were meant for."""
        origin = urlsplit(target)
        for _ in range(MAX_REQUESTS):
            url = URL(target, encoded=True)
            async with session.request(method, url, headers=headers, data=body, allow_redirects=False) as answer:
                connection = _ssl_object(answer)
                content = await answer.read()
                location = answer.headers.get("Location")
                if answer.status not in (301, 302, 303, 307, 308) or not location:
                    return Response(
                        status=answer.status,
                        reason=answer.reason or "",
                        headers=answer.headers,
                        body=content,
                        correlation_id=answer.headers.get("X-Request-Id") or headers["X-Request-Id"],
                        ssl=connection,
                    )
                if answer.status in (301, 302, 303) and method not in ("GET", "HEAD"):
                    method, body = "GET", None
                    headers = {name: value for name, value in headers.items() if name != "Content-Type"}
            headers = {**headers, "Referer": safe_url(target)}
            target = urljoin(target, location)
            if not _may_have_tokens(origin, urlsplit(target)):
                if body is not None:
                    raise ValueError(
                        f"redirect to {safe_url(target)} refused: the request holds a token, which is for {origin.netloc}"
                    )
                headers = {name: value for name, value in headers.items() if name not in TOKEN_HEADERS}
        raise ValueError(f"stopped after {MAX_REQUESTS} redirects")

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
        timeout = aiohttp.ClientTimeout(total=TOTAL_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S, sock_read=HEADER_TIMEOUT_S)
        host = urlsplit(self._url).hostname or ""
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            trust_env=not _is_loopback(host),
            auto_decompress=True,
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


def describe_failure(method: str, url: str, response: Response) -> str:
    """What the log says of a call that did not end as expected (``runner-api.md`` 1.9)."""
    line = f"{response.status} {response.reason}"
    message = _server_message(response)
    behind = f" ({message})" if message and message != line else ""
    return f"{method} {safe_url(url)}: {line}{behind}"


def _server_message(response: Response) -> str:
    if not response.is_json:
        return ""
    try:
        found = msgspec.json.decode(response.body)
    except msgspec.DecodeError:
        return ""
    message = found.get("message") if isinstance(found, dict) else None
    if isinstance(message, str):
        return message
    if isinstance(message, dict) and all(isinstance(value, list) for value in message.values()):
        return ", ".join(f"{key}: {'; '.join(map(str, value))}" for key, value in message.items())
    return ""


def _marked(response: Response) -> Response:
    return Response(
        status=response.status,
        reason=response.reason,
        headers=response.headers,
        body=response.body,
        retried=True,
        correlation_id=response.correlation_id,
        ssl=response.ssl,
    )


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
    text = str(error)
    return text or type(error).__name__


def _ssl_object(answer: aiohttp.ClientResponse) -> ssl.SSLObject | None:
    connection = answer.connection
    transport = connection.transport if connection is not None else None
    found = transport.get_extra_info("ssl_object") if transport is not None else None
    return found if isinstance(found, ssl.SSLObject) else None


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"
