"""What may go wrong with the place where a job runs."""

from __future__ import annotations

import os


class ExecutorError(Exception):
    """Something about the place to run went wrong; not the user's script."""


class PrepareError(ExecutorError):
    """The place to run could not be made; trying again may help."""


class ImagePullError(ExecutorError):
    """An image could not be pulled."""


class ReportedFailure(ExecutorError):
    """The place says that it is the job that failed, with this exit status."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"exit status {exit_code}")
        self.exit_code = exit_code


class InvalidSpec(ExecutorError):
    """The job asks for what cannot be; never retried."""


class ExternalFailure(ExecutorError):
    """A registry or another remote part failed."""


class EnvironmentLost(ExecutorError):
    """The place to run, or a run in it, vanished without leaving a status."""


class WorkspaceError(ExecutorError):
    """A file operation of the runner's in the workspace failed; names operation and path."""


class EntryRefused(WorkspaceError):
    """An entry could not be made at ``path``; ``errno`` says why."""

    def __init__(self, path: str, code: int) -> None:
        super().__init__(f"{path}: {os.strerror(code)}")
        self.path = path
        self.errno = code
