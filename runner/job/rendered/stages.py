"""The stages of a job whose place takes scripts and nothing else: each is one script of the driver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from executors.base import ExitStatus
from runner.coordinator.payload import Hook
from runner.job.archive_stages import ARCHIVED_WHEN, Body
from runner.job.artifacts import due_downloads, due_uploads
from runner.job.caches import unknown_policy
from runner.job.outcome import JobFailure, Outcome, script_failed
from runner.job.plan import JobPlan
from runner.job.rendered.archives import Archives
from runner.job.rendered.sources import FILES, render_clean_up, render_clear, render_sources
from runner.job.script import Commands, change_directory, prelude, quote, write_files
from runner.job.stages import Stage
from runner.job.steps import Step

PROFILE = "Check https://docs.gitlab.com/runner/shells/#shell-profile-loading for more information"


class Take(Protocol):
    """Takes a stage with its section and headline; passes over what an earlier process saw end."""

    def __call__(self, stage: str, body: Body, *, script: bool) -> Awaitable[None]: ...


class Attempt(Protocol):
    """The same for a stage that may be tried more than once."""

    def __call__(self, stage: Stage, attempts: int, body: Body, *, script: bool) -> Awaitable[None]: ...


RunScript = Callable[[Step, str, str, str], Awaitable[ExitStatus]]


class ScriptedStages:
    """Carries out what is not the user's own: renders, has it run, and reads nothing but its exit status.

    ``run`` gets the step, the commands, the name of the stage and the status of the job. Every stage is journalled as a
    script: a process that adopts the job follows it to its end instead of repeating it.
    """

    def __init__(self, plan: JobPlan, *, take: Take, attempt: Attempt, run: RunScript, commands: Callable[[], Commands]) -> None:
        self._plan = plan
        self._take = take
        self._attempt = attempt
        self._run = run
        self._commands = commands
        self._archives = Archives(plan)

    # Around the sources

    async def prepare_script(self, step: Step) -> None:
        """Say where the job runs, and make room for the runner's own files."""
        tmp = self._plan.directories.tmp
        via = f" via {self._plan.place.hostname}" if self._plan.place.hostname else ""
        host = '"$(hostname 2>/dev/null || uname -n)"'
        body = f"{FILES}printf 'Running on %s%s...\\n' {host} {quote(via)}\n"
        body += f"pyrunner_own_dir {quote(tmp)}\npyrunner_remove {quote(self._plan.env_file)} {quote(f'{tmp}/masking.db')}\n"
        try:
            await self._do(step, body, Stage.PREPARE_SCRIPT)
        except JobFailure as failure:
            outcome = failure.outcome
            text = f"prepare environment: {outcome.message}. {PROFILE}"
            raise JobFailure(Outcome(reason=outcome.reason, message=text, exit_code=outcome.exit_code)) from failure

    async def sources(self, step: Step) -> None:
        """Hooks and git work, in one shell."""
        runner, hooks = self._plan.runner, self._plan.payload.hooks
        before = [runner.pre_get_sources_script] if runner.pre_get_sources_script else []
        before += _elements(hooks, "pre_get_sources_script")
        after = _elements(hooks, "post_get_sources_script")
        after += [runner.post_get_sources_script] if runner.post_get_sources_script else []
        behind = change_directory(self._plan.directories.project) + self._commands().render(after, "post_clone_script")
        git = render_sources(
            self._plan.sources(),
            before=self._commands().render(before, "pre_clone_script"),
            after=behind if after else "",
        )
        await self._do(step, self.prelude("running") + git, Stage.GET_SOURCES)

    async def clear_worktree(self, step: Step) -> None:
        """Empty the work tree after a failed attempt."""
        await self._do(step, render_clear(self._plan.sources()), Stage.CLEAR_WORKTREE)

    async def clean_up(self, step: Step, status: str) -> None:
        """Take away what holds secrets. Contents of file variables are not written for it."""
        plan = self._plan
        exports = prelude(plan.exports(status), plan.env_file, xtrace=plan.settings.debug_trace)
        secret = [plan.variables.path(variable.key) for variable in plan.variables.files()]
        secret += [plan.env_file, f"{plan.directories.tmp}/masking.db"]
        body = f"mkdir -p {quote(plan.directories.tmp)}\n" + exports + render_clean_up(plan.sources(), secret)
        await self._do(step, body, Stage.CLEANUP_FILE_VARIABLES, status)

    # Caches and artifacts

    async def restore(self) -> JobFailure | None:
        """Every cache in order; what cannot be restored is a warning."""
        caches = [cache for cache in self._plan.caches if cache.paths or cache.untracked]
        failure = unknown_policy(self._plan, caches)
        if not caches or failure is not None:
            return failure

        async def work(step: Step) -> None:
            body = self._in_project("running") + await self._archives.restore(caches)
            await self._do(step, body, Stage.RESTORE_CACHE)

        attempts = self._plan.settings.restore_cache_attempts
        return await _failure(self._attempt(Stage.RESTORE_CACHE, attempts, work, script=True))

    async def download(self) -> JobFailure | None:
        """Every dependency in order; one that fails is the last."""
        dependencies = due_downloads(self._plan.payload.dependencies)
        if not dependencies:
            return None

        async def work(step: Step) -> None:
            body = self._in_project("running") + self._archives.download(dependencies)
            await self._do(step, body, Stage.DOWNLOAD_ARTIFACTS)

        attempts = self._plan.settings.artifact_download_attempts
        return await _failure(self._attempt(Stage.DOWNLOAD_ARTIFACTS, attempts, work, script=True))

    async def save(self, status: str, *, succeeded: bool) -> JobFailure | None:
        """Every cache that is due; what cannot be saved is a warning."""
        due = ARCHIVED_WHEN[succeeded]
        caches = [cache for cache in self._plan.caches if cache.when in due and (cache.paths or cache.untracked)]
        failure = unknown_policy(self._plan, caches)
        if not caches or failure is not None:
            return failure
        stage = Stage.ARCHIVE_CACHE if succeeded else Stage.ARCHIVE_CACHE_ON_FAILURE

        async def work(step: Step) -> None:
            await self._do(step, self._in_project(status) + await self._archives.save(caches), stage, status)

        return await _failure(self._take(stage, work, script=True))

    async def upload(self, status: str, *, succeeded: bool) -> JobFailure | None:
        """Every entry of artifacts that is due; one that fails is the last."""
        entries = due_uploads(self._plan.payload.artifacts, succeeded=succeeded) if self._plan.runner.url else []
        if not entries:
            return None
        stage = Stage.UPLOAD_ON_SUCCESS if succeeded else Stage.UPLOAD_ON_FAILURE

        async def work(step: Step) -> None:
            body = self._in_project(status) + self._archives.upload([artifact for _, artifact in entries])
            await self._do(step, body, stage, status)

        return await _failure(self._take(stage, work, script=True))

    # Pieces

    def prelude(self, status: str) -> str:
        """Variables of the job, files among them, and what earlier scripts left for this one."""
        plan = self._plan
        files = [(plan.variables.path(variable.key), variable.value) for variable in plan.variables.files()]
        exports = prelude(plan.exports(status), plan.env_file, xtrace=plan.settings.debug_trace)
        return write_files(plan.directories.tmp, files) + exports

    def _in_project(self, status: str) -> str:
        return self.prelude(status) + change_directory(self._plan.directories.project)

    async def _do(self, step: Step, body: str, stage: str, job_status: str = "running") -> None:
        status = await self._run(step, body, stage, job_status)
        if status.exit_code != 0:
            raise script_failed(status)


def _elements(hooks: Sequence[Hook], name: str) -> list[str]:
    return [element for hook in hooks if hook.name == name for element in hook.script]


async def _failure(work: Awaitable[None]) -> JobFailure | None:
    try:
        await work
    except JobFailure as failure:
        return failure
    return None
