"""The volumes that slots keep for their next job: which there are, what they take, and their end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog

from executors.docker.errors import EngineError, NotFound
from executors.docker.shelf import Shelf
from executors.docker.sweep import REUSABLE_LABEL, STATE_LABEL, has_labels

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.ledger import Ledger

log = structlog.get_logger()

# The engine walks through all volumes to measure them: no more than a fiftieth of the time goes into that.
REST = 50
ONE_TYPE_API = (1, 42)
BUSY = "already running"


class KeptVolumes(Shelf):
    """Those of one engine that carry the label of this state directory."""

    def __init__(self, engine: Engine, ledger: Ledger, used: Callable[[], set[str]], state_id: str) -> None:
        super().__init__(engine, ledger, used)
        self._state_id = state_id
        self._known: dict[str, tuple[int, int]] = {}
        self._due = float("-inf")

    async def _list(self) -> Mapping[str, int]:
        labels = [f"{STATE_LABEL}={self._state_id}", f"{REUSABLE_LABEL}=true"]
        found = await self._get("/volumes", label=labels)
        return {one["Name"]: _created_ns(one) for one in found.get("Volumes") or () if has_labels(one, labels)}

    async def _sizes(self, uses: Mapping[str, int]) -> Mapping[str, int]:
        """As last measured; measured again when something was used since, if the engine has had its rest."""
        self._known = {name: known for name, known in self._known.items() if name in uses}
        is_stale = any(self._known.get(name, (0, 0))[0] <= used_ns for name, used_ns in uses.items())
        if is_stale and time.monotonic() >= self._due:
            await self._measure()
        return {name: size for name, (_, size) in self._known.items()}

    async def _measure(self) -> None:
        began, began_ns = time.monotonic(), time.time_ns()
        params = {"type": "volume"} if await self.engine.api_version() >= ONE_TYPE_API else None
        try:
            async with self.engine.stream("GET", "/system/df", params=params) as response:
                found: Mapping[str, Any] = await response.json(content_type=None)
        except EngineError as error:
            if BUSY not in error.explanation:
                raise
            return  # somebody else asks, and the engine answers one at a time
        finally:
            ended = time.monotonic()
            self._due = ended + REST * (ended - began)
        for one in found.get("Volumes") or ():
            size = (one.get("UsageData") or {}).get("Size", -1)
            self._known[one["Name"]] = (began_ns, max(size, 0))

    async def _remove(self, name: str) -> bool:
        try:
            about = await self._get(f"/volumes/{name}")
        except NotFound:
            return True
        if (about.get("Labels") or {}).get(STATE_LABEL) != self._state_id:
            return True
        await self._delete(f"/volumes/{name}")
        return True


def _created_ns(volume: Mapping[str, Any]) -> int:
    try:
        return int(datetime.fromisoformat(volume["CreatedAt"]).timestamp() * 1e9)
    except (KeyError, ValueError, TypeError):
        return 0
