"""Errors of ``runner``; ``job.outcome`` maps them to failure reasons."""

from __future__ import annotations


class RunnerError(Exception):
    """The root of what ``runner`` raises on purpose. The message is for a person."""


class ConfigInvalid(RunnerError):
    """The configuration cannot be used at all."""


class CoordinatorError(RunnerError):
    """A call to the coordinator failed for good."""


class PayloadInvalid(CoordinatorError):
    """A job payload could not be decoded; names the place in it."""


class RecordInvalid(RunnerError):
    """A job record on disk cannot be read."""


class ArchiveError(RunnerError):
    """An archive cannot be made or unpacked; the message is for the job's log."""
