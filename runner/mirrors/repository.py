"""The bare repository of a mirror, and git at work in it, as the daemon's user and on nothing that a job wrote."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.file_operations import write_private
from runner.errors import RunnerError

# Branches and tags; what a job wants besides (merge requests, pipelines) is little, and fetched by itself.
REFSPECS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
# Nothing is ever collected in a repository that others borrow from.
CONFIG = """[core]
\trepositoryformatversion = {version}
\tbare = true
\thooksPath = /dev/null
\tfsmonitor = false
[gc]
\tauto = 0
[maintenance]
\tauto = false
[fetch]
\tfsckObjects = false
\twriteCommitGraph = false
[transfer]
\tunpackLimit = 1
[pack]
\tthreads = 2
"""
PASSED = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
LOCK = "pyrunner.lock"
LAST_LINES = 3
CHECK_S = 300.0
REPACK_S = 3600.0


class MirrorError(RunnerError):
    """Git could not do what it was to do in a mirror; the message is git's."""


class MirrorBusy(MirrorError):
    """A git of an earlier daemon is still at work there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a job gets at its repository. ``url`` bears no login; ``config`` is the content of a file with the credentials, in
    which ``secret`` is what nobody may read."""

    url: str
    config: bytes
    secret: str


class Mirror:
    """One bare repository. ``place`` is its directory, below one that only the runner writes to."""

    def __init__(self, place: Path, *, object_format: str) -> None:
        self.place = place
        self._object_format = object_format or "sha1"

    @property
    def objects(self) -> Path:
        """What a checkout borrows."""
        return self.place / "objects"

    def make(self) -> None:
        """Lay out an empty repository, or find the one that is there. Raises :class:`OSError`."""
        if (self.place / "HEAD").exists():
            return
        for name in ("objects/pack", "objects/info", "refs/heads", "refs/tags"):
            (self.place / name).mkdir(parents=True, exist_ok=True)
        is_sha1 = self._object_format == "sha1"
        config = CONFIG.format(version=0 if is_sha1 else 1)
        config += "" if is_sha1 else f"[extensions]\n\tobjectformat = {self._object_format}\n"
        (self.place / "config").write_text(config)
        for path in (self.place, *self.place.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        # With the last file it becomes a repository.
        head = self.place / "HEAD.new"
        head.write_text("ref: refs/heads/none\n")
        head.chmod(0o644)
        head.rename(self.place / "HEAD")

    async def has(self, sha: str) -> bool:
        """Whether a commit is there."""
        try:
            await self._git("cat-file", "-e", f"{sha}^{{commit}}", limit_s=60, writes=False)
        except MirrorError:
            return False
        return True

    async def fetch(self, access: Access, credentials: Path, *, limit_s: float) -> None:
        """Bring branches and tags. ``credentials`` is a file of the runner's that this call may write and removes."""
        write_private(str(credentials), access.config)
        try:
            await self._git(
                *("-c", f"include.path={credentials}", "fetch", "--quiet", "--prune", "--no-tags", "--force"),
                *(access.url, *REFSPECS),
                limit_s=limit_s,
                secret=access.secret,
            )
        finally:
            credentials.unlink(missing_ok=True)

    async def is_whole(self) -> bool:
        """Whether everything that its branches lead to is there. Takes its time."""
        try:
            await self._git("fsck", "--connectivity-only", "--no-dangling", "--no-progress", limit_s=CHECK_S, writes=False)
        except MirrorError:
            return False
        return True

    async def repack(self) -> None:
        """Make one pack of many; nothing is dropped, whatever no branch leads to any more included."""
        await self._git("repack", "-a", "-d", "-k", "--quiet", "--no-write-bitmap-index", limit_s=REPACK_S, is_patient=True)

    def packs(self) -> int:
        """How many packs there are."""
        try:
            return sum(1 for entry in os.scandir(self.objects / "pack") if entry.name.endswith(".pack"))
        except OSError:
            return 0

    def touch(self) -> None:
        """It was used just now."""
        with contextlib.suppress(OSError):
            os.utime(self.place)

    async def _git(
        self, *arguments: str, limit_s: float, writes: bool = True, is_patient: bool = False, secret: str = ""
    ) -> None:
        """Run git; what ``writes`` is alone in a mirror, also when its daemon is gone. Raises :class:`MirrorError`."""
        git = shutil.which("git")
        if git is None:
            raise MirrorError("git is not installed")
        lock_fd = os.open(self.place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                if writes:
                    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MirrorBusy("a git of an earlier daemon is still at work") from None
            # The child has the lock, too: it ends with the last of the two.
            argv = [*(("nice", "-n", "19") if is_patient else ()), git, f"--git-dir={self.place}", *arguments]
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(os.environ),
                cwd=self.place,
                pass_fds=(lock_fd,),
                start_new_session=True,
                umask=0o022,
            )
            try:
                _, errors = await asyncio.wait_for(process.communicate(), limit_s)
            except TimeoutError as error:
                raise MirrorError(f"git took longer than {limit_s:g} s") from error
            finally:
                await _end(process)
        finally:
            os.close(lock_fd)
        if process.returncode != 0:
            lines = errors.decode(errors="replace").strip().splitlines()[-LAST_LINES:]
            text = ": ".join(lines) or f"git ended with {process.returncode}"
            raise MirrorError(text.replace(secret, "[MASKED]") if secret else text)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End git with everything that it has started."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 5)


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What git of the daemon's user sees: no variable of a job, no configuration but the mirror's own."""
    proxies = {name: value for name, value in environ.items() if name.lower() in PASSED}
    return {
        **proxies,
        "PATH": environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "LANG": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        # No transport of it runs a program that a URL or a setting names.
        "GIT_ALLOW_PROTOCOL": "http:https",
    }
