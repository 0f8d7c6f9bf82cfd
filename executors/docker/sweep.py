"""Removing what was made for jobs, by the labels that only this daemon's state directory gives (10.2, 10.3)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import structlog

from executors.docker.containers import remove
from executors.docker.errors import NotFound
from executors.docker.network import remove_network
from executors.docker.volumes import remove_volumes
from executors.errors import PrepareError

if TYPE_CHECKING:
    from executors.docker.client import Engine

log = structlog.get_logger()

STATE_LABEL = "com.gitlab.pyrunner.state"
RECORD_LABEL = "com.gitlab.pyrunner.record"
REUSABLE_LABEL = "com.gitlab.gitlab-runner.reusable"


async def remove_all(engine: Engine, state_id: str, record: str, *, keeps_volumes: bool = False) -> None:
    """Remove the containers of one job, then the volumes and networks that go with it.

    Problems with one thing are logged, the others are removed. Raises :class:`EngineUnreachable` without an engine.
    """
    labels = [f"{STATE_LABEL}={state_id}", f"{RECORD_LABEL}={record}"]
    await _remove(engine, labels, keeps_volumes=keeps_volumes, kept=tuple)


async def sweep(engine: Engine, state_id: str, kept: Callable[[], Collection[str]]) -> None:
    """The same for what earlier daemons of this state directory left, but for the records that ``kept`` names."""
    await _remove(engine, [f"{STATE_LABEL}={state_id}"], keeps_volumes=False, kept=kept)


async def _remove(engine: Engine, labels: list[str], *, keeps_volumes: bool, kept: Callable[[], Collection[str]]) -> None:
    of_volumes = [*labels, f"{REUSABLE_LABEL}=false"]
    containers, volumes, networks = await asyncio.gather(
        engine.call(lambda client: client.containers(all=True, filters={"label": labels})),
        engine.call(lambda client: client.volumes(filters={"label": of_volumes})),
        engine.call(lambda client: client.networks(filters={"label": labels})),
    )

    # Asked for after the listing: what is made for a job is younger than its record.
    known = set(kept())

    def ours(found: Any, wanted: Collection[str] = labels) -> list[Any]:
        marked = [one for one in found or () if has_labels(one, wanted)]
        return [one for one in marked if one["Labels"].get(RECORD_LABEL, "") not in known]

    removals = (_quietly(remove(engine, one["Id"], keeps_volumes=keeps_volumes), one["Id"]) for one in ours(containers))
    await asyncio.gather(*removals)
    found: Any = volumes
    await asyncio.gather(
        remove_volumes(engine, [one["Name"] for one in ours(found.get("Volumes"), of_volumes)]),
        *(_quietly(remove_network(engine, one["Id"]), one["Name"]) for one in ours(networks)),
    )


def has_labels(found: Mapping[str, Any], wanted: Collection[str]) -> bool:
    """Whether something that an engine lists carries all of these labels (``name=value``). Podman lists volumes that
    carry any."""
    return set(wanted) <= {f"{name}={value}" for name, value in (found.get("Labels") or {}).items()}


async def _quietly(work: Any, name: str) -> None:
    try:
        await work
    except NotFound:
        pass
    except PrepareError as error:
        log.warning("something of a job could not be removed", name=name, error=str(error))
