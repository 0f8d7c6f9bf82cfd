"""Submodules of a job's sources, made safe before every use as the project itself is (``job-lifecycle.md`` 11.3, 11.4)."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator
from dataclasses import dataclass

from executors.workspace import Entry, Workspace
from runner.job.git_safety import clear_module_locks, disarm, is_whole
from runner.job.git_tool import GitTool

# As a word of its own it would exclude everything.
EXCLUDE = ":(exclude)"
GITLINK = b"160000 "
FSCK = ("fsck", "--no-dangling", "--no-progress")
ALL_BRANCHES = "+refs/heads/*:refs/remotes/origin/*"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmodulesPlan:
    """What is done about submodules, and where."""

    is_wanted: bool
    is_recursive: bool
    paths: tuple[str, ...]
    depth: int
    update_flags: tuple[str, ...]
    clean_flags: tuple[str, ...]
    skips_lfs: bool
    project_dir: str
    git_dir: str
    external: str
    clean_config: bool
    object_format: str

    @property
    def modules(self) -> str:
        """Where the repositories of submodules are."""
        return f"{self.git_dir}/modules"


class Submodules:
    """The work of one stage. Failures of git raise with its exit status."""

    def __init__(self, git: GitTool, files: Workspace, plan: SubmodulesPlan) -> None:
        self._git = git
        self._files = files
        self._plan = plan
        self._recursive = ("--recursive",) if plan.is_recursive else ()
        self._paths = ("--", *plan.paths) if plan.paths else ()

    async def make_safe(self) -> None:
        """Remove what an earlier job may have put into the repositories of submodules, and stale locks."""
        await clear_module_locks(self._files, self._plan.git_dir)
        async for place in self._repositories():
            if not await is_whole(self._files, place):
                await self._files.remove([place])
            elif self._plan.clean_config:
                await disarm(self._files, place)
                await self._keep_format(place)

    async def remove_damaged(self) -> bool:
        """Take away the repositories that git finds damaged; whether there were any."""
        damaged = [place async for place in self._repositories() if not await self._git.succeeds(f"--git-dir={place}", *FSCK)]
        await self._files.remove(damaged)
        return bool(damaged)

    async def _repositories(self) -> AsyncIterator[str]:
        """What git might take for repositories of submodules, inner ones behind those that they are in; links go."""
        waiting = [self._plan.modules]
        while waiting:
            place = waiting.pop()
            entries = {entry.path: entry for entry in await self._files.list(place, max_depth=1)}
            # Git would follow a link to wherever it leads.
            await self._files.remove([f"{place}/{name}" for name, entry in entries.items() if entry.kind == "link"])
            folders = [name for name, entry in entries.items() if entry.kind == "dir"]
            if _looks_like_a_repository(entries):
                yield place
                folders = [name for name in folders if name == "modules"]
            waiting += [f"{place}/{name}" for name in folders]

    async def update(self) -> None:
        """From a checked-out project to checked-out submodules."""
        plan = self._plan
        recursively = " recursively" if plan.is_recursive else ""
        depth = f" with git depth set to {plan.depth}" if plan.depth > 0 else ""
        self._git.notice(f"Updating/initializing submodules{recursively}{depth}...")
        await self._check_links()
        await self._git.run("submodule", "init")
        await self._sync()
        await self._clean()
        await self._foreach("git", "reset", "--hard")
        await self._fetch()
        await self._clean()
        self._git.notice("Configuring submodules to use parent git credentials...")
        await self._git.run("submodule", "foreach", "--recursive", "git", "config", "include.path", plan.external)
        if not plan.skips_lfs and await self._wants_lfs() and await self._git.has_lfs():
            self._git.notice("Pulling LFS files...")
            await self._foreach("git", "lfs", "pull")

    async def clean_up(self) -> None:
        """``FF_ENABLE_JOB_CLEANUP`` (11.8)."""
        await self._check_links()
        await self._clean()
        await self._foreach("git", "reset", "--hard")

    async def _fetch(self) -> None:
        if await self._try_update():
            self._git.notice("Updated submodules")
            await self._sync()
            return
        self._git.warning("Updating submodules failed. Retrying...")
        if "--remote" in self._plan.update_flags:
            await self._foreach("git", "fetch", "origin", ALL_BRANCHES)
        await self._sync()
        await self._git.run(*self._update(), config=self._include())
        await self._foreach("git", "reset", "--hard")

    async def _try_update(self) -> bool:
        status = await self._git.try_run(*self._update(), config=self._include())
        return status.exit_code == 0

    def _include(self) -> tuple[str, ...]:
        return (f"include.path={self._plan.external}",)

    def _update(self) -> tuple[str, ...]:
        depth = ("--depth", str(self._plan.depth)) if self._plan.depth > 0 else ()
        return ("submodule", "update", "--init", *self._recursive, *depth, *self._plan.update_flags, *self._paths)

    async def _sync(self) -> None:
        await self._git.run("submodule", "sync", *self._recursive, *self._paths)

    async def _clean(self) -> None:
        await self._foreach("git", "clean", *self._plan.clean_flags)

    async def _foreach(self, *command: str) -> None:
        await self._git.run("submodule", "foreach", *self._recursive, *command)

    async def _keep_format(self, place: str) -> None:
        """Objects of another format than git's first one are readable only with a word about it."""
        if self._plan.object_format not in ("", "sha1"):
            text = f"[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = {self._plan.object_format}\n"
            await self._files.write(f"{place}/config", text.encode(), mode=0o644)

    async def _check_links(self) -> None:
        """Take away the ``.git`` of submodules that does not lead to a repository below the project's own."""
        found = [entry for entry in await self._inside() if posixpath.basename(entry.path) == ".git"]
        wrong = [f"{self._plan.project_dir}/{entry.path}" for entry in found if not await self._leads_home(entry)]
        await self._files.remove(wrong)
        # Git would not clone into what is left of a submodule whose repository is gone.
        await self._files.remove([posixpath.dirname(path) for path in wrong if await self._is_lost(path)])

    async def _wants_lfs(self) -> bool:
        return any(posixpath.basename(entry.path) == ".gitattributes" for entry in await self._inside())

    async def _inside(self) -> list[Entry]:
        """What is in the trees of submodules."""
        links = await self._gitlinks()
        entries = await self._files.list(self._plan.project_dir) if links else []
        return [entry for entry in entries if any(entry.path.startswith(f"{link}/") for link in links)]

    async def _is_lost(self, git_file: str) -> bool:
        place = posixpath.relpath(posixpath.dirname(git_file), self._plan.project_dir)
        return not await self._files.exists(f"{self._plan.modules}/{place}/HEAD")

    async def _gitlinks(self) -> list[str]:
        """Paths of the submodules of the project, as the index has them."""
        staged = await self._git.read("ls-files", "--stage", "-z")
        lines = [line for line in staged.split(b"\0") if line.startswith(GITLINK)]
        return [line.partition(b"\t")[2].decode(errors="surrogateescape") for line in lines]

    async def _leads_home(self, entry: Entry) -> bool:
        if entry.kind != "file":
            return False
        content = await self._files.read(f"{self._plan.project_dir}/{entry.path}", limit=8192) or b""
        text = content.decode(errors="surrogateescape")
        if not text.startswith("gitdir: "):
            return False
        folder = posixpath.dirname(f"{self._plan.project_dir}/{entry.path}")
        target = posixpath.normpath(posixpath.join(folder, text.removeprefix("gitdir: ").rstrip("\n")))
        return target.startswith(f"{self._plan.modules}/") and await self._files.exists(f"{target}/HEAD")


def _looks_like_a_repository(entries: dict[str, Entry]) -> bool:
    """What git might take for one, whole or not."""
    return any(name in entries and entries[name].kind != "dir" for name in ("HEAD", "config", "commondir"))
