"""Tells a repository that an earlier job left damaged from a git that failed for what was asked of it.

Looked at only once git has failed: a repository that works costs nothing.
"""

from __future__ import annotations

from executors.workspace import Workspace
from runner.coordinator.payload import GitInfo
from runner.job.git_tool import GitTool
from runner.job.outcome import JobFailure

# How git ends that cannot make sense of its arguments.
USAGE = 129


async def is_damaged(
    failure: JobFailure, tool: GitTool, files: Workspace, git_dir: str, git: GitInfo, *, is_fetched: bool
) -> bool:
    """Whether the repository is why git failed, so that one that is made anew would do.

    ``is_fetched``: the fetch went well. Then the commit is there, and everything else stands in the way; or it is not there,
    which is nobody's damage. A fetch that failed although the server has what was asked for failed for what is here.
    """
    if failure.outcome.exit_code == USAGE:
        return False
    if not await tool.succeeds("rev-parse", "--git-dir"):
        return True
    if is_fetched:
        sha = git.sha
        return await tool.succeeds("cat-file", "-e", f"{sha}^{{commit}}") or await files.exists(
            f"{git_dir}/objects/{sha[:2]}/{sha[2:]}"
        )
    names = named_refs(git)
    found = await tool.read("ls-remote", "origin", *(names or ["HEAD"]))
    there = {line.partition("\t")[2] for line in found.decode(errors="replace").splitlines()}
    return bool(there) and there.issuperset(names)


def named_refs(git: GitInfo) -> list[str]:
    """What is asked of the server by its whole name."""
    sources = [refspec.lstrip("+").partition(":")[0] for refspec in git.refspecs]
    return [source for source in sources if source.startswith("refs/") and "*" not in source]
