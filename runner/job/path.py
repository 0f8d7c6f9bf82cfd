"""The stages of a job in their order (``job-lifecycle.md`` 2): what a job does between its header and its last line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from executors.base import Environment, ExecutorError, PrepareError, Script, Stream
from executors.registry import Kind
from runner.config.duration import format_duration
from runner.job.outcome import (
    Canceled,
    JobFailure,
    PrepareTimeout,
    ScriptFailed,
    ScriptTimeout,
    SourcesTimeout,
    SystemFailure,
    failure_of,
)
from runner.job.plan import JobPlan
from runner.job.scripts import ScriptRunner
from runner.job.sources import Sources
from runner.job.stages import Stage
from runner.job.steps import Step, Steps
from runner.scope import Stopped, StopReason, StopScope
from runner.trace.log import JobLog

log = structlog.get_logger()

PREPARE_TRIES = 3
PREPARE_PAUSE_S = 3.0
DOCS_TIMEOUTS = "https://docs.gitlab.com/ci/runners/configure_runners/#set-script-and-after_script-timeouts"


class JobPath:
    """Walks the stages. ``run`` returns when the job succeeded and raises :class:`JobFailure` when it did not."""

    def __init__(
        self,
        *,
        plan: JobPlan,
        kind: Kind,
        environment: Environment,
        job_log: JobLog,
        steps: Steps,
        scripts: ScriptRunner,
        sources: Sources,
        job_scope: StopScope,
        script_scope: StopScope,
    ) -> None:
        self._plan = plan
        self._kind = kind
        self._environment = environment
        self._log = job_log
        self._steps = steps
        self._scripts = scripts
        self._sources = sources
        self._job_scope = job_scope
        self._script_scope = script_scope
        self.stage = ""
        self.in_script = False
        self.script_over = False

    async def run(self) -> None:
        """The path of a job, top to bottom."""
        await self._prepare()
        failure = await self._attempt_sources()
        if failure is None:
            self._announce()
            failure = await self._user_steps()
            failure = await self._after_script(failure)
        await self._take(Stage.CLEANUP_FILE_VARIABLES, self._clean_up)
        if failure is not None:
            raise failure
