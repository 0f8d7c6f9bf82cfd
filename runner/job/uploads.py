"""Uploading one entry of ``artifacts``: choose, pack, send (``job-lifecycle.md`` 13.1)."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence

from executors.base import Environment
from executors.errors import WorkspaceError
from executors.workspace import Entry
from runner.archive.artifacts import DEFAULT_NAME, Content, file_name, format_of
from runner.archive.formats import compression_level
from runner.archive.match import Level, Selection, shown
from runner.archive.pack import Packed, Sink, pack
from runner.coordinator.payload import Artifact
from runner.coordinator.port import ArtifactAnswer, ArtifactUpload, ArtifactVerdict, JobCoordinator, TransferSettings
from runner.errors import ArchiveError
from runner.job.costs import UP
from runner.job.flags import parse_bool
from runner.job.lines import METER, Lines, Meter, Move, facts_of, meter, meter_frequency
from runner.job.outcome import tool_failed
from runner.job.plan import JobPlan
from runner.job.provenance import StatementMaker
from runner.job.selection import Selector
from runner.job.steps import Steps

TRIES = 3
TRIES_UNAVAILABLE = 6
REQUESTS = 5
PAUSES_S = (1.0, 2.0, 4.0, 5.0, 5.0)
NO_RESPONSE = "upload failed with no response from coordinator"
FATAL = {
    ArtifactVerdict.FORBIDDEN: "permission denied",
    ArtifactVerdict.TOO_LARGE: "too large",
    ArtifactVerdict.UNAVAILABLE: "service unavailable",
}
FINAL = frozenset({ArtifactVerdict.FORBIDDEN, ArtifactVerdict.TOO_LARGE, ArtifactVerdict.REFUSED})
# What was deleted meanwhile is missed by nobody.
GONE = os.strerror(errno.ENOENT)
REDIRECT_WITHOUT_PLACE = 307


class Uploader:
    """Uploads entries of one stage. A failure is said in the log and raised as :class:`JobFailure`."""

    def __init__(
        self,
        plan: JobPlan,
        environment: Environment,
        coordinator: JobCoordinator,
        steps: Steps,
        lines: Lines,
        stage: str,
    ) -> None:
        self._plan = plan
        self._environment = environment
        self._files = environment.files
        self._coordinator = coordinator
        self._steps = steps
        self._lines = lines
        self._stage = stage
        self._project = plan.directories.project
        self._selector = Selector(plan, environment, lines)

    async def look_around(self, status: str) -> None:
        """Read what the variables of this stage are."""
        await self._selector.look_around(status)

    async def upload(self, number: int, artifact: Artifact) -> None:
        """One entry. Nothing to upload is no failure."""
        lines = self._lines
        lines.notice("Uploading artifacts...")
        stored = self._steps.known(f"{self._stage} {number} stored")
        if stored is not None:
            self._steps.tally.add(UP, int(stored or 0))
            lines.info("Uploaded before the runner was restarted")
            return
        name = self._selector.expand(artifact.name, "name") if artifact.name else DEFAULT_NAME
        try:
            selection = await self._selector.select(artifact.paths, artifact.exclude, untracked=artifact.untracked)
            if not selection.members:
                lines.error("No files to upload")
                return
            await self._send(number, artifact, name, selection)
        except (ArchiveError, WorkspaceError) as error:
            lines.error(f"{_doing(artifact)} error", error=error)
            lines.fatal(str(error))
            raise tool_failed(1) from error

    # Sending

    async def _send(self, number: int, artifact: Artifact, name: str, selection: Selection) -> None:
        upload_name = file_name(name, artifact.artifact_format)
        members = await self._with_statement(artifact, name, selection.members)
        frequency_s = meter_frequency(self._selector.variables.get(METER), self._lines)
        async with meter(self._lines, Move.UPLOAD_ARTIFACTS, frequency_s) as moved:
            content = self._content(artifact, members, moved)
            upload = ArtifactUpload(
                file_name=upload_name,
                content=content,
                artifact_format=artifact.artifact_format,
                artifact_type=artifact.artifact_type,
                expire_in=artifact.expire_in,
            )
            await self._try(number, artifact, upload, content)

    async def _try(self, number: int, artifact: Artifact, upload: ArtifactUpload, content: Content) -> None:
        sending = f"{self._stage} {number} sending"
        was_sent = self._steps.known(sending) is not None
        self._steps.note(sending, lambda: "")
        for attempt in range(1, TRIES_UNAVAILABLE + 1):
            answer = await self._coordinator.upload_artifacts(upload, self._transfer(first=attempt == 1))
            if content.error is not None:
                raise content.error
            if answer.verdict is ArtifactVerdict.OK or (was_sent and _is_stored_already(answer)):
                self._say_stored(artifact, answer)
                self._steps.note(f"{self._stage} {number} stored", lambda: str(content.size))
                return
            problem = self._say_failed(artifact, answer)
            tries = TRIES_UNAVAILABLE if answer.verdict is ArtifactVerdict.UNAVAILABLE else TRIES
            if answer.verdict in FINAL or attempt >= tries:
                self._lines.fatal(problem)
                raise tool_failed(1)
            self._lines.warning("Retrying...", context="artifacts-uploader", error=problem)
            await asyncio.sleep(PAUSES_S[attempt - 1])

    def _transfer(self, *, first: bool) -> TransferSettings:
        """Only the first try goes through the retry layer: the pauses between tries are patience enough for the rest.

        A server that always says 503 sees 5 + 5 requests in some 20 s.
        """
        limits = self._plan.runner.artifact
        return TransferSettings(
            attempts=REQUESTS if first else 1,
            on_wait=self._lines.say_wait,
            total_timeout_s=limits.upload_timeout_s,
            header_timeout_s=limits.response_header_timeout_s,
        )

    def _content(self, artifact: Artifact, members: Sequence[Entry], moved: Meter) -> Content:
        archive_format = format_of(artifact.artifact_format, members)
        level, complaint = compression_level(self._selector.variables.get("ARTIFACT_COMPRESSION_LEVEL", ""))
        if complaint:
            self._lines.warning(complaint)

        async def make(sink: Sink) -> Packed:
            packed = await pack(self._files, self._project, members, sink, format=archive_format, level=level)
            for path, why in packed.skipped:
                if why != GONE:
                    self._lines.warning(f"{shown(path)}: {why}")
            return packed

        return Content(make, on_piece=moved.add)

    async def _with_statement(self, artifact: Artifact, name: str, members: Sequence[Entry]) -> Sequence[Entry]:
        """The members, and a statement of where they come from when the job wants one."""
        wanted = parse_bool(self._selector.variables.get("RUNNER_GENERATE_ARTIFACTS_METADATA", ""))
        if not wanted or artifact.artifact_format != "zip":
            return members
        maker = StatementMaker(self._plan, self._files, self._steps, self._lines, self._selector.variables)
        return await maker.add(name, members)

    def _say_stored(self, artifact: Artifact, answer: ArtifactAnswer) -> None:
        self._say_debug(answer)
        text = answer.text if answer.verdict is ArtifactVerdict.OK else f"{answer.text}, stored before the runner was restarted"
        self._lines.info(f"{_doing(artifact)} {text}", **self._facts(answer))

    def _say_failed(self, artifact: Artifact, answer: ArtifactAnswer) -> str:
        """Say what the server said; what is to be said when no try is left."""
        self._say_debug(answer)
        doing = _doing(artifact)
        if answer.verdict is ArtifactVerdict.ERROR:
            self._lines.error(f"{doing} error", **self._facts(answer), error=answer.text)
            return answer.text
        is_grave = answer.verdict in FATAL or answer.status == REDIRECT_WITHOUT_PLACE
        self._lines.say(Level.ERROR if is_grave else Level.WARNING, f"{doing} {answer.text}", **self._facts(answer))
        return FATAL.get(answer.verdict, NO_RESPONSE)

    def _say_debug(self, answer: ArtifactAnswer) -> None:
        if not self._plan.settings.debug_trace or answer.status < 0:
            return
        headers = {f"header[{name}]": f"[{value}]" for name, value in answer.headers.items()}
        body = answer.body.decode(errors="replace")
        self._lines.warning("received response", **headers, **self._facts(answer), body=body)

    def _facts(self, answer: ArtifactAnswer) -> dict[str, object]:
        return facts_of(answer, job_id=self._plan.payload.id, token=self._plan.payload.token)


def _doing(artifact: Artifact) -> str:
    kind = f' as "{artifact.artifact_type}"' if artifact.artifact_type else ""
    return f"Uploading artifacts{kind} to coordinator..."


def _is_stored_already(answer: ArtifactAnswer) -> bool:
    """Whether the server has an archive of this type that differs, which it refuses with a 400."""
    return answer.status == 400 and (not answer.message or "already" in answer.message)
