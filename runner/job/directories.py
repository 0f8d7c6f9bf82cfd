"""Where a job works (``job-lifecycle.md`` 10)."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from urllib.parse import unquote, urlsplit

from runner.job.outcome import misconfigured

# What makes a URL unparsable: an escape that is none, and characters that no URL may have.
_MALFORMED = re.compile(r"%(?![0-9A-Fa-f]{2})|[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Directories:
    """Absolute paths. ``builds`` and ``shown`` are root and project as scripts see them (they may be relative).

    ``cache`` is where archives of this project's caches are, below ``cache_root``.
    """

    builds: str
    project: str
    shown: str
    cache: str
    cache_root: str

    @property
    def tmp(self) -> str:
        """Files of the runner's for this job."""
        return f"{self.project}.tmp"


def slug(repo_url: str, project_id: int) -> str:
    """The part of the project's directory that its URL gives; ``project-<id>`` where the URL gives none."""
    fallback = f"project-{project_id}"
    if _MALFORMED.search(repo_url):
        return fallback
    try:
        parts = urlsplit(repo_url)
        host = parts.hostname
    except ValueError:
        return fallback
    if not host:
        return fallback
    path = unquote(parts.path, errors="surrogateescape").removesuffix(".git")
    cleaned = posixpath.normpath("/" + path).strip("/")
    return fallback if ".." in cleaned or "\0" in cleaned else cleaned


def builds_root(builds_dir: str, working_dir: str) -> str:
    """Where the projects of a runner entry are."""
    return posixpath.normpath(posixpath.join(working_dir, _filled(builds_dir, working_dir, "builds")))


def cache_root(cache_dir: str, working_dir: str) -> str:
    """Where the caches of a runner entry are."""
    return posixpath.normpath(posixpath.join(working_dir, _filled(cache_dir, working_dir, "cache")))


def _filled(configured: str, working_dir: str, name: str) -> str:
    return configured.replace("$PWD", working_dir) or posixpath.join(working_dir, name)


def place(
    *,
    working_dir: str,
    builds_dir: str,
    cache_dir: str,
    shared: bool,
    short_token: str,
    project_slot: int,
    name: str,
    is_empty_strategy: bool,
) -> Directories:
    """The directories of a job that asks for no others."""
    builds = _filled(builds_dir, working_dir, "builds")
    root, caches = builds_root(builds_dir, working_dir), cache_root(cache_dir, working_dir)
    slot = f"{short_token}/{project_slot}" if shared else ""
    suffix = "-empty" if is_empty_strategy else ""
    return Directories(
        builds=builds,
        project=posixpath.normpath(posixpath.join(root, slot, name)) + suffix,
        shown=posixpath.normpath(posixpath.join(builds, slot, name)) + suffix,
        cache=posixpath.normpath(posixpath.join(caches, name)) + suffix,
        cache_root=caches,
    )


def with_clone_path(directories: Directories, clone_path: str, *, allowed: bool, working_dir: str) -> Directories:
    """The directories of a job with ``GIT_CLONE_PATH``. Raises a configuration failure where it must not be used."""
    if not clone_path:
        return directories
    if not allowed:
        raise misconfigured("setting GIT_CLONE_PATH is not allowed, enable `custom_build_dir` feature")
    root = posixpath.normpath(posixpath.join(working_dir, directories.builds))
    project = posixpath.normpath(posixpath.join(working_dir, clone_path))
    if project != root and not project.startswith(root.rstrip("/") + "/"):
        raise misconfigured(f'the GIT_CLONE_PATH="{clone_path}" has to be within "{directories.builds}"')
    return replace(directories, project=project, shown=project)
