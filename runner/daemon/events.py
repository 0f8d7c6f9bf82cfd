"""What is counted of jobs, for whoever counts it."""

from __future__ import annotations

from typing import Protocol

from runner.config.model import RunnerConfig
from runner.job.costs import Costs
from runner.ops.metrics import JobQueue


class JobEvents(Protocol):
    """What is counted of jobs (``config-cli-daemon.md`` 12.1)."""

    def job_began(self, runner: RunnerConfig, queue: JobQueue) -> None:
        """A job was taken."""
        ...

    def inputs_used(self) -> None:
        """Inputs changed the definition of a job."""
        ...

    def stage_ended(self, runner: RunnerConfig, stage: str, duration_s: float) -> None:
        """A stage of a job is over; only for jobs that want it counted."""
        ...

    def job_ended(self, runner: RunnerConfig, reason: str, duration_s: float) -> None:
        """A job has its result."""
        ...

    def job_cost(self, runner: RunnerConfig, costs: Costs) -> None:
        """What a job that has its result cost."""
        ...
