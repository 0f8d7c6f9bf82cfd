"""``RUNNER_GENERATE_ARTIFACTS_METADATA``: a statement of where an archive comes from, inside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from executors.workspace import Entry, Workspace
from runner.archive.formats import Format, Level
from runner.archive.metadata import KNOWN_VERSION, Provenance, statement
from runner.archive.pack import pack
from runner.job.lines import Lines
from runner.job.plan import JobPlan
from runner.job.steps import Steps


class StatementMaker:
    """Makes the statement of one entry of ``artifacts``."""

    def __init__(self, plan: JobPlan, files: Workspace, steps: Steps, lines: Lines, variables: Mapping[str, str]) -> None:
        self._plan = plan
        self._files = files
        self._steps = steps
        self._lines = lines
        self._variables = variables

    async def add(self, name: str, members: Sequence[Entry]) -> Sequence[Entry]:
        """The members and, where it can be made, the file with the statement, which lies in the project directory."""
        self._lines.info("Generating artifacts statement")
        runner_id = self._variables.get("CI_RUNNER_ID", "")
        if not (runner_id.isascii() and runner_id.isdigit()):
            self._lines.warning(f"No artifacts statement: CI_RUNNER_ID is no number but {runner_id!r}")
            return members
        version = self._variables.get("SLSA_PROVENANCE_SCHEMA_VERSION", "") or KNOWN_VERSION
        if version != KNOWN_VERSION:
            self._lines.warning(f"Unknown SLSA provenance version {version}, defaulting to {KNOWN_VERSION}")
        path = f"{name.rstrip('/').rpartition('/')[2] or 'default'}-metadata.json"
        others = [member for member in members if member.path != path]
        subjects = [(member.path, await self._digest(member)) for member in others if member.kind == "file"]
        await self._files.write(
            f"{self._plan.directories.project}/{path}", statement(subjects, self._facts(runner_id)), mode=0o644
        )
        listed = await self._files.list(self._plan.directories.project, max_depth=1)
        return sorted(
            [*others, *(entry for entry in listed if entry.path == path)], key=lambda entry: (entry.path != ".", entry.path)
        )

    async def _digest(self, member: Entry) -> str:
        found = hashlib.sha256()

        async def add(data: bytes) -> None:
            found.update(data)

        await pack(self._files, self._plan.directories.project, [member], add, format=Format.RAW, level=Level.DEFAULT)
        return found.hexdigest()

    def _facts(self, runner_id: str) -> Provenance:
        plan = self._plan
        return Provenance(
            project_url=plan.sources().remote.clean_url.removesuffix(".git"),
            sha=plan.payload.git_info.sha,
            runner_id=runner_id,
            runner_name=plan.runner.name,
            executor=plan.kind.name,
            job_id=plan.payload.id,
            job_name=plan.payload.job_info.name,
            variables=[variable.key for variable in plan.payload.variables],
            started_s=self._steps.moment("job began") / 1e9,
            ended_s=self._steps.moment("artifacts statement") / 1e9,
        )
