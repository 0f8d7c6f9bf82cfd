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


class SecretError(RunnerError):
    """A secret could not be resolved; the message names provider and place, never a value of a secret or a token."""

    def within(self, doing: str) -> SecretError:
        """The same failure, with what was being done in front."""
        return type(self)(f"{doing}: {self}")


class SecretRefused(SecretError):
    """The description of a secret, or the rights of the job, do not lead to it."""


class ProviderFailed(SecretError):
    """The provider of secrets has a fault of its own."""


class SecretMissing(SecretError):
    """The provider answered, and has no such secret."""

    def __init__(self, text: str = "secret not found") -> None:
        super().__init__(text)
