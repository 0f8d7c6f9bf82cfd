"""What the command line tells the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of ``run``. Values given here win over the file; ``None`` leaves the decision to it."""

    config: Path
    listen_address: str | None = None
    working_directory: Path | None = None
    user: str | None = None
    log_level: str | None = None
    log_format: str | None = None
    graceful_shutdown_timeout_s: float | None = None
    argv: tuple[str, ...] = ()
