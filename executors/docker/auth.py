"""Credentials of registries: where they come from, and which ones are for an image (``docker-executor.md`` 5.4).

Programs that keep credentials are run for the runner's own configuration only. A job's variable cannot name one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors.docker.lines import Level, Lines
from executors.docker.reference import DEFAULT_REGISTRY, split_registry
from executors.errors import PrepareError

VARIABLE = "$DOCKER_AUTH_CONFIG"
PAYLOAD = "job payload (GitLab Registry)"
PROGRAM_TIMEOUT_S = 60.0
NOT_OURS = "it names a program that keeps credentials, which only the runner's own configuration may do"
_IDENTITY_USER = "<token>"
_ABSENT = "credentials not found in native keychain"


class SourceUnusable(Exception):
    """A source of credentials cannot be used; says why, without any of its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """What is known for one registry, or a path in it."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    server: str = ""

    def header(self) -> str:
        """The same for ``X-Registry-Auth``."""
        said = {
            "username": self.username,
            "password": self.password,
            "serveraddress": self.server,
            "identitytoken": self.identity_token,
            "registrytoken": self.registry_token,
        }
        raw = json.dumps({key: value for key, value in said.items() if value}).encode()
        return base64.urlsafe_b64encode(raw).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLogins:
    """What a job brings: ``variable`` is the content of ``DOCKER_AUTH_CONFIG``, ``is_runners_own`` tells that the
    configuration of the runner sets it, ``payload`` are the logins that the server sent."""

    variable: str = field(default="", repr=False)
    is_runners_own: bool = False
    payload: tuple[Login, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who to be for an image, and by which source."""

    login: Login
    source: str


@dataclass(frozen=True, slots=True)
class _Key:
    """A place that a source knows of: its login, or the program that has it."""

    login: Login | None
    program: str = ""
    server: str = ""


async def find_credentials(image: str, logins: RegistryLogins, *, home: Path, lines: Lines) -> Credentials | None:
    """The login for an image: of all sources the one for its longest path, of equal ones the first.

    ``home`` is the home directory of the account that the runner has. A source that cannot be read is named in the log
    and passed over. Raises :class:`PrepareError` where the runner's own configuration names a program by a path.
    """
    places = _places(image)
    best: tuple[int, Credentials] | None = None
    for source, text, may_run in _sources(logins, home):
        try:
            found = await _best(await _keys(text, may_run=may_run), places)
        except SourceUnusable as error:
            warning = f"Failed to resolve credentials from {source}: {error}. Credentials from this source will not be used."
            lines.add(Level.WARNING, warning)
            continue
        if found is not None and (best is None or found[0] < best[0]):
            best = found[0], Credentials(login=found[1], source=source)
    keys = {_place(login.server): _Key(login) for login in reversed(logins.payload)}
    found = await _best(keys, places)
    if found is not None and (best is None or found[0] < best[0]):
        best = found[0], Credentials(login=found[1], source=PAYLOAD)
    if best is None:
        return None
    lines.add(Level.PLAIN, f"Authenticating with credentials from {best[1].source}")
    return best[1]


async def _best(keys: Mapping[str, _Key], places: Sequence[str]) -> tuple[int, Login] | None:
    """The login for the first of the places that has one, with the place's number."""
    for number, place in enumerate(places):
        key = keys.get(place)
        if key is None:
            continue
        login = await _kept(key) if key.program else key.login
        if login is not None:
            return number, login
    return None


