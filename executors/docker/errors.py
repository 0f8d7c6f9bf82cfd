"""What an engine answers when it does not do what it was asked (``docker-executor.md`` 10.5)."""

from __future__ import annotations

from executors.errors import PrepareError


class EngineError(PrepareError):
    """The engine refused a request. ``status`` is the HTTP status, ``explanation`` the engine's own words."""

    def __init__(self, status: int, explanation: str) -> None:
        super().__init__(f"Error response from daemon: {explanation.strip()}")
        self.status = status
        self.explanation = explanation.strip()


class NotFound(EngineError):
    """What the request names is not there (404)."""


class EngineUnreachable(PrepareError):
    """There is no engine at the address, or the connection to it broke."""


def engine_error(status: int, explanation: str) -> EngineError:
    """The error for a status."""
    return NotFound(status, explanation) if status == 404 else EngineError(status, explanation)
