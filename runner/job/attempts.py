"""How long a stage waits before it is tried again (``job-lifecycle.md`` 3)."""

from __future__ import annotations

FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 300.0
FIXED_PAUSES_S = (1.0, 2.0, 4.0, 5.0)


def pause_s(attempt: int, *, grows: bool) -> float:
    """The pause behind an attempt, counted from 1; ``grows`` is ``FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY``."""
    if grows:
        return min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), MAX_PAUSE_S)
    return FIXED_PAUSES_S[min(attempt, len(FIXED_PAUSES_S)) - 1]
