"""Makes a repository that a job could write safe to use again (``job-lifecycle.md`` 11.4).

Nothing that a job left in it may run, lead elsewhere, or hide what the next job gets. What is taken away here, git makes
anew. The objects themselves are not looked at: whoever can write them can write anything.
"""

from __future__ import annotations

import re

from executors.errors import WorkspaceError
from executors.workspace import Workspace

LOCKS = ("index.lock", "shallow.lock", "HEAD.lock", "config.lock", "packed-refs.lock")
# What decides over the configuration of a repository and over what stands for what, apart from git's own files.
STEERING = (
    "config",
    "config.worktree",
    "commondir",
    "hooks",
    "info/attributes",
    "info/grafts",
    "info/sparse-checkout",
    "objects/info/alternates",
    "refs/replace",
    "worktrees",
)
REPLACEMENT = b" refs/replace/"
SHARED_INDEX = "sharedindex."
INDEX_HEAD = 8
# Entries that are kept out of the work tree need a newer format than this.
PLAIN_INDEX = b"DIRC\0\0\0\2"
WHOLE = {"HEAD": "file", "refs": "dir", "objects": "dir"}
SYMBOLIC = "ref: "
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
HEAD_LIMIT = 4096
PACKED_LIMIT = 16 * 1024 * 1024


async def disarm(files: Workspace, git_dir: str) -> None:
    """Take away what an earlier job may have put into a repository."""
    entries = await files.list(git_dir, max_depth=2)
    wrong = [*STEERING, *(entry.path for entry in entries if entry.kind == "link" or entry.path.endswith(".lock"))]
    packed = await files.read(f"{git_dir}/packed-refs", limit=PACKED_LIMIT) or b""
    if REPLACEMENT in packed or len(packed) == PACKED_LIMIT:
        wrong.append("packed-refs")
    shared = [entry.path for entry in entries if entry.path.startswith(SHARED_INDEX)]
    if shared or await _may_hide(files, f"{git_dir}/index"):
        wrong += ["index", *shared]
    await files.remove([f"{git_dir}/{path}" for path in wrong])


async def is_whole(files: Workspace, git_dir: str, *, may_be_unborn: bool = False) -> bool:
    """Whether git can go on from a repository. Where its head leads to no commit, submodules could not be updated ever again;
    the project itself ``may_be_unborn``."""
    kinds = {entry.path: entry.kind for entry in await files.list(git_dir, max_depth=1)}
    if any(kinds.get(name) != kind for name, kind in WHOLE.items()):
        return False
    head = (await files.read(f"{git_dir}/HEAD", limit=HEAD_LIMIT) or b"").decode(errors="replace").strip()
    if not head.startswith(SYMBOLIC):
        return COMMIT.fullmatch(head) is not None
    name = head.removeprefix(SYMBOLIC)
    if may_be_unborn:
        return name.startswith("refs/")
    packed = await files.read(f"{git_dir}/packed-refs", limit=PACKED_LIMIT) or b""
    return await files.exists(f"{git_dir}/{name}") or f" {name}\n".encode() in packed


async def clear_locks(files: Workspace, git_dir: str) -> None:
    """Remove locks and the hook that an interrupted job may have left."""
    await files.remove([f"{git_dir}/{name}" for name in (*LOCKS, "hooks/post-checkout")])
    await files.remove_matching(f"{git_dir}/refs", (), suffixes=(".lock",))


async def clear_module_locks(files: Workspace, git_dir: str) -> None:
    """The same in submodules."""
    await files.remove_matching(f"{git_dir}/modules", (*LOCKS, "post-checkout"))


async def make_own_dir(files: Workspace, path: str) -> None:
    """A directory of the job; a link or file that stands in its place is taken away, not followed."""
    try:
        await files.make_dir(path)
    except WorkspaceError:
        await files.remove([path])
        await files.make_dir(path)


async def remove_abysses(files: Workspace, project_dir: str) -> None:
    """Remove directories that hold more of them inside of each other than any program can name, git among them."""
    for entry in await files.list(project_dir, max_depth=1):
        if entry.kind == "dir" and entry.path != ".git":
            try:
                await files.list(f"{project_dir}/{entry.path}")
            except WorkspaceError:
                await files.remove([f"{project_dir}/{entry.path}"])


async def _may_hide(files: Workspace, index: str) -> bool:
    """Whether entries of the index may be marked as not to be checked out. Formats that can say so are rare."""
    head = await files.read(index, limit=INDEX_HEAD)
    return head is not None and head != PLAIN_INDEX
