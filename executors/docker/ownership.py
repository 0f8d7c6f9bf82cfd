"""Whom the sources belong to where they are not open to all: ``FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR``
(``docker-executor.md`` 2.9)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executors.docker.containers import Container, create, remove
from executors.docker.names import LABELS, Names
from executors.errors import ExecutorError

if TYPE_CHECKING:
    from executors.docker.client import Engine

NO_UMASK = "Not using umask - FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR is set!"
OUTPUT_BYTES = 1024
_ROOT = ("", "root")


@dataclass(frozen=True, slots=True)
class Owner:
    """A user and a group, by number."""

    uid: int
    gid: int

    def command(self, directory: str) -> tuple[str, ...]:
        """Gives a directory with everything in it to the owner; follows no link."""
        return ("chown", "-RP", "--", f"{self.uid}:{self.gid}", directory)

    def line(self, directory: str) -> str:
        """What the log says of it."""
        return f'Changing ownership of files at "{directory}" to {self.uid}:{self.gid}'


async def image_owner(engine: Engine, *, image: str, user: str, names: Names, labels: Mapping[str, str]) -> Owner | None:
    """Who an image's own user is; None for root, to whom everything belongs already.

    ``user`` is that of the image's configuration. A name is asked for in a container of its own, which mounts nothing and
    has no network. Raises :class:`ExecutorError` when the image cannot tell.
    """
    if user in _ROOT:
        return None
    body: dict[str, Any] = {
        "Image": image,
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["id -u && id -g"],
        "Labels": {**labels, f"{LABELS}type": "build"},
        "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": "json-file", "Config": {}}},
    }
    made = await create(engine, Container(name=f"{names.build}-id", body=body))
    try:
        await engine.call(lambda client: client.start(made))
        status = await engine.call(lambda client: client.wait(made))
        said = await engine.call(lambda client: client.logs(made, stderr=False, tail=2))
    finally:
        await remove(engine, made)
    found = re.fullmatch(rb"(?:.*\n)?([0-9]{1,10})\n([0-9]{1,10})\n?", said[-OUTPUT_BYTES:], re.DOTALL)
    if status["StatusCode"] != 0 or found is None:
        raise ExecutorError(f'the user "{user}" of the image has no number: id ended with {status["StatusCode"]}')
    owner = Owner(int(found[1]), int(found[2]))
    return owner if owner.uid != 0 else None
