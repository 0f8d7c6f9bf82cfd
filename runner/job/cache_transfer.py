"""How archives of caches are moved to and from a remote store (``job-lifecycle.md`` 12.5)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from runner.archive.cache_key import CacheKey, object_name
from runner.archive.object_store import PART_BYTES, Transfer
from runner.job.lines import METER, Lines, Move, meter, meter_frequency
from runner.job.plan import JobPlan

STREAMS = 16
MAX_STREAMS = 64
MIN_PART_BYTES = 5 * 1024 * 1024
MAX_PART_BYTES = 128 * 1024 * 1024


def object_name_of(plan: JobPlan, key: CacheKey) -> str:
    """What the archive of a key is called in the bucket."""
    config = plan.runner.cache
    return object_name(
        key,
        path=config.path,
        short_token=plan.runner.short_token,
        shared=config.shared,
        project_id=plan.payload.job_info.project_id,
    )


class CacheTransfer:
    """The settings of one job. ``writer`` names its drafts."""

    TRIES = 3
    PAUSE_S = 1.0

    def __init__(self, plan: JobPlan, lines: Lines) -> None:
        self._plan = plan
        self._lines = lines
        self.writer = f"{plan.runner.short_token}-{plan.payload.id}".replace("/", "_")

    def object_name(self, key: CacheKey) -> str:
        """What the archive of a key is called in the bucket."""
        return object_name_of(self._plan, key)

    def tries(self) -> range:
        """The numbers of the tries."""
        return range(1, self.TRIES + 1)

    @asynccontextmanager
    async def how(self, move: Move, look_up: Callable[[str], str | None]) -> AsyncIterator[Transfer]:
        """One transfer, with a meter in the log where the job wants one."""
        streams = 1
        part_bytes = min(max(_number(look_up("CACHE_CHUNK_SIZE")) or PART_BYTES, MIN_PART_BYTES), MAX_PART_BYTES)
        if self._plan.flags["FF_USE_PARALLEL_CACHE_TRANSFER"]:
            wanted = _number(look_up("CACHE_CONCURRENCY"))
            streams = min(max(STREAMS if wanted is None else wanted, 1), MAX_STREAMS)
        async with meter(self._lines, move, meter_frequency(look_up(METER), self._lines)) as moved:
            yield Transfer(
                timeout_s=self._plan.settings.cache_request_timeout_s,
                part_bytes=part_bytes,
                streams=streams,
                on_piece=moved.add,
            )


def _number(text: str | None) -> int | None:
    return int(text) if text and re.fullmatch(r"[0-9]{1,12}", text) else None
