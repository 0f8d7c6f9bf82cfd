"""One job, from its acceptance to the moment the coordinator has taken its end.

:meth:`JobRun.run` is the path of ``design.md`` 5, top to bottom. It is the same for the process that accepted the job and
for one that adopts it: :mod:`runner.job.steps` passes over what has been done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from executors.base import Environment, ExecutorError, Executor, Script
from executors.registry import Kind
from runner.coordinator.port import JobCoordinator, JobState, JobUpdate, Verdict
from runner.job.outcome import JobFailure, Outcome
from runner.job.path import JobPath
from runner.job.plan import JobPlan
from runner.job.record import Acknowledged, Decided, JobRecord, PatchSent, ScopeStopped
from runner.job.steps import Steps
from runner.scope import Stopped, StopReason, StopScope, finish
from runner.trace.log import JobLog
from runner.trace.spool import Spool
from runner.trace.upload import ReportResult, TraceUploader

log = structlog.get_logger()
