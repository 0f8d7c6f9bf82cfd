"""Gives stores to jobs: what a job may have, asked of its payload, its runner entry and its executor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import structlog

from executors.base import Executor, SharesDirectories
from executors.errors import ExecutorError
from executors.registry import KINDS
from runner.config.model import RunnerConfig
from runner.coordinator.payload import JobPayload
from runner.gocache.access import NO_ACCESS, PLACES, TARGET, GoAccess, access, refused
from runner.gocache.scope import SWITCH, Trust, group_of, is_declined, store_key
from runner.gocache.stores import Stores

log = structlog.get_logger()


def budgets(runners: Sequence[RunnerConfig]) -> dict[str, int]:
    """The bytes that the stores of each group may hold."""
    return {group_of(runner): runner.go.max_size_bytes for runner in runners if runner.go.enabled}


class Keeper:
    """One for all jobs of a daemon."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self._complained = ""

    async def give(
        self, record: Path, payload: JobPayload, runner: RunnerConfig, executor: Executor, user: str | None
    ) -> GoAccess:
        """What the job has of the stores, also when it has it already. No job fails for the want of a store."""
        if not runner.go.enabled:
            return NO_ACCESS
        if is_declined(payload.variables):
            return refused(f"{SWITCH} says so")
        if not isinstance(executor, SharesDirectories):
            return refused("jobs of this executor share no directories")
        try:
            table = runner.tables.get(KINDS[runner.executor].table or "", {})
            sharing = await executor.sharing(user, table)
            key = store_key(payload, runner, account="any" if sharing.uid is None else f"uid{sharing.uid}")
            mounted = not sharing.problem
            if key.trust is Trust.PROTECTED and sharing.problem != self._complained:
                self._complained = sharing.problem
                log.warning("Go stores of protected refs end with their jobs", reason=sharing.problem)
            if mounted and sharing.uid is not None:
                make_targets()
            claim = await self.stores.claim(record, key, mounted=mounted, uid=sharing.uid, gid=sharing.gid)
        except (ExecutorError, OSError) as error:
            log.warning("no Go store for the job", error=str(error))
            return refused(str(error))
        return access(claim, runner.go, sharing, by_image=sharing.uid is None and not _is_without_cgo(payload))

    def take_back(self, record: Path) -> None:
        """The job has no more processes."""
        self.stores.release(record)


def make_targets() -> None:
    """The places on this host where stores are mounted; what is there on the host itself is empty, and root's."""
    for name in PLACES:
        Path(TARGET, name).mkdir(parents=True, exist_ok=True)


def _is_without_cgo(payload: JobPayload) -> bool:
    found = [variable.value for variable in payload.variables if variable.key == "CGO_ENABLED"]
    return found[-1:] == ["0"]
