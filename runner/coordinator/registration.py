"""Calls that make, check and remove runners at GitLab (``runner-api.md`` 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from runner.coordinator.http import HttpClient, JsonAnswer
from runner.coordinator.response import NO_ANSWER, NO_CLIENT

CREATED_PREFIX = "glrt-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What GitLab answers: a runner's id, its token and when that expires."""

    id: int = 0
    token: str = ""
    expires_at: datetime | None = None
    obtained_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CallResult:
    """How a call ended. ``status`` as in ``runner-api.md`` 1.9; ``text`` is for the log."""

    status: int
    ok: bool
    text: str = ""
    credentials: Credentials = Credentials()

    @property
    def refused(self) -> bool:
        """GitLab knows the token not (any more)."""
        return self.status == 403

    @property
    def client_error(self) -> bool:
        """Nothing could even be asked."""
        return self.status == NO_CLIENT


def is_created_token(token: str) -> bool:
    """Whether the runner was created in GitLab: the one test that selects the newer workflow."""
    return token.startswith(CREATED_PREFIX)


async def register(http: HttpClient, token: str, parameters: Mapping[str, Any], info: Mapping[str, Any]) -> CallResult:
    """``POST /runners`` with a registration token."""
    body = {**parameters, "info": info, "token": token}
    answer = await http.call_json("POST", "runners", expected=201, json=body, headers={"RUNNER-TOKEN": token})
    return _result(answer, 201)


async def verify(http: HttpClient, token: str, system_id: str, info: Mapping[str, Any]) -> CallResult:
    """``POST /runners/verify``; a very old server that answers without JSON is asked once more."""
    body: dict[str, Any] = {"info": info}
    if token:
        body["token"] = token
    if system_id:
        body["system_id"] = system_id
    headers = {"RUNNER-TOKEN": token} if token else {}
    answer = await http.call_json("POST", "runners/verify", expected=200, json=body, headers=headers)
    if answer.status == NO_ANSWER and answer.response is not None and answer.response.status == 200:
        raw = msgspec.json.encode(body)
        response = await http.request("POST", "runners/verify", headers=headers, body=raw)
        # A page for people is no answer of any server: a portal, or a proxy that wants somebody to sign in.
        is_page = response.headers.get("Content-Type", "").lower().startswith("text/html")
        ok = response.status == 200 and not is_page
        return CallResult(status=response.status, ok=ok, text="" if ok else answer.text)
    return _result(answer, 200)


async def unregister(http: HttpClient, token: str, system_id: str) -> CallResult:
    """Delete the runner manager of a created runner, or the runner itself."""
    if is_created_token(token):
        path, body = "runners/managers", {"token": token, "system_id": system_id}
    else:
        path, body = "runners", {"token": token}
    response = await http.request("DELETE", path, headers={"RUNNER-TOKEN": token}, body=msgspec.json.encode(body))
    text = response.failure("DELETE", f"{http.base}{path}") if response.status >= 0 else response.reason
    return CallResult(status=response.status, ok=response.status == 204, text=text)


def token_values(credentials: Credentials) -> dict[str, Any]:
    """What the configuration file says of a token; one that never expires has the year 1."""
    return {
        "token": credentials.token,
        "token_obtained_at": credentials.obtained_at,
        "token_expires_at": credentials.expires_at or datetime.fromisoformat("0001-01-01T00:00:00+00:00"),
    }


async def reset_token(http: HttpClient, token: str) -> CallResult:
    """A new token for the runner that has this one."""
    answer = await http.call_json(
        "POST", "runners/reset_authentication_token", expected=201, json={"token": token}, endpoint="reset_token"
    )
    return _result(answer, 201)


async def reset_token_with_pat(http: HttpClient, runner_id: int, pat: str) -> CallResult:
    """The same, by a person's access token."""
    path = f"runners/{runner_id}/reset_authentication_token"
    answer = await http.call_json("POST", path, expected=201, json=None, headers={"PRIVATE-TOKEN": pat}, endpoint="reset_token")
    return _result(answer, 201)


def _result(answer: JsonAnswer, expected: int) -> CallResult:
    if answer.status != expected or not isinstance(answer.payload, dict):
        return CallResult(status=answer.status, ok=False, text=answer.text)
    payload = answer.payload
    expires = payload.get("token_expires_at")
    return CallResult(
        status=answer.status,
        ok=True,
        credentials=Credentials(
            id=payload.get("id") or 0,
            token=payload.get("token") or "",
            expires_at=datetime.fromisoformat(expires.replace("Z", "+00:00")) if expires else None,
            obtained_at=datetime.now(UTC).replace(microsecond=0),
        ),
    )
