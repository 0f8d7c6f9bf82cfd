"""Choosing the files of an archive in a job's project: patterns with variables, and what git does not track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from executors.base import Environment, Output, Stream
from runner.archive.listing import list_for
from runner.archive.match import Level, Line, Selection, select
from runner.job.env_file import parse_env_file
from runner.job.git_tool import SAFE
from runner.job.lines import Lines
from runner.job.plan import JobPlan
from runner.job.words import BadWord, expand_word


class Selector:
    """Chooses for one stage. ``variables`` are those of the job, and what its scripts wrote for later stages."""

    def __init__(self, plan: JobPlan, environment: Environment, lines: Lines) -> None:
        self._plan = plan
        self._environment = environment
        self._files = environment.files
        self._lines = lines
        self._project = plan.directories.project
        self.variables: Mapping[str, str] = {}

    async def look_around(self, status: str) -> None:
        """Read what the variables are. ``status`` is what ``CI_JOB_STATUS`` says."""
        content = await self._files.read(self._plan.env_file) or b""
        self.variables = {**dict(self._plan.exports(status)), **parse_env_file(content)}

    async def select(
        self, paths: Sequence[str], exclude: Sequence[str] = (), *, untracked: bool, silently: bool = False
    ) -> Selection:
        """What the patterns select; the log says so unless it is asked ``silently``."""
        paths = [self.expand(path, "path") for path in paths]
        exclude = [self.expand(path, "path") for path in exclude]
        names, complaint = await self._untracked() if untracked else (None, None)
        entries = await self._files.list(self._project) if names else await list_for(self._files, self._project, paths)
        selection = select(entries, self._project, paths=paths, exclude=exclude, untracked=names)
        if silently:
            return selection
        self._lines.show(selection.lines)
        if complaint is not None:
            self._lines.show([complaint])
        return selection

    def expand(self, text: str, what: str) -> str:
        """A text of the job's definition with its variables; one that cannot be expanded stays, with a warning."""
        try:
            return expand_word(text, self.variables.get)
        except BadWord as error:
            self._lines.warning(f'invalid path "": {error}' if what == "path" else f"invalid artifact name: {error}")
            return text

    async def _untracked(self) -> tuple[list[str] | None, Line | None]:
        found: list[bytes] = []

        def keep(piece: Output) -> None:
            if piece.stream is Stream.STDOUT:
                found.append(piece.data)
            else:
                self._lines.output(piece)

        status = await self._environment.tool(
            ["git", *SAFE, "ls-files", "-o", "-z"],
            cwd=self._project,
            env={"GIT_TERMINAL_PROMPT": "0"},
            output=keep,
        )
        if status.exit_code != 0:
            return None, Line(Level.WARNING, f"untracked: exit status {status.exit_code}")
        names = b"".join(found).decode(errors="surrogateescape").split("\0")
        return [name for name in names if name], None
