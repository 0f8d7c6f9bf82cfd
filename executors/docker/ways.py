"""Ways to volumes within volumes (``docker-executor.md`` 13.1, rule 8).

An engine follows links on the way to the place of a mount, within the container. Where that place lies in a volume that
stays, a job can leave a link there, and the next job of the slot would have the inner volume over any directory of its
image, or of the helper. So before anything of a job runs these links are taken away, in a container that has the outer
volumes only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executors.docker.containers import Container, create, remove
from executors.docker.helper import quote
from executors.docker.names import LABELS, Names
from executors.errors import PrepareError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.volumes import Mount


@dataclass(frozen=True, slots=True)
class Level:
    """Mounts that lie equally deep in others: what those others are, and the paths between them."""

    binds: tuple[str, ...]
    ways: tuple[str, ...]


def levels(mounts: Sequence[Mount]) -> list[Level]:
    """From the outside inwards. A volume that goes with the job holds nothing of an earlier one."""
    around = {mount.destination: _around(mount, mounts) for mount in mounts}
    found = []
    for depth in range(1, max(map(len, around.values()), default=0) + 1):
        outer = [mount for mount in mounts if len(around[mount.destination]) < depth]
        ways: dict[str, None] = {}
        for mount in mounts:
            nearest = around[mount.destination][-1] if len(around[mount.destination]) == depth else None
            if nearest is not None and (nearest.reusable or not nearest.name):
                parts = mount.destination[len(nearest.destination) + 1 :].split("/")
                ways |= dict.fromkeys(f"{nearest.destination}/{'/'.join(parts[: n + 1])}" for n in range(len(parts)))
        if ways:
            found.append(Level(tuple(mount.bind for mount in outer), tuple(ways)))
    return found


def _around(inner: Mount, mounts: Sequence[Mount]) -> list[Mount]:
    """The mounts that one lies in, the outermost first."""
    found = [mount for mount in mounts if inner.destination.startswith(f"{mount.destination}/")]
    return sorted(found, key=lambda mount: len(mount.destination))


async def clear_ways(engine: Engine, level: Level, *, image: str, names: Names, labels: Mapping[str, str]) -> None:
    """Take links on the ways of a level away; ``image`` is the helper's. Raises :class:`ExecutorError`."""
    lines = [f"if [ -L {quote(way)} ]; then rm -f -- {quote(way)} || exit; fi" for way in level.ways]
    body: dict[str, Any] = {
        "Image": image,
        "Entrypoint": ["sh", "-c"],
        "Cmd": ["\n".join(lines)],
        "User": "0:0",
        "WorkingDir": "/",
        "Labels": {**labels, f"{LABELS}type": "predefined"},
        "HostConfig": {
            "Binds": list(level.binds),
            "NetworkMode": "none",
            "LogConfig": {"Type": "none", "Config": {}},
            "CapDrop": ["ALL"],
            "CapAdd": ["DAC_OVERRIDE", "FOWNER"],
            "SecurityOpt": ["no-new-privileges"],
            "ReadonlyRootfs": True,
        },
    }
    made = await create(engine, Container(name=f"{names.helper}-ways", body=body))
    try:
        await engine.call(lambda client: client.start(made))
        status = await engine.call(lambda client: client.wait(made))
    finally:
        await remove(engine, made)
    if status["StatusCode"] != 0:
        raise PrepareError(f"links on the way to volumes could not be removed: {', '.join(level.ways)}")
