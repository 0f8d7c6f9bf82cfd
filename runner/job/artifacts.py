"""The stages that bring artifacts to GitLab and those of earlier jobs back (``job-lifecycle.md`` 13)."""

from __future__ import annotations

from collections.abc import Sequence

from executors.base import Environment
from runner.coordinator.payload import Artifact, Dependency
from runner.coordinator.port import JobCoordinator
from runner.job.archive_stages import ARCHIVED_WHEN, Attempt, InStage, Take, find_project
from runner.job.lines import Lines
from runner.job.outcome import JobFailure
from runner.job.plan import JobPlan
from runner.job.stages import Stage
from runner.job.steps import Steps
from runner.trace.log import StageLog


def due_uploads(artifacts: Sequence[Artifact], *, succeeded: bool) -> list[tuple[int, Artifact]]:
    """The entries to be uploaded after a job, with their numbers in the payload."""
    return [
        (number, artifact)
        for number, artifact in enumerate(artifacts)
        if artifact.when in ARCHIVED_WHEN[succeeded] and (artifact.paths or artifact.exclude or artifact.untracked)
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
        # Archives are read by large libraries: a daemon whose jobs have none does without.
        from runner.job.downloads import Downloader

        async def work(stage: StageLog) -> None:
            lines = Lines(stage, self._steps.tally)
            await find_project(self._environment, self._plan, lines)
            downloader = Downloader(self._plan, self._environment, self._coordinator, lines)
            for dependency in dependencies:
                await downloader.download(dependency)

        try:
            attempts = self._plan.settings.artifact_download_attempts
            await self._attempt(Stage.DOWNLOAD_ARTIFACTS, attempts, lambda _: self._in_stage(work))
        except JobFailure as failure:
            return failure
        return None

    async def upload(self, status: str, *, succeeded: bool) -> JobFailure | None:
        """Every entry that is due, in order; one that fails is the last. ``status`` is what ``CI_JOB_STATUS`` says."""
        entries = due_uploads(self._plan.payload.artifacts, succeeded=succeeded) if self._plan.runner.url else []
        if not entries:
            return None
        name = Stage.UPLOAD_ON_SUCCESS if succeeded else Stage.UPLOAD_ON_FAILURE

        from runner.job.uploads import Uploader

        async def work(stage: StageLog) -> None:
            lines = Lines(stage, self._steps.tally)
            await find_project(self._environment, self._plan, lines)
            uploader = Uploader(self._plan, self._environment, self._coordinator, self._steps, lines, name)
            await uploader.look_around(status)
            for number, artifact in entries:
                await uploader.upload(number, artifact)

        try:
            await self._take(name, lambda _: self._in_stage(work))
        except JobFailure as failure:
            return failure
        return None
