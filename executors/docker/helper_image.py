"""The image of the helper container: the configured one, or one that is made of this host (``docker-executor.md`` 12.4)."""

from __future__ import annotations

import asyncio
import json
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import docker
import docker.errors
import structlog

from executors.docker.client import Engine
from executors.docker.errors import EngineError
from executors.docker.host_root import SEARCH_PATH, HostRoot, host_root
from executors.docker.images import Image, JobImages, find_image
from executors.docker.lines import Level, Lines
from executors.docker.reference import familiar_name
from executors.errors import ExecutorError, PrepareError

log = structlog.get_logger()

REPOSITORY = "pyrunner-helper"
LABEL = "pyrunner.helper"
# Long enough that runners of different hosts, which share an engine, do not take each other's away all the time.
KEPT = timedelta(days=7)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


class HelperImages:
    """The helper images of one engine. What is made is made once, and again when this host's programs change; ``made`` is
    told the id and the name of it."""

    def __init__(self, engine: Engine, made: Callable[[str, str], None] = lambda image, name: None) -> None:
        self._engine = engine
        self._made = made
        self._lock = asyncio.Lock()
        self._root: HostRoot | None = None
        self._signature: tuple[object, ...] = ()
        self._tag = ""

    async def get(self, configured: str, images: JobImages, lines: Lines) -> Image:
        """The helper image of a job; ``configured`` is the expanded key of the runner's table.

        A configured one is had as the runner's policies say, and raises what :meth:`JobImages.get` does. Raises
        :class:`ExecutorError` when this host cannot make one for the engine.
        """
        if configured:
            text = f"Using helper image:  {configured}  (overridden, default would be  {REPOSITORY} )"
            lines.add(Level.PLAIN, text)
            return await images.get(configured, lines=lines)
        return await self.own()

    async def own(self) -> Image:
        """The image made of this host."""
        async with self._lock:
            if self._root is None or self._signature != await asyncio.to_thread(self._root.signature):
                await self._read_host()
            image = await find_image(self._engine, self._tag)
            if image is None:
                await self._make()
                image = await find_image(self._engine, self._tag)
            if image is None:
                raise ExecutorError(f"the helper image {self._tag} is not there, although it was just made")
            return image

    async def _read_host(self) -> None:
        root = await asyncio.to_thread(host_root)
        self._signature = await asyncio.to_thread(root.signature)
        self._tag = f"{REPOSITORY}:{await asyncio.to_thread(root.digest)}"
        self._root = root

    async def _make(self) -> None:
        root, tag = self._root, self._tag
        assert root is not None
        await self._engine.call(_check_engine)
        try:
            with tempfile.NamedTemporaryFile(prefix="pyrunner-helper-") as file:
                await asyncio.to_thread(root.write, file)
                file.flush()
                found = await self._engine.call(lambda client: _import(client, file.name, tag))
        except OSError as error:
            # A program that was replaced meanwhile, a full disk: the next job looks again.
            self._root = None
            raise PrepareError(f"the helper image could not be made: {error}") from error
        if found:
            self._made(found, tag)
        log.info("helper image made", image=tag)
        try:
            await self._engine.call(lambda client: _remove_old(client, tag, datetime.now(tz=UTC)))
        except EngineError as error:
            log.warning("helper images of the past could not be removed", error=str(error))


def _check_engine(client: docker.APIClient) -> None:
    about: Any = client.version()
    own = platform.machine()
    own = _ARCHITECTURES.get(own, own)
    if (about["Os"], about["Arch"]) != ("linux", own):
        text = f"the engine runs {about['Os']}/{about['Arch']}, this host is linux/{own}"
        raise ExecutorError(f'no helper image can be made: {text}; set "helper_image" in [runners.docker]')


def _import(client: docker.APIClient, path: str, tag: str) -> str:
    """Make the image, unless somebody else does meanwhile: then theirs is taken, and this one removed. The id of the one
    that was made, empty where it was not."""
    repository, _, version = tag.partition(":")
    changes = [f"ENV PATH={SEARCH_PATH}", f"LABEL {LABEL}={version}", 'CMD ["sh"]']
    said: Any = client.import_image_from_file(path, changes=changes)
    found = _id_of(said)
    try:
        client.inspect_image(tag)  # type: ignore[no-untyped-call]
    except docker.errors.ImageNotFound:
        client.tag(found, repository, version)
        return found
    client.remove_image(found)
    return ""


def _id_of(said: Any) -> str:
    """The id that the engine's messages on an import end with."""
    for line in str(said).splitlines():
        message = json.loads(line)
        if "error" in message:
            raise ExecutorError(f"the helper image could not be made: {message['error']}")
        if str(message.get("status", "")).startswith("sha256:"):
            return str(message["status"])
    raise ExecutorError("the helper image could not be made: the engine does not say its id")


def outdated(listed: Iterable[Mapping[str, Any]], tag: str, now: datetime) -> list[str]:
    """Names (of nameless ones the ids) of images, as the engine lists them, that earlier programs of hosts were made into.

    Names that somebody else gave them stay.
    """
    found: list[str] = []
    for image in listed:
        names = {name: familiar_name(name) for name in image.get("RepoTags") or ()}
        if tag not in names.values() and now - datetime.fromtimestamp(image["Created"], tz=UTC) >= KEPT:
            found += [name for name, short in names.items() if short.startswith(f"{REPOSITORY}:")] if names else [image["Id"]]
    return found


def _remove_old(client: docker.APIClient, tag: str, now: datetime) -> None:
    listed: Any = client.images(filters={"label": LABEL})
    for name in outdated(listed, tag, now):
        try:
            client.remove_image(name)
        except docker.errors.APIError as error:
            log.info("a helper image of the past is in use", image=name, error=str(error.explanation))
