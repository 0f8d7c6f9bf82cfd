"""Counters of a runner token: jobs against ``limit``, requests against ``request_concurrency``, concurrent ids."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

GROW = 1.1
SHRINK = 0.95
BACK_OFF = 0.5


@dataclass(slots=True)
class Lease:
    """What a job holds while it is requested and runs; the two ids are set once it is known."""

    token: str
    concurrent_id: int = -1
    project_id: int = 0
    project_slot: int = -1


@dataclass(slots=True)
class TokenCounters:
    """The state of one token. Entries of the configuration with the same token share it.

    ``last_answer`` is the Unix time, the status and the meaning of the newest answer to a request for a job.
    ``adaptive`` is the float of ``config-cli-daemon.md`` 5.4: it starts at 0 and follows how the requests end.
    """

    jobs: int = 0
    requests: int = 0
    exceeded: int = 0
    adaptive: float = 0.0
    limit_met: bool = False
    last_answer: tuple[float, int, str] | None = None
    _ids: set[int] = field(default_factory=set)
    _project_slots: dict[int, set[int]] = field(default_factory=dict)

    def request_limit(self, hard_limit: int, *, is_adaptive: bool) -> int:
        """How many requests may be in flight at once."""
        if not is_adaptive:
            return hard_limit
        return min(max(math.ceil(self.adaptive), 1), hard_limit)

    def adapt(self, hard_limit: int, *, got_job: bool, retried: bool) -> None:
        """Learn from the end of a request."""
        factor = BACK_OFF if retried else GROW if got_job else SHRINK
        self.adaptive = min(max(self.adaptive * factor, 1.0), float(hard_limit))

    def place(self, lease: Lease, project_id: int) -> None:
        """Give a job the lowest free concurrent ids (``job-lifecycle.md`` 8.2)."""
        slots = self._project_slots.setdefault(project_id, set())
        self._occupy(lease, project_id, _lowest_free(self._ids), _lowest_free(slots))

    def take_back(self, lease: Lease, project_id: int) -> None:
        """Give an adopted job the ids that it had, or the lowest free ones where it never got any."""
        if lease.concurrent_id < 0:
            self.place(lease, project_id)
            return
        self._project_slots.setdefault(project_id, set())
        self._occupy(lease, project_id, lease.concurrent_id, lease.project_slot)

    def free(self, lease: Lease) -> None:
        """Take the ids of a job back; one that never had any is fine."""
        self._ids.discard(lease.concurrent_id)
        slots = self._project_slots.get(lease.project_id)
        if slots is not None:
            slots.discard(lease.project_slot)
            if not slots:
                del self._project_slots[lease.project_id]

    def _occupy(self, lease: Lease, project_id: int, concurrent_id: int, project_slot: int) -> None:
        lease.project_id = project_id
        lease.concurrent_id = concurrent_id
        lease.project_slot = project_slot
        self._ids.add(concurrent_id)
        self._project_slots[project_id].add(project_slot)


def _lowest_free(taken: set[int]) -> int:
    number = 0
    while number in taken:
        number += 1
    return number
