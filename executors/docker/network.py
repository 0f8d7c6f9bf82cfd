"""The network of a job: the configured one, or one of its own (``docker-executor.md`` 7)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from executors.docker.errors import NotFound

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.config import DockerConfig

MTU_OPTION = "com.docker.network.driver.mtu"
BUILT_IN = frozenset({"", "default", "bridge", "host", "none"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Where containers of a job are joined. ``mode`` is the engine's ``NetworkMode``, empty for its default;
    ``is_own`` tells that the job's network is made and removed with it."""

    mode: str = ""
    is_own: bool = False

    @property
    def is_user_defined(self) -> bool:
        """Whether containers find each other by names there."""
        return self.mode not in BUILT_IN and not self.mode.startswith("container:")


ENGINE_DEFAULT = Network()


def plan_network(table: DockerConfig, name: str, *, per_build: bool) -> Network:
    """The network of a job; ``name`` is what one of its own is called, ``per_build`` is ``FF_NETWORK_PER_BUILD``."""
    if table.network_mode:
        return Network(mode=table.network_mode)
    return Network(mode=name, is_own=True) if per_build else Network()


async def create_network(engine: Engine, network: Network, table: DockerConfig, labels: Mapping[str, str]) -> None:
    """Make the job's own network, if it has one; one that an earlier attempt of this job made is used again.

    Raises :class:`PrepareError`.
    """
    if not network.is_own or await _is_there(engine, network.mode, labels):
        return
    options = {MTU_OPTION: str(table.network_mtu)} if table.network_mtu else None
    await engine.call(
        lambda client: client.create_network(
            network.mode,
            driver="bridge",
            options=options,
            check_duplicate=True,
            labels=dict(labels),
            enable_ipv6=table.enable_ipv6,
        )
    )


async def _is_there(engine: Engine, name: str, labels: Mapping[str, str]) -> bool:
    try:
        found: Mapping[str, Any] = await engine.call(lambda client: client.inspect_network(name))
    except NotFound:
        return False
    return found.get("Name") == name and (found.get("Labels") or {}) == dict(labels)


async def remove_network(engine: Engine, network: str) -> None:
    """Remove a network with everything that is joined to it. Raises :class:`PrepareError`."""
    about: Mapping[str, Any] = await engine.call(lambda client: client.inspect_network(network))
    await asyncio.gather(*(_remove_container(engine, container) for container in about.get("Containers") or ()))
    await engine.call(lambda client: client.remove_network(about["Id"]))


async def _remove_container(engine: Engine, container: str) -> None:
    try:
        await engine.call(lambda client: client.remove_container(container, v=True, force=True))
    except NotFound:
        pass
