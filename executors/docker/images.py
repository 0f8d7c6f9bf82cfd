"""Gets images (``docker-executor.md`` 5.3): looks them up, pulls them where the policy says so, and tells why not."""

from __future__ import annotations

import asyncio
import enum
import json
import random
import re
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors.docker.auth import Credentials, RegistryLogins, find_credentials
from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.errors import EngineError, EngineUnreachable, NotFound
from executors.docker.lines import Level, Lines
from executors.docker.policy import Platform, effective_policies, parse_platform, shown
from executors.docker.progress import PullProgress
from executors.docker.reference import InvalidReference, Reference, parse_reference
from executors.docker.uses import JobUses, key_of
from executors.errors import ExecutorError, ExternalFailure, ImagePullError, InvalidSpec, PrepareError

PULL_TRIES = 3
PAUSE_MIN_S = 2.0
PAUSE_MAX_S = 10.0
# The engine tells of every step, and of every half a second of a transfer.
STALL_S = 600.0
PLATFORM_API = (1, 49)
LONGEST_MESSAGE = 1 << 20
NO_LOGINS = RegistryLogins()
_INSPECTABLE = re.compile(r"[A-Za-z0-9\[][\w.\-/:@\]]*", re.ASCII)
_EXTERNAL = (
    "dial tcp",
    "connection refused",
    "no such host",
    "i/o timeout",
    "tls handshake",
    "client.timeout exceeded",
    "request canceled",
    "connection reset",
)
_CONFIGURATION = (
    "not found",
    "manifest unknown",
    "pull access denied",
    "access to the resource is denied",
    "no basic auth credentials",
    "repository does not exist or may require",
    "unauthorized",
    "authentication required",
)


class Blame(enum.Enum):
    """Whose fault it is that an image could not be pulled."""

    NETWORK = "network"
    CONFIGURATION = "configuration"
    UNKNOWN = "unknown"


def blame(message: str) -> Blame:
    """Whose fault a failed pull is, by what the engine said."""
    lower = message.lower()
    if any(text in lower for text in _EXTERNAL):
        return Blame.NETWORK
    if any(text in lower for text in _CONFIGURATION):
        return Blame.CONFIGURATION
    return Blame.UNKNOWN


class PullFailed(Exception):
    """The engine, or a registry, did not give an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that the engine has. ``digest`` is the first that the engine knows it by (``name@sha256:…``), empty where
    it was never pulled; ``environment`` are ``KEY=VALUE``, ``ports`` are ``8080/tcp``. ``reference`` is what containers
    are created from."""

    id: str
    name: str
    reference: str
    digest: str = ""
    platform: str = ""
    user: str = ""
    directory: str = ""
    environment: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()


@dataclass(slots=True)
class Pulls:
    """The pulls that an engine has under way. One image with one login is pulled once, however many jobs want it."""

    _running: dict[object, asyncio.Future[Exception | None]] = field(default_factory=dict)

    async def join(self, key: object, pull: Callable[[], Awaitable[None]]) -> None:
        """Do the pull, or wait for the one that is under way and end as it does. When the job that pulls is stopped,
        the next one that waits takes over."""
        while (running := self._running.get(key)) is not None:
            done, _ = await asyncio.wait([running])
            if not running.cancelled():
                error = done.pop().result()
                if isinstance(error, EngineUnreachable):
                    raise EngineUnreachable(str(error)) from error
                if error is not None:
                    raise PullFailed(str(error)) from error
                return
        mine = self._running[key] = asyncio.get_running_loop().create_future()
        try:
            await pull()
        except Exception as error:
            mine.set_result(error)
            raise
        except BaseException:
            mine.cancel()
            raise
        else:
            mine.set_result(None)
        finally:
            del self._running[key]


