"""Directories of this host that a job's own container gets beside its volumes (``docker-executor.md`` 14.2)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.accounts import peer
from executors.base import Mount
from executors.errors import PrepareError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.config import DockerConfig
    from executors.docker.connection import Connection

ID_DIGITS = 16
_MIGHTY = {"ALL", "SYS_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "SYS_MODULE", "SYS_RAWIO", "MKNOD"}


def check_sharing(connection: Connection) -> None:
    """Raise :class:`PrepareError` unless the engine sees the directories of this host as this process does."""
    if not connection.host.startswith("unix://"):
        raise PrepareError(f"the Docker engine at {connection.host} does not see the directories of the runner")
    try:
        pid = _listener(connection.host.removeprefix("unix://"))
        if pid and os.path.samestat(Path("/").stat(), Path(f"/proc/{pid}/root").stat()):
            return
    except PermissionError:
        return  # another account's process of this host
    except OSError as error:
        raise PrepareError(f"connect {connection.host}: {error.strerror}") from error
    raise PrepareError("the Docker engine does not see the directories of the runner, which is in a container")


async def check_host(engine: Engine) -> None:
    """The same for an engine behind a socket that is forwarded from another host."""
    about: Any = await engine.call(lambda client: client.info())
    where = about.get("Name")
    if where != socket.gethostname():
        text = f"the Docker engine at {engine.connection.host}, which runs on {where}, does not see the directories of the runner"
        raise PrepareError(text)


def reaches_host(config: DockerConfig, directory: str) -> bool:
    """Whether jobs of a runner may be given what it takes to write to a directory of this host that they are shown for
    reading, or not at all."""
    capabilities = {name.upper().removeprefix("CAP_") for name in config.cap_add}
    if config.privileged or config.services_privileged or capabilities & _MIGHTY or config.pid_mode == "host":
        return True
    for text in config.volumes:
        parts = text.split(":")
        source = parts[0] if len(parts) > 1 else ""
        is_above = source.startswith("/") and f"{directory}/".startswith(f"{os.path.realpath(source).rstrip('/')}/")
        if is_above or source.endswith(".sock"):
            return True
    return False


def _listener(path: str) -> int:
    """The process that began to listen on a socket; 0 for one of another container, or of the host around this one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)
        return peer(sock)[0]


def shared_binds(mounts: Iterable[Mount], image_id: str, *, taken: Sequence[str]) -> tuple[str, ...]:
    """As the engine's ``Binds`` take them. What the configuration mounts in a place of theirs (``taken``) goes before.

    Raises :class:`PrepareError` when the directory of an image cannot be made.
    """
    found = []
    for mount in mounts:
        if mount.target not in taken:
            source = _of_image(mount, image_id) if mount.per_image else mount.source
            found.append(f"{source}:{mount.target}:{'ro' if mount.read_only else 'rw'}")
    return tuple(found)


def _of_image(mount: Mount, image_id: str) -> str:
    path = Path(mount.source, image_id.removeprefix("sha256:")[:ID_DIGITS])
    try:
        if not path.is_dir():
            path.mkdir()
            path.chmod(0o777)
    except OSError as error:
        raise PrepareError(f"mkdir {path}: {error.strerror}") from error
    return str(path)
