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
_STATE = re.compile(r'"state":\s*"(\w+)"')


def calls(requests: Iterable[Mapping[str, Any]], job_id: int) -> list[Call]:
    """Calls of one job as (method, what, status); what of an update is its state.

    How many patches carry the log and how often a job says that it is alive follows from time, so patches that were
    taken count once in a row, and keep-alives that were taken not at all.
    """
    found: list[Call] = []
    for request in requests:
        if f"/jobs/{job_id}/" not in f"{request['path']}/":
            continue
        call = (request["method"], _subject(request), request["status"])
        if call == KEPT_ALIVE and call in found:
            continue
        if call == PATCHED and found and found[-1] == PATCHED:
            continue
        found.append(call)
    return found


def polls(requests: Iterable[Mapping[str, Any]]) -> list[Call]:
    """Calls for a job up to the last that brought one, without those answered with nothing."""
    found = [
        (request["method"], "request", request["status"]) for request in requests if request["path"].endswith("/jobs/request")
    ]
    while found and found[-1][2] != 201:
        found.pop()
    return [call for call in found if call != EMPTY_POLL]


def updates(made: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Bodies of updates without what follows from the length of the log; keep-alives count once."""
    found: list[dict[str, Any]] = []
    for update in made:
        body = {key: value for key, value in update.items() if key not in ("checksum", "output", "info", "token")}
        body["output"] = sorted(update.get("output") or {})
        if body not in found or body["state"] != "running":
            found.append(body)
    return found


def _subject(request: Mapping[str, Any]) -> str:
    if request["method"] != "PUT":
        return str(request["path"]).rsplit("/", 1)[-1]
    state = _STATE.search(json.dumps(request["body"]))
    return state[1] if state else ""