class JobImages:
    """The images of one job. ``home`` is the home directory of the runner's account, ``uses`` what keeps images from being
    removed while the job needs them."""

    def __init__(
        self,
        engine: Engine,
        pulls: Pulls,
        config: DockerConfig,
        *,
        logins: RegistryLogins = NO_LOGINS,
        home: Path,
        stall_s: float = STALL_S,
        uses: JobUses | None = None,
    ) -> None:
        self._engine = engine
        self._pulls = pulls
        self._config = config
        self._logins = logins
        self._home = home
        self._stall_s = stall_s
        self._uses = uses
        self._used: set[tuple[str, str]] = set()

    async def get(self, name: str, *, policies: Sequence[str] = (), platform: str = "", lines: Lines) -> Image:
        """The image of this name, as ``policies`` (of the job; empty: the configured ones) say, with the lines of it.

        Raises :class:`InvalidSpec` for what the job or the runner is to blame for, :class:`ExternalFailure` when a
        registry cannot be reached, :class:`ImagePullError` for what else a pull may end with, and :class:`PrepareError`
        for a missing image that must not be pulled.
        """
        effective = effective_policies(name, policies, self._config)
        lines.add(Level.PLAIN, f"Using effective pull policy of {shown(effective)} for container {name}")
        last: Exception = PrepareError("")
        for number, policy in enumerate(effective, start=1):
            if number > 1:
                lines.add(Level.INFO, f'Attempt #{number}: Trying "{policy}" pull policy')
            try:
                image = await self._by(policy, name, parse_platform(platform), lines)
            except EngineUnreachable:
                raise
            except (PullFailed, ExecutorError) as error:
                lines.add(Level.WARNING, f'Failed to pull image with policy "{policy}": {error}')
                last = error
                continue
            self._used.add((name, image.id))
            _announce(image, lines)
            return image
        raise _failure(f'failed to pull image "{name}" with specified policies {shown(effective)}: {last}', last) from last

    async def _by(self, policy: str, name: str, platform: Platform | None, lines: Lines) -> Image:
        image = await self._find(name, platform)
        if image is not None and (name, image.id) in self._used:
            return image
        if policy == "never":
            if image is None:
                raise NotFound(404, f"no such image: {name}: No such image: {name}")
            return image
        if image is not None and image.id == name:
            return image
        if image is not None and policy == "if-not-present":
            lines.add(Level.PLAIN, 'Using locally found image version due to "if-not-present" pull policy')
            return image
        credentials = await find_credentials(name, self._logins, home=self._home, lines=lines)
        before, had = await self._ids(), image
        await self._pull(name, platform, credentials, lines)
        image = await find_image(self._engine, name, platform)
        if image is not None and self._uses is not None:
            if had is None or had.id != image.id:
                self._uses.made_image(image.id, parse_reference(name).name, is_new=key_of(image.id) not in before)
            image = await self._find(name, platform)
        if image is None:
            raise PullFailed(f"No such image: {name}")
        return image

    async def _find(self, name: str, platform: Platform | None) -> Image | None:
        """The image, which stays from here on; of one that is on its way out the end is waited for."""
        while True:
            image = await find_image(self._engine, name, platform)
            if image is None or self._uses is None or await self._uses.take_image(image.id):
                return image

    async def _ids(self) -> set[str]:
        """All images that the engine has."""
        if self._uses is None:
            return set()
        async with self._engine.stream("GET", "/images/json") as response:
            return {key_of(one["Id"]) for one in json.loads(await response.read())}

    # Pulling

    async def _pull(self, name: str, platform: Platform | None, credentials: Credentials | None, lines: Lines) -> None:
        for_platform = f" for platform {platform}" if platform else ""
        lines.add(Level.PLAIN, f"Pulling docker image {name}{for_platform} ...")
        try:
            reference = parse_reference(name)
        except InvalidReference as error:
            raise PullFailed(str(error)) from error
        pause_s = PAUSE_MIN_S
        for attempt in range(1, PULL_TRIES + 1):
            try:
                await self._pull_once(reference, platform, credentials, lines)
                return
            except PullFailed as error:
                if attempt == PULL_TRIES or blame(str(error)) is not Blame.NETWORK:
                    raise
                lines.add(Level.WARNING, f'Failed to pull image "{name}" (attempt #{attempt}), retrying: {error}')
            # Two pauses of 2 s and of 2 to 4 s: six seconds at most are waited.
            await asyncio.sleep(random.uniform(PAUSE_MIN_S, pause_s))  # noqa: S311 - no secret
            pause_s = min(pause_s * 2, PAUSE_MAX_S)

    async def _pull_once(
        self, reference: Reference, platform: Platform | None, credentials: Credentials | None, lines: Lines
    ) -> None:
        async def pull() -> None:
            params = {"fromImage": reference.familiar, "tag": reference.version}
            if platform is not None:
                params["platform"] = str(platform)
            headers = {} if credentials is None else {"X-Registry-Auth": credentials.login.header()}
            await self._follow(params, headers, PullProgress(f"{reference.familiar}:{reference.version}"), lines)

        key = (reference, platform, None if credentials is None else credentials.login)
        await self._pulls.join(key, pull)

    async def _follow(self, params: Mapping[str, str], headers: Mapping[str, str], progress: PullProgress, lines: Lines) -> None:
        """Have the engine pull; a registry that says nothing for too long is given up."""
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(self._stall_s) as patience,
                self._engine.stream("POST", "/images/create", params=params, headers=headers) as response,
                aclosing(_messages(response.content.iter_any())) as messages,
            ):
                async for message in messages:
                    patience.reschedule(loop.time() + self._stall_s)
                    _raise_error(message)
                    text = progress.feed(message, loop.time())
                    if text:
                        lines.add(Level.PLAIN, text)
        except TimeoutError:
            raise PullFailed(f"the registry sent nothing for {self._stall_s:g} s: i/o timeout") from None
        except EngineUnreachable:
            raise
        except EngineError as error:
            raise PullFailed(str(error)) from error


