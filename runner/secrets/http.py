"""Requests to providers of secrets: bounded, repeated where the provider is in trouble, never carried to another host."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from runner.errors import ProviderFailed, SecretError, SecretRefused
from runner.identity import user_agent
from runner.urls import safe_url

TRIES = 3
PAUSE_S = 1.0
TIMEOUT = aiohttp.ClientTimeout(total=60.0, sock_connect=10.0)
MAX_BYTES = 4 * 1024 * 1024
MAX_TEXT = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a provider said; ``place`` is method and address, for messages."""

    place: str
    status: int
    body: bytes

    def json(self) -> dict[str, msgspec.Raw]:
        """The fields of an answer that is a JSON object, still undecoded. Raises :class:`SecretError`."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError as error:
            raise SecretError(f"{self.place}: the answer is no JSON object") from error

    def checked(self, text: str, *, refusals: frozenset[int]) -> Answer:
        """The answer itself where it is a success. ``text`` says what the provider complains of; statuses among
        ``refusals`` are the fault of whoever described the secret."""
        if self.status < 300:
            return self
        message = f"api error: status code {self.status}: {text[:MAX_TEXT]}"
        if self.status in refusals:
            raise SecretRefused(message)
        raise ProviderFailed(message) if self.status >= 500 else SecretError(message)


class SecretsHttp:
    """Connections to providers, for the time of one ``async with``. ``environment`` is the daemon's."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> SecretsHttp:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        json: Any = None,
        body: bytes | None = None,
    ) -> Answer:
        """One call; ``form``, ``json`` or ``body`` is sent. Raises :class:`SecretError` where no answer can be had."""
        _check(url)
        sent = {"User-Agent": user_agent(), **(headers or {})}
        if form is not None:
            body = urlencode(form).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        elif json is not None:
            body = msgspec.json.encode(json)
            sent["Content-Type"] = "application/json"
        place = f"{method} {safe_url(url)}"
        for left in reversed(range(TRIES)):
            try:
                answer = await self._send(method, url, sent, body, place)
                if left == 0 or (answer.status < 500 and answer.status != 429):
                    return answer
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                if left == 0:
                    raise SecretError(f"{place}: {str(error) or type(error).__name__}") from error
            await asyncio.sleep(PAUSE_S)
        raise AssertionError("the last try returns or raises")

    async def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, place: str) -> Answer:
        host = urlsplit(url).hostname or ""
        async with self._ready(host).request(
            method, URL(url, encoded=True), headers=headers, data=body, allow_redirects=False, timeout=TIMEOUT
        ) as response:
            if 300 <= response.status < 400:
                target = safe_url(response.headers.get("Location", "?"))
                raise SecretRefused(f"{place}: redirects to {target} are not followed, since the request holds a token")
            content = await response.content.read(MAX_BYTES + 1)
            while len(content) <= MAX_BYTES and (piece := await response.content.read(MAX_BYTES)):
                content += piece
            if len(content) > MAX_BYTES:
                raise SecretError(f"{place}: the answer has more than {MAX_BYTES} bytes")
            return Answer(place=place, status=response.status, body=content)

    def _ready(self, host: str) -> aiohttp.ClientSession:
        if self._session is None:
            context = ssl.create_default_context()
            own = self.environment.get("VAULT_CACERT")
            if own:
                try:
                    context.load_verify_locations(cafile=own)
                except (OSError, ssl.SSLError) as error:
                    raise SecretError(f"cannot use the CA file {own} of VAULT_CACERT: {error.strerror or error}") from error
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context),
                trust_env=host not in ("localhost", "::1") and not host.startswith("127."),
                skip_auto_headers=("Accept", "User-Agent", "Content-Type"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _check(url: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise SecretRefused(f"{safe_url(url)!r} is no address of a provider: http or https and a host are needed")
