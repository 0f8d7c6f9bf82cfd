"""Sources of a job: git by argv, in a repository that is made safe before every use (``job-lifecycle.md`` 11)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from executors.base import Environment
from runner.coordinator.payload import GitInfo
from runner.identity import user_agent
from runner.job.git_config import USER, Remote, external_config, helper_settings, seed_config, template_config
from runner.job.git_damage import is_damaged
from runner.job.git_safety import clear_locks, clear_module_locks, disarm, is_whole, make_own_dir, remove_abysses
from runner.job.git_tool import GitTool
from runner.job.outcome import JobFailure, system_failure
from runner.job.settings import DEFAULT_CLEAN_FLAGS, GitStrategy, JobSettings, SubmoduleStrategy
from runner.job.submodules import EXCLUDE, Submodules, SubmodulesPlan
from runner.mirrors.access import ALTERNATES, Lender, is_borrowed
from runner.trace.log import StageLog

SHORT_SHA = 8
DAMAGED = "The repository that is there is damaged. Beginning anew..."
MODULE_DAMAGED = "The repository of a submodule is damaged. Beginning anew..."

SEED = ".glr.gconf"
ALTERNATES_LIMIT = 8192
# ``git clone --revision`` came with it.
CLONES_REVISIONS = (2, 49)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcesPlan:
    """Everything that decides over the sources of a job. ``tls`` maps git's keys to paths of file variables, ``rewrites``
    addresses of submodules to the bases that they are fetched from instead. ``says_fresh``: a repository whose configuration
    was taken away is called fresh in the log. ``shares_logins``: jobs have a home, and what keeps logins in it, in common."""

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
    native_clone: bool = False
    clean_config: bool = True
    says_fresh: bool = False
    without_tokens: bool = False
    safe_directory: bool = False
    job_cleanup: bool = False
    shares_logins: bool = False
    tls: Mapping[str, str] = field(default_factory=dict)
    rewrites: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def submodules(self) -> SubmodulesPlan:
        """What is done about submodules."""
        settings = self.settings
        strategy = settings.submodule_strategy if self.uses_git else SubmoduleStrategy.NONE
        return SubmodulesPlan(
            is_wanted=strategy in (SubmoduleStrategy.NORMAL, SubmoduleStrategy.RECURSIVE),
            is_recursive=strategy is SubmoduleStrategy.RECURSIVE,
            paths=settings.submodule_paths,
            depth=settings.submodule_depth,
            update_flags=settings.submodule_update_flags,
            clean_flags=settings.git_clean_flags or DEFAULT_CLEAN_FLAGS,
            skips_lfs=bool(settings.lfs_skip_smudge),
            project_dir=self.project_dir,
            git_dir=self.git_dir,
            external=self.external,
            clean_config=self.clean_config,
            object_format=self.git.repo_object_format,
        )

    @property
    def git_dir(self) -> str:
        """The repository proper."""
        return f"{self.project_dir}/.git"

    @property
    def external(self) -> str:
        """The file with the credentials."""
        return f"{self.tmp_dir}/.gitlab-runner.ext.conf"

    @property
    def seed(self) -> str:
        """What git takes for the user's configuration where there are no tokens in files."""
        return f"{self.tmp_dir}/{SEED}"

    @property
    def template(self) -> str:
        """The template directory for ``git init``."""
        return f"{self.tmp_dir}/git-template"

    @property
    def uses_git(self) -> bool:
        """Whether there is git work at all."""
        return self.settings.git_strategy in (GitStrategy.CLONE, GitStrategy.FETCH)

    def external_config(self) -> bytes:
        """The content of the file with the credentials."""
        return external_config(
            self.remote,
            token=None if self.without_tokens else self.token,
            bases=self.bases,
            correlation_id=self.correlation_id,
            bundle_uris=self.bundle_uris,
            tls=self.tls,
            rewrites=self.rewrites,
        )