def _sources(logins: RegistryLogins, home: Path) -> Iterable[tuple[str, str, bool]]:
    """Name, content, and whether programs may be run for it."""
    if logins.variable:
        yield VARIABLE, logins.variable, logins.is_runners_own
    for path in (home / ".docker" / "config.json", home / ".dockercfg"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        yield str(path), text if path.name == "config.json" else f'{{"auths": {text}}}', True
        return


async def _keys(text: str, *, may_run: bool) -> dict[str, _Key]:
    """What a configuration of Docker's knows, by places; the more special overlays the more general."""
    document = _document(text)
    found = {_place(server): _Key(_login(server, entry)) for server, entry in _table(document, "auths").items()}
    store, helpers = document.get("credsStore") or "", _table(document, "credHelpers")
    if (store or helpers) and not may_run:
        raise SourceUnusable(NOT_OURS)
    if store:
        listed = _document(await _run(str(store), "list", b""))
        found |= {_place(server): _Key(None, str(store), server) for server in listed}
    return found | {_place(server): _Key(None, str(program), server) for server, program in helpers.items()}


def _document(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise SourceUnusable(f"it is not JSON (line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError):
        raise SourceUnusable("it is not JSON") from None
    if not isinstance(found, dict):
        raise SourceUnusable("it is not a JSON object")
    return found


def _table(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = document.get(key) or {}
    if not isinstance(found, dict):
        raise SourceUnusable(f'"{key}" is not a JSON object')
    return found


def _login(server: str, entry: Any) -> Login:
    """An entry of ``auths``: ``auth`` holds name and password, and wins over them."""
    if not isinstance(entry, dict):
        raise SourceUnusable('an entry of "auths" is not a JSON object')
    said = {key: str(entry.get(key) or "") for key in ("auth", "username", "password", "identitytoken", "registrytoken")}
    username, password = said["username"], said["password"]
    if said["auth"]:
        try:
            raw = base64.b64decode("".join(said["auth"].split()), validate=True).decode()
        except (binascii.Error, ValueError):
            raise SourceUnusable('an "auth" is not base64') from None
        username, colon, password = raw.partition(":")
        if not colon or not username:
            raise SourceUnusable("invalid auth configuration file")
        password = password.strip("\0")
    return Login(
        username=username,
        password=password,
        identity_token=said["identitytoken"],
        registry_token=said["registrytoken"],
        server=server,
    )


def _place(server: str) -> str:
    """The key of a registry as images are matched against it: no scheme, no tag, host in small letters."""
    scheme, separator, rest = server.partition("://")
    if separator and scheme in ("http", "https"):
        return _normal(rest.partition("/")[0])
    host, slash, path = server.strip().rstrip("/").partition("/")
    return _normal(host) + slash + path.partition(":")[0]


def _normal(host: str) -> str:
    host = host.lower()
    return DEFAULT_REGISTRY if host == f"index.{DEFAULT_REGISTRY}" else host


def _places(image: str) -> list[str]:
    """The keys that serve an image, the longest first."""
    registry, rest = split_registry(image.partition("@")[0])
    parts = [_normal(registry), *rest.rpartition("/")[0].split("/"), rest.rpartition("/")[2].partition(":")[0]]
    parts = [part for part in parts if part]
    return ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]


async def _kept(key: _Key) -> Login | None:
    """The login that a program keeps; None when it has none for this server."""
    answer = _document(await _run(key.program, "get", key.server.encode(), absent_is_empty=True) or "{}")
    username, secret = str(answer.get("Username") or ""), str(answer.get("Secret") or "")
    if not secret:
        return None
    if username == _IDENTITY_USER:
        return Login(identity_token=secret, server=key.server)
    return Login(username=username, password=secret, server=key.server)


async def _run(name: str, action: str, given: bytes, *, absent_is_empty: bool = False) -> str:
    """What ``docker-credential-<name>`` answers. The secret is in the answer only, never in an argument."""
    if "/" in name or "\\" in name or "\0" in name:
        raise PrepareError("path traversal is not allowed")
    program = f"docker-credential-{name}"
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            action,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except FileNotFoundError:
        text = f'exec: "{program}": executable file not found in $PATH, out: ``'
        raise SourceUnusable(f"error {_doing(action)} - err: {text}") from None
    except OSError as error:
        raise SourceUnusable(f'error {_doing(action)} - err: exec: "{program}": {error.strerror}, out: ``') from None
    try:
        async with asyncio.timeout(PROGRAM_TIMEOUT_S):
            output, _ = await process.communicate(given)
    except TimeoutError:
        raise SourceUnusable(f"error {_doing(action)} - {program} does not answer") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode(errors="replace").strip()
    if process.returncode == 0:
        return text
    if absent_is_empty and text == _ABSENT:
        return ""
    raise SourceUnusable(f"error {_doing(action)} - err: exit status {process.returncode}, out: `{text[:200]}`")


def _doing(action: str) -> str:
    return "getting credentials" if action == "get" else "listing credentials"
