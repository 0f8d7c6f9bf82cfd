"""Reads ``[[runners.monitoring.job_queuing_durations]]``: how long jobs may wait in the queue, and when that counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Any

from runner.config.cache import Reader
from runner.config.model import QueuingLimit
from runner.config.schema import MONITORING

PERIODS = "second minute hour day-of-month month day-of-week year"


def queuing_limits(reader: Reader, raw: Any, place: tuple[str | int, ...]) -> tuple[QueuingLimit, ...]:
    """The usable entries in their order. One that is not is left out and reported: jobs do not depend on it."""
    place = (*place, "monitoring")
    if raw is None:
        return ()
    values = reader.table(raw, MONITORING, *place)
    found = []
    for index, entry in enumerate(values.get("job_queuing_durations", ())):
        at = (*place, "job_queuing_durations", index)
        limit = QueuingLimit(
            periods=tuple(entry.get("periods", ())),
            timezone=entry.get("timezone", ""),
            threshold_s=entry.get("threshold", 0.0),
            jobs_running_for_project=entry.get("jobs_running_for_project", ""),
        )
        problem = _problem(limit)
        if problem is None:
            found.append(limit)
        else:
            key, text = problem
            reader.warn("bad-value", f'"{key}": {text}; the entry is not used', *at, key)
    return tuple(found)


def _problem(limit: QueuingLimit) -> tuple[str, str] | None:
    """The key that cannot be used, and why."""
    for period in limit.periods:
        try:
            _matches(period, datetime.now(UTC))
        except ValueError as error:
            return "periods", f"{period!r} is no time ({PERIODS}): {error}"
    try:
        _zone(limit.timezone)
    except (KeyError, ValueError, OSError):
        return "timezone", f"there is no time zone {limit.timezone!r}"
    try:
        re.compile(limit.jobs_running_for_project)
    except re.error as error:
        return "jobs_running_for_project", f"{limit.jobs_running_for_project!r} is no regular expression: {error}"
    return None


def is_exceeded(limits: Sequence[QueuingLimit], *, waited_s: float, project_jobs: str, now: datetime) -> bool:
    """Whether a job has waited for longer than it may. The last entry whose time it is decides; ``project_jobs`` is what the
    server says of the jobs of the project that run; ``now`` has a time zone."""
    for limit in reversed(limits):
        local = now.astimezone(_zone(limit.timezone))
        if any(_matches(period, local) for period in limit.periods):
            return waited_s > limit.threshold_s and re.search(limit.jobs_running_for_project, project_jobs) is not None
    return False


def _zone(name: str) -> tzinfo | None:
    """None stands for the zone of this host. Raises :class:`KeyError` and the like for a zone that does not exist."""
    if name in ("", "Local"):
        return None
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)


def _matches(period: str, local: datetime) -> bool:
    """Whether it is that time. Raises :class:`ValueError`."""
    from croniter import croniter

    fields = period.split()
    if len(fields) in (5, 6):  # without seconds, and with or without a year
        fields = ["0", *fields, *["*"] * (6 - len(fields))]
    return bool(croniter.match(" ".join(fields), local, second_at_beginning=True))
