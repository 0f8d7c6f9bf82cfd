"""Faults that a test injects into the fake coordinator, in the language of the recordings."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Fault:
    """Acts on the first ``count`` requests whose ``METHOD path`` matches, after ``skip`` of them. ``where`` is to be found
    in their body; ``behind`` is the number of a fault that must have acted before."""

    pattern: str
    kind: str
    count: int
    details: dict[str, Any] = field(default_factory=dict)
    skipped: int = 0

    def matches(self, line: str, body: str) -> bool:
        if self.count <= 0 or not re.search(self.pattern, line):
            return False
        where = self.details.get("where")
        if where and not re.search(where, body):
            return False
        if self.skipped < self.details.get("skip", 0):
            self.skipped += 1
            return False
        self.count -= 1
        return True


class Faults:
    """The faults of one server; the first that matches acts."""

    def __init__(self, found: list[list[Any]] | None = None) -> None:
        self.all = [Fault(entry[0], entry[1], entry[2], entry[3] if len(entry) > 3 else {}) for entry in found or []]

    def add(self, pattern: str, kind: str, count: int = 1, **details: Any) -> None:
        self.all.append(Fault(pattern, kind, count, details))

    def find(self, line: str, body: str) -> Fault | None:
        due = [fault for fault in self.all if "behind" not in fault.details or self.all[fault.details["behind"]].count <= 0]
        return next((fault for fault in due if fault.matches(line, body)), None)


def fill(text: str, request: web.Request, places: dict[str, str]) -> str:
    """Placeholders of headers and bodies."""
    for name, value in {**places, "PATHQ": request.path_qs, "PATH": request.path}.items():
        text = text.replace("{" + name + "}", value)
    return text


def scripted(fault: Fault, request: web.Request, places: dict[str, str]) -> web.Response:
    """The answer of a ``status`` or ``file`` fault."""
    details = fault.details
    headers = {name: fill(str(value), request, places) for name, value in (details.get("headers") or {}).items()}
    if "date" in details:
        name, seconds = details["date"]
        headers[name] = email.utils.formatdate(time.time() + seconds, usegmt=True)
    if fault.kind == "file":
        return web.Response(status=200, body=base64.b64decode(details["base64"]), headers=headers)
    body = details.get("body", "")
    if not isinstance(body, str):
        body = json.dumps(body)
    content_type = headers.pop("Content-Type", None)
    response = web.Response(status=details["status"], headers=headers, text=fill(body, request, places))
    if content_type:
        response.headers["Content-Type"] = content_type
    return response


async def cut(request: web.Request) -> web.Response:
    """Cut the connection."""
    transport = request.transport
    if transport is not None:
        transport.abort()
    await asyncio.sleep(0)
    raise asyncio.CancelledError


async def broken_off(request: web.Request, whole: web.StreamResponse, count: int) -> web.StreamResponse:
    """The first ``count`` bytes of an answer that announces them all."""
    assert isinstance(whole, web.Response)
    assert isinstance(whole.body, bytes)
    response = web.StreamResponse(status=whole.status, headers=whole.headers)
    response.content_length = len(whole.body)
    await response.prepare(request)
    await response.write(whole.body[:count])
    await cut(request)
    return response
