"""Stages of a job: GitLab's names, which users see as sections, and their headlines (``job-lifecycle.md`` 2.1)."""

from __future__ import annotations

import enum


class Stage(enum.StrEnum):
    """Everything but the user's own steps, in order."""

    PREPARE_EXECUTOR = "prepare_executor"
    PREPARE_SCRIPT = "prepare_script"
    GET_SOURCES = "get_sources"
    CLEAR_WORKTREE = "clear_worktree"
    RESTORE_CACHE = "restore_cache"
    DOWNLOAD_ARTIFACTS = "download_artifacts"
    AFTER_SCRIPT = "after_script"
    ARCHIVE_CACHE = "archive_cache"
    ARCHIVE_CACHE_ON_FAILURE = "archive_cache_on_failure"
    UPLOAD_ON_SUCCESS = "upload_artifacts_on_success"
    UPLOAD_ON_FAILURE = "upload_artifacts_on_failure"
    CLEANUP_FILE_VARIABLES = "cleanup_file_variables"


HEADERS = {
    Stage.PREPARE_SCRIPT: "Preparing environment",
    Stage.GET_SOURCES: "Getting source from Git repository",
    Stage.CLEAR_WORKTREE: "Deleting all tracked and untracked files due to source fetch failure",
    Stage.RESTORE_CACHE: "Restoring cache",
    Stage.DOWNLOAD_ARTIFACTS: "Downloading artifacts",
    Stage.AFTER_SCRIPT: "Running after_script",
    Stage.ARCHIVE_CACHE: "Saving cache for successful job",
    Stage.ARCHIVE_CACHE_ON_FAILURE: "Saving cache for failed job",
    Stage.UPLOAD_ON_SUCCESS: "Uploading artifacts for successful job",
    Stage.UPLOAD_ON_FAILURE: "Uploading artifacts for failed job",
    Stage.CLEANUP_FILE_VARIABLES: "Cleaning up project directory and file based variables",
}


def user_stage(step_name: str) -> str:
    """The stage of a user's step: only its letter case changes."""
    return f"step_{step_name.lower()}"


def headline(stage: str, executor: str = "") -> str:
    """The cyan line of a stage."""
    if stage == Stage.PREPARE_EXECUTOR:
        return f'Preparing the "{executor}" executor'
    if stage in HEADERS:
        return HEADERS[Stage(stage)]
    return f'Executing "{stage}" stage of the job script'
