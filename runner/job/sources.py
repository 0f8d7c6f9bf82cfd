"""Sources of a job: git by argv, in a repository that is made safe before every use (``job-lifecycle.md`` 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from executors.base import Environment, Output
from runner.coordinator.payload import GitInfo
from runner.identity import user_agent
from runner.job.git_config import Remote, external_config, template_config
from runner.job.outcome import system_failure, tool_failed
from runner.job.settings import GitStrategy, JobSettings, SubmoduleStrategy
from runner.trace.log import StageLog

# Nothing that a job left in the repository may run: no hooks, no monitor, no stored logins.
SAFE = (
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "credential.helper=",
)
LOCKS = ("index.lock", "shallow.lock", "HEAD.lock", "config.lock")
# What decides over the configuration of a repository, apart from git's own files.
STEERING = ("config", "config.worktree", "commondir", "hooks", "info/attributes", "objects/info/alternates")
SHORT_SHA = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcesPlan:
    """Everything that decides over the sources of a job. ``tls`` maps git's keys to paths of file variables."""

    git: GitInfo
    settings: JobSettings
    remote: Remote
    token: str
    project_dir: str
    tmp_dir: str
    bases: tuple[str, ...] = ()
    correlation_id: str = ""
    bundle_uris: bool = True
    proactive_auth: bool = False
    clean_config: bool = True
    safe_directory: bool = False
    job_cleanup: bool = False
    tls: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def git_dir(self) -> str:
        """The repository proper."""
        return f"{self.project_dir}/.git"

    @property
    def external(self) -> str:
        """The file with the credentials."""
        return f"{self.tmp_dir}/.gitlab-runner.ext.conf"

    @property
    def template(self) -> str:
        """The template directory for ``git init``."""
        return f"{self.tmp_dir}/git-template"

    @property
    def uses_git(self) -> bool:
        """Whether there is git work at all."""
        return self.settings.git_strategy in (GitStrategy.CLONE, GitStrategy.FETCH)


class Sources:
    """Carries out the git work of one job. Failures of git raise with its exit status."""

    def __init__(self, environment: Environment, plan: SourcesPlan) -> None:
        self._environment = environment
        self._files = environment.files
        self._plan = plan

    def check(self) -> None:
        """Refuse settings that cannot be carried out, before the stage begins."""
        if self._plan.settings.submodule_strategy is SubmoduleStrategy.INVALID and self._plan.uses_git:
            raise system_failure("unknown GIT_SUBMODULE_STRATEGY")

    async def get(self, stage: StageLog, time_ns: int, extra: Mapping[str, str]) -> None:
        """The work of the stage. ``extra`` is added to git's environment."""
        plan = self._plan
        strategy = plan.settings.git_strategy
        if strategy is GitStrategy.EMPTY:
            stage.notice("Skipping Git repository setup and creating an empty build directory", time_ns)
            await self._files.remove([plan.project_dir])
            await self._files.make_dir(plan.project_dir)
        elif strategy is GitStrategy.NONE:
            stage.notice("Skipping Git repository setup", time_ns)
            await self._files.make_dir(plan.project_dir)
        else:
            work = _GitWork(self._environment, plan, stage, time_ns, extra)
            await work.fetch()
            time_ns = work.time_ns
        if not plan.uses_git:
            stage.notice("Skipping Git checkout", time_ns)
        stage.notice("Skipping Git submodules setup", time_ns)

    async def clear(self, stage: StageLog, time_ns: int) -> None:
        """Empty the work tree after a failed attempt."""
        stage.notice("Deleting tracked and untracked files...", time_ns)
        if await self._files.exists(self._plan.git_dir):
            work = _GitWork(self._environment, self._plan, stage, time_ns, {})
            await work.make_safe()
            await work.git("rm", "-rf", "--ignore-unmatch", "--quiet", ".")
            await work.git("clean", "-ffdx", "-q")

    async def forget(self) -> None:
        """Remove the credentials, and whatever the job put in the way of the next one."""
        await self._files.remove([self._plan.external])
        if self._plan.uses_git:
            await clear_locks(self._environment, self._plan.git_dir)

    async def clean_up(self, stage: StageLog, time_ns: int) -> None:
        """``FF_ENABLE_JOB_CLEANUP`` (11.8)."""
        if not self._plan.job_cleanup:
            return
        match self._plan.settings.git_strategy:
            case GitStrategy.CLONE | GitStrategy.EMPTY:
                await self._files.remove([self._plan.project_dir])
            case GitStrategy.FETCH:
                work = _GitWork(self._environment, self._plan, stage, time_ns, {})
                await work.make_safe()
                await work.git("init", "--quiet", "--template", self._plan.template, self._plan.project_dir)
                await work.git("clean", *self._plan.settings.git_clean_flags)
                await work.git("reset", "--hard")
            case GitStrategy.NONE:
                stage.notice("Skipping build directory cleanup step", time_ns)


