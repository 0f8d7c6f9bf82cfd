"""An answer of a coordinator, and what may be said of it (``runner-api.md`` 1.9)."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from runner.urls import safe_url

NO_ANSWER = -1
NO_CLIENT = -100
JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer. ``retried`` tells that a status was seen that asks for another try, ``redirected`` that the answer is that
    of another place. ``ssl`` is the connection's. ``url`` is what was asked, without query."""

    status: int
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    retried: bool = False
    redirected: bool = False
    correlation_id: str = ""
    ssl: ssl.SSLObject | None = None
    url: str = ""

    @property
    def line(self) -> str:
        """Status and reason; why there was no answer."""
        return f"{self.status} {self.reason}".strip() if self.status >= 0 else self.reason

    @property
    def is_json(self) -> bool:
        """Whether the body says that it is JSON."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower() == JSON

    def failure(self, method: str, url: str) -> str:
        """What a log says of a call that did not end as expected (``runner-api.md`` 1.9)."""
        message = self.message
        behind = f" ({message})" if message and message != self.line else ""
        return f"{method} {safe_url(url)}: {self.line}{behind}"

    @property
    def message(self) -> str:
        """What the server says of a failure: JSON of GitLab, or XML of an object store; empty where it says nothing."""
        if self.body.lstrip()[:6] in (b"<?xml ", b"<Error"):
            return _store_message(self.body)
        if not self.is_json:
            return ""
        try:
            found = msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return ""
        message = found.get("message") if isinstance(found, dict) else None
        if isinstance(message, str):
            return message
        if isinstance(message, dict) and all(isinstance(value, list) for value in message.values()):
            return ", ".join(f"{key}: {'; '.join(map(str, value))}" for key, value in message.items())
        return ""


def _store_message(body: bytes) -> str:
    """Code and message of an object store's error. Not parsed as XML: a stranger's document is not worth the risk."""
    text = body.decode(errors="replace")
    found = [match.group(1).strip() for tag in ("Code", "Message") if (match := re.search(rf"<{tag}>([^<]*)</{tag}>", text))]
    return ": ".join(part for part in found if part)
