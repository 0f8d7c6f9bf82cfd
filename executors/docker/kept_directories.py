"""Directories of this host that slots keep in place of volumes (``cache_dir``): what there is, what it takes, and its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import structlog

from executors.docker.shelf import REMOVE_S, Shelf
from executors.errors import ExternalFailure

if TYPE_CHECKING:
    from executors.disk import Item, Trees
    from executors.docker.client import Engine
    from executors.docker.ledger import Ledger

log = structlog.get_logger()


class KeptDirectories(Shelf):
    """Those below one ``root`` that are in the ledger: what others put there, or another runner, stays."""

    def __init__(self, engine: Engine, ledger: Ledger, used: Callable[[], set[str]], *, root: str, trees: Trees) -> None:
        super().__init__(engine, ledger, used)
        self.root = root
        self._trees = trees
        self._known: dict[str, tuple[int, int]] = {}

    async def items(self, device: int) -> dict[str, Item]:
        """See :class:`executors.docker.shelf.Shelf`. Directories of another host are out of reach."""
        return {} if device < 0 else await super().items(device)

    async def sweep(self) -> None:
        """Whoever waits for one of them waits until it is out of sight; the room comes back afterwards."""
        await super().sweep()
        try:
            async with asyncio.timeout(REMOVE_S):
                failed = await self._trees.sweep(self.root)
        except (OSError, TimeoutError) as error:
            failed = {self.root: str(error) or "it takes too long"}
        _complain(failed)

    def _name_of(self, key: str) -> str:
        return f"{self.root}/{key.replace(':', '/')}"

    async def _list(self) -> Mapping[str, int]:
        """What is there, measured again where it was used since."""
        began_ns = time.time_ns()
        asked: dict[str, int | None] = {}
        for key, used_ns in self.ledger.last_uses().items():
            name = self._name_of(key)
            measured_ns, size = self._known.get(name, (0, 0))
            asked[self._below(name)] = size if used_ns < measured_ns else None
        try:
            sizes = await self._trees.sizes(self.root, asked)
        except OSError as error:
            raise ExternalFailure(str(error)) from error
        measured = {f"{self.root}/{below}": size for below, size in sizes.items()}
        self._known = {name: (began_ns, size) for name, size in measured.items()}
        return dict.fromkeys(measured, 0)

    async def _sizes(self, uses: Mapping[str, int]) -> Mapping[str, int]:
        return {name: self._known[name][1] for name in uses}

    async def _remove(self, name: str) -> bool:
        try:
            failed = await self._trees.take(self.root, [self._below(name)])
        except OSError as error:
            failed = {name: str(error)}
        _complain(failed)
        return not failed

    def _below(self, name: str) -> str:
        return name.removeprefix(f"{self.root}/")


def _complain(failed: Mapping[str, str]) -> None:
    for path, why in failed.items():
        log.warning("could not be removed from the disk", kind="volumes", path=path, error=why)
