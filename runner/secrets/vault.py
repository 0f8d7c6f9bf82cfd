"""HashiCorp Vault and its relatives (OpenBao, GitLab's own secrets manager): key-value engines behind a JWT login."""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import msgspec

from runner.errors import SecretError, SecretMissing, SecretRefused
from runner.secrets.fields import Part, said, text_of
from runner.secrets.http import Answer, SecretsHttp

REFUSALS = frozenset({400, 401, 403, 404})
KV2 = "kv-v2"
ENGINES = (KV2, "kv-v1", "generic")


class Auth(Part, frozen=True, kw_only=True):
    """How to log in: only ``jwt`` is known; ``data`` holds the token and the role."""

    name: str = ""
    path: str = ""
    data: dict[str, Any] = msgspec.field(default_factory=dict)


class Server(Part, frozen=True, kw_only=True):
    """Where the vault is."""

    url: str = ""
    namespace: str = ""
    auth: Auth = Auth()


class Engine(Part, frozen=True, kw_only=True):
    """What keeps the secret inside of the vault, and where it is mounted."""

    name: str = ""
    path: str = ""


class VaultSecret(Part, frozen=True, kw_only=True):
    """A field of a secret of a vault."""

    server: Server = Server()
    engine: Engine = Engine()
    path: str = ""
    field: str = ""


class InlineAuth(Part, frozen=True, kw_only=True):
    """A login that each request brings along."""

    path: str = ""
    jwt: str = ""
    role: str = ""
    auth_mount: str = ""


class ManagerServer(Part, frozen=True, kw_only=True):
    """Where GitLab's secrets manager is."""

    url: str = ""
    inline_auth: InlineAuth = InlineAuth()


class ManagerSecret(Part, frozen=True, kw_only=True):
    """A secret of GitLab's secrets manager."""

    server: ManagerServer = ManagerServer()
    engine: Engine = Engine()
    path: str = ""
    field: str = ""


async def resolve_vault(http: SecretsHttp, secret: VaultSecret) -> str:
    """Log in with the job's token, read one field. Raises :class:`SecretError`."""
    headers = {"X-Vault-Request": "true"}
    if secret.server.namespace:
        headers["X-Vault-Namespace"] = secret.server.namespace
    try:
        token = await _login(http, secret.server, headers)
    except SecretError as error:
        raise error.within("initializing Vault service: preparing authenticated client") from error
    data = await _read(http, secret.server.url, secret.engine, secret.path, {**headers, "X-Vault-Token": token})
    if secret.field not in data:
        raise SecretMissing
    return text_of(data[secret.field])


async def resolve_manager(http: SecretsHttp, secret: ManagerSecret) -> str:
    """Read one field; the login travels with the request. Raises :class:`SecretError`."""
    auth = secret.server.inline_auth
    given = {"path": auth.auth_mount, "JWT": auth.jwt, "role": auth.role}
    lacking = [name for name, value in given.items() if not value]
    if lacking:
        raise SecretRefused(f"creating vault client: configuring inline auth: inline auth {lacking[0]} is required")
    headers = {
        "X-Vault-Request": "true",
        "X-Vault-Inline-Auth-Path": _join("auth", auth.auth_mount, "login"),
        "X-Vault-Inline-Auth-Parameter-jwt": _parameter("jwt", auth.jwt),
        "X-Vault-Inline-Auth-Parameter-role": _parameter("role", auth.role),
    }
    data = await _read(http, secret.server.url, secret.engine, secret.path, headers)
    if secret.field not in data:
        raise SecretRefused(f'getting secret: field "{secret.field}" not found in secret')
    try:
        return msgspec.json.decode(data[secret.field], type=str)
    except msgspec.DecodeError as error:
        raise SecretRefused(f'getting secret: field "{secret.field}" is no string') from error


async def _login(http: SecretsHttp, server: Server, headers: Mapping[str, str]) -> str:
    if server.auth.name != "jwt":
        raise SecretRefused(f'auth method "{server.auth.name}" is not known, only jwt is')
    data = {key: server.auth.data[key] for key in ("jwt", "role") if key in server.auth.data}
    if not data.get("jwt"):
        raise SecretRefused('the data of auth method "jwt" lacks "jwt"')
    url = _url(server.url, "auth", server.auth.path, "login")
    answer = await http.request("PUT", url, headers=headers, json=data)
    try:
        fields = _checked(answer).json()
        found = msgspec.json.decode(fields["auth"], type=dict[str, msgspec.Raw])
        token = msgspec.json.decode(found["client_token"], type=str)
    except (KeyError, msgspec.DecodeError) as error:
        raise SecretError("authenticating Vault client: the answer to the login holds no token") from error
    except SecretError as error:
        raise error.within("authenticating Vault client: writing to Vault") from error
    return token


async def _read(http: SecretsHttp, url: str, engine: Engine, path: str, headers: Mapping[str, str]) -> Mapping[str, msgspec.Raw]:
    """The fields of a secret; raises :class:`SecretMissing` where there is none."""
    if engine.name not in ENGINES:
        raise SecretRefused(f'secrets engine "{engine.name}" is not known, only {", ".join(ENGINES)} are')
    parts = (engine.path, "data", path) if engine.name == KV2 else (engine.path, path)
    answer = await http.request("GET", _url(url, *parts), headers=headers)
    if answer.status == 404 and not said(answer.body, "errors"):
        raise SecretMissing
    try:
        data = _checked(answer).json().get("data")
    except SecretError as error:
        raise error.within("reading secret: reading from Vault") from error
    fields = _object(data)
    return _object(fields.get("data")) if engine.name == KV2 else fields


def _object(raw: msgspec.Raw | None) -> Mapping[str, msgspec.Raw]:
    if raw is None or bytes(raw) == b"null":
        raise SecretMissing
    try:
        return msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise SecretError("reading secret: the secret is no JSON object") from error


def _checked(answer: Answer) -> Answer:
    return answer.checked(said(answer.body, "errors"), refusals=REFUSALS)


def _parameter(key: str, value: str) -> str:
    text = msgspec.json.encode({"key": key, "value": value})
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _join(*parts: str) -> str:
    return posixpath.normpath("/".join(part for part in parts if part)).lstrip("/")


def _url(base: str, *parts: str) -> str:
    return f"{base.rstrip('/')}/v1/{quote(_join(*parts), safe='/:@$&+,;=')}"