class Sources:
    """Carries out the git work of one job. Failures of git raise with its exit status."""

    def __init__(self, environment: Environment, plan: SourcesPlan, lender: Lender | None = None) -> None:
        self._environment = environment
        self._files = environment.files
        self._plan = plan
        self._lender = lender

    def check(self) -> None:
        """Refuse settings that cannot be carried out, before the stage begins."""
        settings = self._plan.settings
        if settings.submodule_strategy is SubmoduleStrategy.INVALID and self._plan.uses_git:
            raise system_failure("unknown GIT_SUBMODULE_STRATEGY")
        if EXCLUDE in settings.submodule_paths and self._plan.submodules.is_wanted:
            words = " ".join(f'"{word}"' for word in settings.submodule_paths)
            raise system_failure(f"GIT_SUBMODULE_PATHS: invalid submodule pathspec [{words}]")

    async def get(self, stage: StageLog, time_ns: int, extra: Mapping[str, str]) -> None:
        """The work of the stage. ``extra`` is added to git's environment."""
        plan = self._plan
        strategy = plan.settings.git_strategy
        if plan.without_tokens:
            await self._files.write(plan.seed, seed_config(plan.external))
            await self._files.write(plan.external, plan.external_config())
        if strategy is GitStrategy.EMPTY:
            stage.notice("Skipping Git repository setup and creating an empty build directory", time_ns)
            await self._files.remove([plan.project_dir])
            await self._files.make_dir(plan.project_dir)
        elif strategy is GitStrategy.NONE:
            stage.notice("Skipping Git repository setup", time_ns)
            await make_own_dir(self._files, plan.project_dir)
        else:
            work = self._work(stage, time_ns, extra)
            await work.get()
            if plan.submodules.is_wanted:
                await work.get_submodules()
                return
            time_ns = work.tool.time_ns
        if not plan.uses_git:
            stage.notice("Skipping Git checkout", time_ns)
        stage.notice("Skipping Git submodules setup", time_ns)

    def _work(self, stage: StageLog, time_ns: int, extra: Mapping[str, str]) -> _GitWork:
        return _GitWork(self._environment, self._plan, stage, time_ns, extra, self._lender)

    async def clear(self, stage: StageLog, time_ns: int) -> None:
        """Empty the work tree after a failed attempt."""
        stage.notice("Deleting tracked and untracked files...", time_ns)
        if await self._files.exists(self._plan.git_dir):
            work = self._work(stage, time_ns, {})
            await work.renew()
            await work.git("rm", "-rf", "--ignore-unmatch", "--quiet", ".")
            await work.git("clean", "-ffdx", "-q")

    @property
    def secret_files(self) -> list[str]:
        """Files that hold the credentials."""
        return [self._plan.external, self._plan.seed]

    async def forget(self) -> None:
        """Take the credentials from whoever keeps them, and away whatever the job put in the way of the next one."""
        await self._reject_login()
        if self._plan.uses_git:
            await clear_locks(self._files, self._plan.git_dir)
            if self._plan.submodules.is_wanted:
                await clear_module_locks(self._files, self._plan.git_dir)

    async def _reject_login(self) -> None:
        """Let the account's own keepers of logins forget the job's, which git has told them where a script used it (11.7)."""
        plan = self._plan
        if not plan.shares_logins or not plan.uses_git or plan.without_tokens or not plan.remote.host_base:
            return
        # Not in the project, whose configuration could name keepers of its own.
        text = f"url={plan.remote.host_base}\nusername={USER}\n\n"
        quiet = {"GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "Never"}
        await self._environment.tool(["git", "credential", "reject"], cwd="/", env=quiet, stdin=text.encode())

    async def clean_up(self, stage: StageLog, time_ns: int) -> None:
        """``FF_ENABLE_JOB_CLEANUP`` (11.8)."""
        if not self._plan.job_cleanup:
            return
        match self._plan.settings.git_strategy:
            case GitStrategy.CLONE | GitStrategy.EMPTY:
                await self._files.remove([self._plan.project_dir])
            case GitStrategy.FETCH:
                work = self._work(stage, time_ns, {})
                await work.renew()
                await work.git("clean", *self._plan.settings.git_clean_flags)
                await work.git("reset", "--hard")
                if self._plan.submodules.is_wanted:
                    await work.submodules.clean_up()
            case GitStrategy.NONE:
                stage.notice("Skipping build directory cleanup step", time_ns)


class _GitWork:
    """One attempt of the git work."""

    def __init__(
        self,
        environment: Environment,
        plan: SourcesPlan,
        stage: StageLog,
        time_ns: int,
        extra: Mapping[str, str],
        lender: Lender | None,
    ) -> None:
        variables = {**plan.environment, **extra}
        if not plan.settings.lfs_skip_smudge:
            variables["GIT_LFS_SKIP_SMUDGE"] = "1"
        self._files = environment.files
        self._plan = plan
        self._lender = lender
        self._is_fresh = True
        self._is_fetched = False
        login: list[tuple[str, str]] = []
        if plan.without_tokens:
            variables["CI_JOB_TOKEN"] = plan.token
            login = helper_settings([*plan.bases, plan.remote.host_base])
        self.tool = GitTool(environment, stage, plan.project_dir, variables, time_ns, login=login)
        self.git = self.tool.run
        self._notice = self.tool.notice
        self.submodules = Submodules(self.tool, environment.files, plan.submodules)

    async def get(self) -> None:
        """Init, fetch, checkout; with objects of a mirror where there is one, and without where that turns out to be broken. A
        repository that turns out to be damaged is cloned anew."""
        plan = self._plan
        if plan.settings.git_strategy is GitStrategy.CLONE:
            await self._files.remove([plan.project_dir])
        lender = self._lender
        lent = await lender.borrow() if lender is not None else ""
        try:
            await self.fetch(lent)
        except JobFailure as failure:
            if lender is not None and lent:
                self.tool.warning("Trying again without the mirror of the repository...")
                await self.fetch("")
                await lender.discard()
            elif await self._is_damaged(failure):
                self.tool.warning(DAMAGED)
                await self._files.remove([plan.project_dir])
                await self.fetch("")
            else:
                raise

    async def get_submodules(self) -> None:
        """Check them out; those whose repositories turn out to be damaged are cloned anew."""
        try:
            await self.submodules.update()
        except JobFailure:
            if self._is_fresh or not await self.submodules.remove_damaged():
                raise
            self.tool.warning(MODULE_DAMAGED)
            await self.submodules.update()

    async def _is_damaged(self, failure: JobFailure) -> bool:
        plan = self._plan
        if self._is_fresh:
            return False
        return await is_damaged(failure, self.tool, self._files, plan.git_dir, plan.git, is_fetched=self._is_fetched)

    async def fetch(self, lent: str) -> None:
        """The same once. ``lent`` is a directory of objects that the repository borrows, empty for none."""
        plan = self._plan
        is_fresh = self._is_fresh = await self._find_fresh(lent)
        self._is_fetched = False
        if not is_fresh:
            await self.make_safe()
        await self._write_config()
        depth = plan.git.depth
        if plan.correlation_id:
            self._notice(f"Gitaly correlation ID: {plan.correlation_id}")
        if plan.safe_directory:
            await self.git("config", "--global", "--add", "safe.directory", plan.project_dir)
        if not lent and await self._clones():
            await self._clone(depth)
            await self._checkout_if_wanted(is_fresh=True)
            return
        self._notice(f"Fetching changes with git depth set to {depth}..." if depth > 0 else "Fetching changes...")
        await self._init()
        await self._borrow(lent)
        if is_fresh or (plan.says_fresh and plan.clean_config):
            self._notice("Created fresh repository.")
        elif not plan.clean_config:
            await self.git("remote", "set-url", "origin", plan.remote.clean_url)
            await self.git("config", "include.path", plan.external)
        await self._fetch(depth, is_fresh=is_fresh)
        self._is_fetched = True
        await self._checkout_if_wanted(is_fresh=is_fresh)

    async def _find_fresh(self, lent: str) -> bool:
        """Whether there is no repository. One that has borrowed from another mirror than this is not whole, and goes, with the
        work tree that nobody could clean then."""
        git_dir = self._plan.git_dir
        if not await self._files.exists(git_dir):
            return True
        before = await self._files.read(f"{git_dir}/{ALTERNATES}", limit=ALTERNATES_LIMIT)
        if before is None or before == f"{lent}\n".encode() or not is_borrowed(before):
            return False
        await self._files.remove([self._plan.project_dir])
        return True

    async def _borrow(self, lent: str) -> None:
        """Let the repository read what it lacks from a mirror, and from nowhere else: what a job wrote there is gone."""
        if lent:
            self._notice("Borrowing objects from the mirror of this repository...")
            await self._write_alternates(lent)

    async def _write_alternates(self, lent: str) -> None:
        await self._files.write(f"{self._plan.git_dir}/{ALTERNATES}", f"{lent}\n".encode(), mode=0o644)

    async def _clones(self) -> bool:
        """Whether the sources come by ``git clone``: it needs a git that can clone any revision."""
        plan = self._plan
        if not plan.native_clone or plan.settings.git_strategy is not GitStrategy.CLONE:
            return False
        return await self.tool.version() >= CLONES_REVISIONS

    async def _clone(self, depth: int) -> None:
        plan = self._plan
        ref = plan.git.ref
        what = f"Cloning repository for {ref}" if ref else "Cloning repository"
        self._notice(f"{what} with git depth set to {depth}..." if ref and depth > 0 else f"{what}...")
        await self._write_template(None)
        options = ["--depth", str(depth)] if depth > 0 else []
        if ref:
            options += ["--revision" if ref.startswith("refs/") else "--branch", ref]
        await self.git(
            "clone",
            "--no-checkout",
            plan.remote.clean_url,
            plan.project_dir,
            "--template",
            plan.template,
            *options,
            *plan.settings.git_clone_extra_flags,
            config=(f"http.userAgent={user_agent()}", f"include.path={plan.external}", *self._proactive()),
        )
        if not await self.tool.read("rev-parse", "--quiet", "--verify", f"{plan.git.sha}^{{commit}}"):
            # The ref has moved on since: the commit itself is what the job is about.
            await self._fetch(depth, is_fresh=True)

    async def _checkout_if_wanted(self, *, is_fresh: bool) -> None:
        if self._plan.settings.git_checkout:
            await self._checkout(is_fresh=is_fresh)
        else:
            self._notice("Skipping Git checkout")

    async def make_safe(self) -> None:
        """Remove what an earlier job may have put into the repository, and its stale locks."""
        git_dir = self._plan.git_dir
        if not await is_whole(self._files, git_dir, may_be_unborn=True):
            await self._files.remove([git_dir])
            return
        if self._plan.clean_config:
            await disarm(self._files, git_dir)
        await clear_locks(self._files, git_dir)
        if self._plan.submodules.is_wanted:
            await self.submodules.make_safe()

    async def renew(self) -> None:
        """Make the repository safe and its configuration anew, for work outside of :meth:`fetch`."""
        before = await self._files.read(f"{self._plan.git_dir}/{ALTERNATES}", limit=ALTERNATES_LIMIT)
        await self.make_safe()
        await self._write_template(self._plan.remote)
        await self._init("--quiet")
        lent = self._lender.lent() if self._lender is not None else ""
        if lent and before == f"{lent}\n".encode():
            await self._write_alternates(lent)

    async def _write_config(self) -> None:
        plan = self._plan
        await make_own_dir(self._files, plan.project_dir)
        await self._write_template(plan.remote)
        await self._files.write(plan.external, plan.external_config())

    async def _write_template(self, remote: Remote | None) -> None:
        # Git copies all that is in the directory, also what a job has put there.
        await self._files.remove([self._plan.template])
        await self._files.write(f"{self._plan.template}/config", template_config(remote, self._plan.external))

    async def _init(self, *options: str) -> None:
        plan = self._plan
        object_format = plan.git.repo_object_format
        extra = ["--object-format", object_format] if object_format not in ("", "sha1") else []
        await self.git("init", *options, plan.project_dir, "--template", plan.template, *extra)

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
        checkout = ("checkout", "-f", "-q", sha)
        config = ("submodule.recurse=false", *self._proactive())
        await self.git(*checkout, config=config)
        if plan.settings.git_clean_flags and not is_fresh:
            clean = ("clean", *plan.settings.git_clean_flags)
            status = await self.tool.try_run(*clean)
            if status.exit_code != 0:
                await remove_abysses(self._files, plan.project_dir)
                await self.git(*checkout, config=config)
                await self.git(*clean)
        if not plan.settings.lfs_skip_smudge and await self._wants_lfs() and await self.tool.has_lfs():
            await self.git("lfs", "pull")

    async def _wants_lfs(self) -> bool:
        """Whether anything in the sources asks for large files: most have none, and git-lfs takes its time."""
        return bool(await self.tool.read("ls-files", "-z", "--", ":(glob)**/.gitattributes"))

    def _proactive(self) -> tuple[str, ...]:
        base = self._plan.remote.host_base
        return (f"http.{base}.proactiveAuth=basic",) if self._plan.proactive_auth and base else ()
