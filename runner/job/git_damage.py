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
    which is nobody's damage. A fetch that failed although the server has what was asked for failed for what is here; where
    that is asked for by its id nobody can tell, and another fetch is tried that the server can answer.
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
    if asks_by_id(git):
        return bool(await tool.read("ls-remote", "origin", "HEAD")) and not await tool.succeeds(*probe(git))
    names = named_refs(git)
    found = await tool.read("ls-remote", "origin", *(names or ["HEAD"]))
    there = {line.partition("\t")[2] for line in found.decode(errors="replace").splitlines()}
    return bool(there) and there.issuperset(names)


def asks_by_id(git: GitInfo) -> bool:
    """Whether the server is asked for a commit by its id, which it may or may not have."""
    return any(not source.startswith("refs/") for source in _sources(git))


def probe(git: GitInfo) -> list[str]:
    """Fetches something that the server has, if it has anything, no deeper than the job does."""
    depth = [f"--depth={git.depth}"] if git.depth > 0 else []
    return ["fetch", "--quiet", "--no-tags", *depth, "origin", "HEAD"]


def named_refs(git: GitInfo) -> list[str]:
    """What is asked of the server by its whole name."""
    return [source for source in _sources(git) if source.startswith("refs/") and "*" not in source]


def _sources(git: GitInfo) -> list[str]:
    return [refspec.lstrip("+").partition(":")[0] for refspec in git.refspecs]
