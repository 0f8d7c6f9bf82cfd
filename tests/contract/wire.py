"""What two runners have said to a server, brought into a form in which it can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

Call = tuple[str, str, int | None]
EMPTY_POLL: Call = ("POST", "request", 204)
PATCHED: Call = ("PATCH", "trace", 202)
KEPT_ALIVE: Call = ("PUT", "running", 200)
# Of the transport, not of the protocol.
IGNORED = ("Host", "Content-Length", "Accept-Encoding", "Connection", "Transfer-Encoding")
_CALL = re.compile(r"/api/v4/jobs/(?:\d+/?)?(\w*)$")
_STATE = re.compile(r'"state":\s*"(\w+)"')


def calls(requests: Iterable[Mapping[str, Any]], job_id: int) -> list[Call]:
    """Calls of one job as (method, what, status); what of an update is its state.

    How many patches carry the log, between which other calls, and how often a job says that it is alive follows from
    time: patches that were taken stand once, at the end, keep-alives that were taken not at all.
    """
    found: list[Call] = []
    patched = False
    for request in requests:
        if f"/jobs/{job_id}/" not in f"{request['path']}/":
            continue
        call = (request["method"], _subject(request), request["status"])
        if call != PATCHED and not (call == KEPT_ALIVE and call in found):
            found.append(call)
        patched = patched or call == PATCHED
    return [*found, PATCHED] if patched else found


def polls(requests: Iterable[Mapping[str, Any]]) -> list[Call]:
    """Calls for a job up to the last that brought one, without those answered with nothing."""
    found = [
        (request["method"], "request", request["status"]) for request in requests if request["path"].endswith("/jobs/request")
    ]
    while found and found[-1][2] != 201:
        found.pop()
    return [call for call in found if call != EMPTY_POLL]


def headers(requests: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Names of the headers that each kind of call carries, and what is constant in them."""
    found: dict[str, set[str]] = {}
    for request in requests:
        match = _CALL.search(str(request["path"]))
        if match is None:
            continue
        kind = f"{request['method']} {match[1] or 'jobs'}"
        names = {name.title(): str(value) for name, value in request["headers"].items()}
        for name, value in names.items():
            if name not in IGNORED:
                shown = value if name in ("Content-Type", "Accept") and "boundary" not in value else ""
                found.setdefault(kind, set()).add(f"{name}: {shown}")
    return {kind: sorted(names) for kind, names in sorted(found.items())}


def updates(requests: Iterable[Mapping[str, Any]], job_id: int) -> list[dict[str, Any]]:
    """Bodies of a job's updates without what follows from the length of the log, and without keep-alives."""
    found: list[dict[str, Any]] = []
    for request in requests:
        body = request["body"]
        if request["method"] != "PUT" or not str(request["path"]).endswith(f"/jobs/{job_id}") or not isinstance(body, dict):
            continue
        kept = {key: value for key, value in body.items() if key not in ("checksum", "output", "info", "token")}
        kept["output"] = sorted(body.get("output") or {})
        if kept["state"] != "running" or not kept["output"]:
            found.append(kept)
    return found


def _subject(request: Mapping[str, Any]) -> str:
    if request["method"] != "PUT":
        return str(request["path"]).rsplit("/", 1)[-1]
    state = _STATE.search(json.dumps(request["body"]))
    return state[1] if state else ""
