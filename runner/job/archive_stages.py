"""What the stages of caches and artifacts have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

from executors.base import Environment
from executors.errors import WorkspaceError
from runner.job.lines import Lines
from runner.job.outcome import JobFailure, tool_failed
from runner.job.plan import JobPlan
from runner.job.stages import Stage
from runner.job.steps import Step
from runner.trace.log import StageLog

Body = Callable[[Step], Awaitable[None]]
# Which ``when`` is due after a job that succeeded, and after one that failed.
ARCHIVED_WHEN = {True: ("", "on_success", "always"), False: ("on_failure", "always")}


class Take(Protocol):
    """Takes a stage with its section and headline; passes over what an earlier process saw end."""

    def __call__(self, stage: str, body: Body) -> Awaitable[None]: ...


class Attempt(Protocol):
    """The same for a stage that may be tried more than once."""

    def __call__(self, stage: Stage, attempts: int, body: Body) -> Awaitable[None]: ...


class CacheWork(Protocol):
    """The stages of caches; each says how it failed."""

    async def restore(self) -> JobFailure | None: ...

    async def save(self, status: str, *, succeeded: bool) -> JobFailure | None: ...


class ArtifactWork(Protocol):
    """The stages of artifacts; each says how it failed."""

    async def download(self) -> JobFailure | None: ...

    async def upload(self, status: str, *, succeeded: bool) -> JobFailure | None: ...


class InStage(Protocol):
    """Work with the log of a stage, which is closed behind it."""

    def __call__(self, work: Callable[[StageLog], Awaitable[None]]) -> Awaitable[None]: ...


async def find_project(environment: Environment, plan: JobPlan, lines: Lines) -> None:
    """End what an earlier process left of the stage, and see that the project is there."""
    await environment.kill_tools()
    project = plan.directories.project
    try:
        if await environment.files.exists(project):
            return
    except WorkspaceError as error:
        lines.error(str(error))
    lines.fatal(f"the project directory {project} is not there")
    raise tool_failed(1)
