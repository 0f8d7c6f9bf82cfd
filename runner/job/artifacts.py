"""The stages that bring artifacts to GitLab and those of earlier jobs back (``job-lifecycle.md`` 13)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from executors.base import Environment, WorkspaceError
from runner.coordinator.payload import Artifact, Dependency
from runner.coordinator.port import JobCoordinator
from runner.job.downloads import Downloader
from runner.job.lines import Lines
from runner.job.outcome import JobFailure, tool_failed
from runner.job.plan import JobPlan
from runner.job.stages import Stage
from runner.job.steps import Step, Steps
from runner.job.uploads import Uploader
from runner.trace.log import StageLog

Body = Callable[[Step], Awaitable[None]]
UPLOAD_WHEN = {True: ("", "on_success", "always"), False: ("on_failure", "always")}


class Take(Protocol):
    """Takes a stage with its section and headline; passes over what an earlier process saw end."""

    def __call__(self, stage: str, body: Body) -> Awaitable[None]: ...


class Attempt(Protocol):
    """The same for a stage that may be tried more than once."""

    def __call__(self, stage: Stage, attempts: int, body: Body) -> Awaitable[None]: ...


class InStage(Protocol):
    """Work with the log of a stage, which is closed behind it."""

    def __call__(self, work: Callable[[StageLog], Awaitable[None]]) -> Awaitable[None]: ...


def due_uploads(artifacts: Sequence[Artifact], *, succeeded: bool) -> list[tuple[int, Artifact]]:
    """The entries to be uploaded after a job, with their numbers in the payload."""
    return [
        (number, artifact)
        for number, artifact in enumerate(artifacts)
        if artifact.when in UPLOAD_WHEN[succeeded] and (artifact.paths or artifact.exclude or artifact.untracked)
    ]


def due_downloads(dependencies: Sequence[Dependency]) -> list[Dependency]:
    """The jobs whose artifacts are wanted, and have some."""
    return [dependency for dependency in dependencies if dependency.artifacts_file.filename]


class ArtifactStages:
    """Carries the stages out. Both may be repeated from their beginning by a process that adopts the job."""

    def __init__(
        self,
        plan: JobPlan,
        environment: Environment,
        coordinator: JobCoordinator,
        steps: Steps,
        *,
        take: Take,
        attempt: Attempt,
        in_stage: InStage,
    ) -> None:
        self._plan = plan
        self._environment = environment
        self._coordinator = coordinator
        self._steps = steps
        self._take = take
        self._attempt = attempt
        self._in_stage = in_stage

    async def download(self) -> JobFailure | None:
        """Every dependency in order; one that fails is the last. Nothing happens where there is none."""
        dependencies = due_downloads(self._plan.payload.dependencies)
        if not dependencies:
            return None

        async def work(stage: StageLog) -> None:
            lines = Lines(stage)
            await self._begin(lines)
            downloader = Downloader(self._plan, self._environment, self._coordinator, lines)
            for dependency in dependencies:
                await downloader.download(dependency)

        try:
            attempts = self._plan.settings.artifact_download_attempts
            await self._attempt(Stage.DOWNLOAD_ARTIFACTS, attempts, lambda _: self._in_stage(work))
        except JobFailure as failure:
            return failure
        return None

    async def upload(self, failure: JobFailure | None, status: str) -> JobFailure | None:
        """Every entry in order; one that fails is the last. ``status`` is what ``CI_JOB_STATUS`` says.

        The first failure of the job counts: one of an upload only where there was none.
        """
        entries = due_uploads(self._plan.payload.artifacts, succeeded=failure is None) if self._plan.runner.url else []
        if not entries:
            return failure
        name = Stage.UPLOAD_ON_SUCCESS if failure is None else Stage.UPLOAD_ON_FAILURE

        async def work(stage: StageLog) -> None:
            lines = Lines(stage)
            await self._begin(lines)
            uploader = Uploader(self._plan, self._environment, self._coordinator, self._steps, lines, name)
            await uploader.look_around(status)
            for number, artifact in entries:
                await uploader.upload(number, artifact)

        try:
            await self._take(name, lambda _: self._in_stage(work))
        except JobFailure as own:
            return failure or own
        return failure

    async def _begin(self, lines: Lines) -> None:
        """End what an earlier process left of the stage, and find the project."""
        await self._environment.kill_tools()
        project = self._plan.directories.project
        try:
            if await self._environment.files.exists(project):
                return
        except WorkspaceError as error:
            lines.error(str(error))
        lines.fatal(f"the project directory {project} is not there")
        raise tool_failed(1)
