"""Which jobs borrow from a mirror of their repository."""

from __future__ import annotations

import structlog

from executors.base import Executor, SharesDirectories
from executors.errors import ExecutorError
from runner.gocache.scope import is_protected
from runner.job.mirror import wanted
from runner.job.plan import JobPlan
from runner.mirrors.access import NO_MIRROR, MirrorAccess
from runner.mirrors.store import Mirrors

log = structlog.get_logger()


async def mirror_access(mirrors: Mirrors, plan: JobPlan, executor: Executor) -> MirrorAccess:
    """What a job gets, also when it has it already. No job fails for the want of a mirror."""
    runner, accepted = plan.runner, plan.record.accepted
    if not isinstance(executor, SharesDirectories):
        return NO_MIRROR
    try:
        wish = wanted(plan)
        if wish is None:
            return NO_MIRROR
        table = runner.tables.get(plan.kind.table or "", {})
        sharing = await executor.sharing(runner.pyrunner.job_user or accepted.job_user, table)
        return mirrors.give(wish, sharing, is_protected=is_protected(plan.payload))
    except (ExecutorError, OSError) as error:
        log.warning("no mirror for the job", error=str(error))
        return NO_MIRROR
