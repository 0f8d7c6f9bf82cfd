"""The stages that restore and save caches (``job-lifecycle.md`` 12)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from executors.base import Environment
from runner.coordinator.payload import Cache
from runner.errors import ArchiveError
from runner.job.archive_stages import ARCHIVED_WHEN, Attempt, InStage, Take, find_project
from runner.job.costs import Tally
from runner.job.lines import Lines
from runner.job.outcome import JobFailure, system_failure
from runner.job.plan import JobPlan
from runner.job.stages import Stage
from runner.trace.log import StageLog

if TYPE_CHECKING:
    from runner.archive.object_store import ObjectStore

PULL = ("", "pull", "pull-push")
PUSH = ("", "push", "pull-push")
POLICIES = ("", "pull", "push", "pull-push")


def unknown_policy(plan: JobPlan, caches: Sequence[Cache]) -> JobFailure | None:
    """A stage is not begun with a policy that nobody knows."""
    for cache in caches:
        policy = plan.variables.expand(cache.policy)
        if policy not in POLICIES:
            return system_failure(f"unknown cache policy {policy} for {plan.cache_key(cache.key).shown}")
    return None


class CacheStages:
    """Carries the stages out. Both may be repeated from their beginning by a process that adopts the job."""

    def __init__(
        self, plan: JobPlan, environment: Environment, tally: Tally, *, take: Take, attempt: Attempt, in_stage: InStage
    ) -> None:
        self._plan = plan
        self._environment = environment
        self._tally = tally
        self._take = take
        self._attempt = attempt
        self._in_stage = in_stage

    async def restore(self) -> JobFailure | None:
        """Every entry in order. What cannot be restored is a warning; an unknown policy fails the job."""
        caches = [cache for cache in self._plan.caches if cache.paths or cache.untracked]
        if not caches:
            return None
        failure = unknown_policy(self._plan, caches)
        if failure is not None:
            return failure

        # Archives are read by large libraries: a daemon whose jobs have none does without.
        from runner.job.cache_restore import Restorer

        async def work(stage: StageLog) -> None:
            lines = Lines(stage, self._tally)
            await find_project(self._environment, self._plan, lines)
            restorer = Restorer(self._plan, self._environment, lines, self._remote(lines))
            for cache in caches:
                await restorer.restore(cache, pulls=self._policy(cache) in PULL)

        try:
            attempts = self._plan.settings.restore_cache_attempts
            await self._attempt(Stage.RESTORE_CACHE, attempts, lambda _: self._in_stage(work))
        except JobFailure as error:
            return error
        return None

    async def save(self, status: str, *, succeeded: bool) -> JobFailure | None:
        """Every entry that is due; what cannot be saved is a warning. ``status`` is what ``CI_JOB_STATUS`` says."""
        due = ARCHIVED_WHEN[succeeded]
        caches = [cache for cache in self._plan.caches if cache.when in due and (cache.paths or cache.untracked)]
        if not caches:
            return None
        failure = unknown_policy(self._plan, caches)
        if failure is not None:
            return failure
        name = Stage.ARCHIVE_CACHE if succeeded else Stage.ARCHIVE_CACHE_ON_FAILURE

        from runner.job.cache_save import Saver

        async def work(stage: StageLog) -> None:
            lines = Lines(stage, self._tally)
            await find_project(self._environment, self._plan, lines)
            saver = Saver(self._plan, self._environment, lines, self._remote(lines))
            await saver.look_around(status)
            for cache in caches:
                await saver.save(cache, pushes=self._policy(cache) in PUSH)

        try:
            await self._take(name, lambda _: self._in_stage(work))
        except JobFailure as error:
            return error
        return None

    def _policy(self, cache: Cache) -> str:
        return self._plan.variables.expand(cache.policy)

    def _remote(self, lines: Lines) -> ObjectStore | None:
        from runner.archive.buckets import open_bucket

        try:
            return open_bucket(self._plan.runner.cache)
        except ArchiveError as error:
            lines.warning(f"{error}. Caches are stored only locally.")
            return None
