"""Downloading the artifacts of one earlier job: fetch, unpack (``job-lifecycle.md`` 13.4, 13.5)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from executors.base import Environment
from executors.errors import WorkspaceError
from executors.file_operations import create_private
from executors.workspace import HasScratch
from runner.archive.formats import sniff
from runner.archive.unpack import Limits, unpack
from runner.coordinator.payload import Dependency
from runner.coordinator.port import ArtifactAnswer, ArtifactVerdict, JobCoordinator, TransferSettings
from runner.errors import ArchiveError
from runner.job.lines import METER, Lines, Meter, Move, facts_of, meter, meter_frequency
from runner.job.outcome import tool_failed
from runner.job.plan import JobPlan

TRIES = 3
REQUESTS = 5
PAUSE_S = 1.0
STAGING = "ARCHIVER_STAGING_DIR"
DOING = "Downloading artifacts from coordinator..."
FATAL = {
    ArtifactVerdict.FORBIDDEN: "permission denied",
    ArtifactVerdict.UNAUTHORIZED: "permission denied",
    ArtifactVerdict.NOT_FOUND: "file does not exist",
}
FAILED = "invalid argument"


class Downloader:
    """Downloads for one stage. A failure is said in the log and raised as :class:`runner.job.outcome.JobFailure`."""

    def __init__(self, plan: JobPlan, environment: Environment, coordinator: JobCoordinator, lines: Lines) -> None:
        self._plan = plan
        self._files = environment.files
        self._coordinator = coordinator
        self._lines = lines
        # In the record, which nobody but the runner can read; removed with it at the latest.
        self._own_path = plan.record.directory / "download"

    async def download(self, dependency: Dependency) -> None:
        """Fetch one archive, and unpack it over what is there."""
        self._lines.notice(f"Downloading artifacts for {dependency.name} ({dependency.id})...")
        frequency_s = meter_frequency(self._plan.variables.get(METER), self._lines)
        project = self._plan.directories.project
        try:
            async with self._staged(project) as path:
                async with meter(self._lines, Move.DOWNLOAD_ARTIFACTS, frequency_s) as moved:
                    await self._fetch(dependency, path, moved)
                await unpack(self._files, project, path, format=sniff(path), limits=Limits())
        except (ArchiveError, WorkspaceError) as error:
            self._lines.fatal(str(error))
            raise tool_failed(1) from error

    @asynccontextmanager
    async def _staged(self, project: str) -> AsyncIterator[Path]:
        """Where an archive lies between its download and its unpacking; the job may say where, on its own host."""
        directory = self._plan.variables.get(STAGING)
        if not directory or not isinstance(self._files, HasScratch):
            try:
                yield self._own_path
            finally:
                self._own_path.unlink(missing_ok=True)
            return
        fd = await self._files.scratch(project, directory)
        try:
            yield Path(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)

    async def _fetch(self, dependency: Dependency, path: Path, moved: Meter) -> None:
        for attempt in range(1, TRIES + 1):
            direct = attempt == 1 and self._plan.flags["FF_USE_DIRECT_DOWNLOAD"]
            answer = await self._ask(dependency, path, moved, direct=direct)
            if answer.verdict is ArtifactVerdict.OK:
                self._lines.info(f"{DOING} ok", **_facts(dependency, answer))
                return
            self._say_failed(dependency, answer)
            if answer.verdict in FATAL or attempt == TRIES:
                self._lines.fatal(FATAL.get(answer.verdict, FAILED))
                raise tool_failed(1)
            self._lines.warning("Retrying...", error=FAILED)
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, dependency: Dependency, path: Path, moved: Meter, *, direct: bool) -> ArtifactAnswer:
        with open(create_private(str(path)), "wb", buffering=0) as file:

            def keep(piece: bytes) -> None:
                file.write(piece)
                moved.add(len(piece))

            def say_store(host: str, status: int) -> None:
                self._lines.info(f"Direct download from {host}", id=dependency.id, status=status)

            return await self._coordinator.download_artifacts(
                dependency.id,
                dependency.token,
                direct=direct,
                sink=keep,
                on_store=say_store,
                settings=TransferSettings(attempts=REQUESTS, on_wait=self._lines.say_wait),
            )

    def _say_failed(self, dependency: Dependency, answer: ArtifactAnswer) -> None:
        facts = _facts(dependency, answer)
        if answer.verdict is ArtifactVerdict.ERROR:
            self._lines.error(f"{DOING} error", **facts, error=answer.text)
        elif answer.verdict in FATAL:
            self._lines.error(f"{DOING} {answer.verdict.value}", **{**facts, "status": answer.text})
        else:
            self._lines.warning(f"{DOING} failed", **{**facts, "status": answer.text})


def _facts(dependency: Dependency, answer: ArtifactAnswer) -> dict[str, object]:
    return facts_of(answer, job_id=dependency.id, token=dependency.token)