class _GitWork:
    """One attempt of the git work."""

    def __init__(
        self, environment: Environment, plan: SourcesPlan, stage: StageLog, time_ns: int, extra: Mapping[str, str]
    ) -> None:
        self._environment = environment
        self._files = environment.files
        self._plan = plan
        self._stage = stage
        self.time_ns = time_ns
        self._extra = extra

    async def fetch(self) -> None:
        """Init, fetch, checkout."""
        plan = self._plan
        if plan.settings.git_strategy is GitStrategy.CLONE:
            await self._files.remove([plan.project_dir])
        is_fresh = not await self._files.exists(plan.git_dir)
        if not is_fresh:
            await self.make_safe()
        await self._write_config()
        depth = plan.git.depth
        if plan.correlation_id:
            self._notice(f"Gitaly correlation ID: {plan.correlation_id}")
        self._notice(f"Fetching changes with git depth set to {depth}..." if depth > 0 else "Fetching changes...")
        await self._init()
        if is_fresh:
            self._notice("Created fresh repository.")
        elif not plan.clean_config:
            await self.git("remote", "set-url", "origin", plan.remote.clean_url)
            await self.git("config", "include.path", plan.external)
        await self._fetch(depth, is_fresh=is_fresh)
        if plan.settings.git_checkout:
            await self._checkout(is_fresh=is_fresh)
        else:
            self._notice("Skipping Git checkout")

    async def make_safe(self) -> None:
        """Remove what an earlier job may have put into the repository, and its stale locks."""
        git_dir = self._plan.git_dir
        entries = await self._files.list(self._plan.project_dir, max_depth=1)
        if any(entry.path == ".git" and entry.kind != "dir" for entry in entries):
            await self._files.remove([git_dir])
        if self._plan.clean_config:
            await self._files.remove([f"{git_dir}/{name}" for name in STEERING])
        await clear_locks(self._environment, git_dir)

    async def _write_config(self) -> None:
        plan = self._plan
        await self._files.make_dir(plan.project_dir)
        await self._files.write(f"{plan.template}/config", template_config(plan.remote, plan.external))
        content = external_config(
            plan.remote,
            token=plan.token,
            bases=plan.bases,
            correlation_id=plan.correlation_id,
            bundle_uris=plan.bundle_uris,
            tls=plan.tls,
        )
        await self._files.write(plan.external, content)

    async def _init(self) -> None:
        plan = self._plan
        if plan.safe_directory:
            await self.git("config", "--global", "--add", "safe.directory", plan.project_dir)
        object_format = plan.git.repo_object_format
        extra = ["--object-format", object_format] if object_format not in ("", "sha1") else []
        await self.git("init", plan.project_dir, "--template", plan.template, *extra)

    async def _fetch(self, depth: int, *, is_fresh: bool) -> None:
        plan = self._plan
        options = ["--depth", str(depth)] if depth > 0 else []
        if depth <= 0 and not is_fresh and await self._files.exists(f"{plan.git_dir}/shallow"):
            options.append("--unshallow")
        await self.git(
            "fetch",
            "origin",
            "--no-recurse-submodules",
            *plan.git.refspecs,
            *options,
            *plan.settings.git_fetch_extra_flags,
            config=(f"http.userAgent={user_agent()}", *self._proactive()),
        )

    async def _checkout(self, *, is_fresh: bool) -> None:
        plan = self._plan
        sha = plan.git.sha
        self._notice(f"Checking out {sha[:SHORT_SHA]} as detached HEAD (ref is {plan.git.ref})...")
        await self.git("checkout", "-f", "-q", sha, config=("submodule.recurse=false", *self._proactive()))
        if plan.settings.git_clean_flags and not is_fresh:
            await self.git("clean", *plan.settings.git_clean_flags)
        if plan.settings.lfs_skip_smudge or not await self._files.exists(f"{plan.project_dir}/.gitattributes"):
            return
        version = await self._environment.tool(["git", "lfs", "version"], cwd=plan.project_dir, env=self._git_environment())
        if version.exit_code == 0:
            await self.git("lfs", "pull")

    def _proactive(self) -> tuple[str, ...]:
        base = self._plan.remote.host_base
        return (f"http.{base}.proactiveAuth=basic",) if self._plan.proactive_auth and base else ()

    async def git(self, *arguments: str, config: tuple[str, ...] = ()) -> None:
        """Run git in the project; its output goes into the log."""
        options = [part for setting in config for part in ("-c", setting)]
        status = await self._environment.tool(
            ["git", *SAFE, *options, *arguments],
            cwd=self._plan.project_dir,
            env=self._git_environment(),
            output=self._write,
        )
        if status.exit_code != 0:
            raise tool_failed(status.exit_code if status.exit_code is not None else 1)

    def _git_environment(self) -> dict[str, str]:
        found = {
            **self._plan.environment,
            **self._extra,
            "GIT_TERMINAL_PROMPT": "0",
            "GCM_INTERACTIVE": "Never",
        }
        if not self._plan.settings.lfs_skip_smudge:
            found["GIT_LFS_SKIP_SMUDGE"] = "1"
        return found

    def _notice(self, text: str) -> None:
        self._stage.notice(text, self.time_ns)

    def _write(self, piece: Output) -> None:
        self.time_ns = max(self.time_ns, piece.time_ns)
        self._stage.write(piece.stream, piece.data, piece.time_ns)


async def clear_locks(environment: Environment, git_dir: str) -> None:
    """Remove locks and the hook that an interrupted job may have left (11.4)."""
    await environment.files.remove([f"{git_dir}/{name}" for name in (*LOCKS, "hooks/post-checkout")])
    await environment.files.remove_matching(f"{git_dir}/refs", (), suffixes=(".lock",))