async def find_image(engine: Engine, name: str, platform: Platform | None = None) -> Image | None:
    """The image as the engine has it; None when it has none."""
    if not _INSPECTABLE.fullmatch(name) or {"", ".", ".."} & set(name.split("/")):
        return None
    params = {}
    if platform is not None and await engine.api_version() >= PLATFORM_API:
        wanted = {"os": platform.os, "architecture": platform.architecture, "variant": platform.variant}
        params["platform"] = json.dumps({key: value for key, value in wanted.items() if value})
    try:
        path = f"/images/{urllib.parse.quote(name, safe='/:@')}/json"
        async with engine.stream("GET", path, params=params) as response:
            about = json.loads(await response.read())
    except NotFound:
        return None
    return _image(name, about, by_digest=platform is not None)


def _raise_error(message: Mapping[str, Any]) -> None:
    """Raise what a message of a pull says of its failure."""
    detail = message.get("errorDetail")
    text = (detail.get("message") if isinstance(detail, dict) else None) or message.get("error")
    if text:
        raise PullFailed(str(text))


async def _messages(chunks: AsyncIterator[bytes]) -> AsyncGenerator[dict[str, Any], None]:
    """The messages of a stream of JSON objects, one a line."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LONGEST_MESSAGE:
            raise PullFailed("the engine's answer to a pull cannot be understood")
        for line in filter(bytes.strip, whole):
            yield _message(line)
    if rest.strip():
        yield _message(rest)


def _message(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PullFailed("the engine's answer to a pull cannot be understood")
    return found


def _image(name: str, about: Mapping[str, Any], *, by_digest: bool) -> Image:
    config = about.get("Config") or {}
    digests = about.get("RepoDigests") or []
    parts = (about.get("Os"), about.get("Architecture"), about.get("Variant"))
    digest = digests[0] if digests else ""
    return Image(
        id=about["Id"],
        name=name,
        # Two platforms may share a name: then the digest tells them apart.
        reference=digest if by_digest and digest else about["Id"],
        digest=digest,
        platform="/".join(part for part in parts if part),
        user=config.get("User") or "",
        directory=config.get("WorkingDir") or "",
        environment=tuple(config.get("Env") or ()),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        ports=tuple(sorted(config.get("ExposedPorts") or ())),
    )


def _announce(image: Image, lines: Lines) -> None:
    if image.id != image.name:
        digest = f" with digest {image.digest}" if image.digest else ""
        lines.add(Level.PLAIN, f"Using docker image {image.id} for {image.name}{digest} ...")


def _failure(text: str, cause: Exception) -> ExecutorError:
    """What a job ends with when no policy gave its image."""
    if isinstance(cause, InvalidSpec):
        return InvalidSpec(text)
    if not isinstance(cause, PullFailed):
        return PrepareError(text)
    match blame(str(cause)):
        case Blame.NETWORK:
            return ExternalFailure(text)
        case Blame.CONFIGURATION:
            return InvalidSpec(text)
        case Blame.UNKNOWN:
            return ImagePullError(text)
