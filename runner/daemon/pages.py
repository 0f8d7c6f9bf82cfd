"""What a daemon shows at its listen address, and what it counts from (``config-cli-daemon.md`` 12)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from runner.config.model import Config
from runner.daemon.jobs import Jobs
from runner.daemon.scheduler import Scheduler
from runner.daemon.shutdown import Shutdown, State
from runner.ops.http import Page
from runner.ops.metrics import RunningJob, Snapshot


class Pages:
    """Pages about the state of the process; ``is_alive`` tells whether its event loop turns."""

    def __init__(self, jobs: Jobs, shutdown: Shutdown, *, is_alive: Callable[[], bool]) -> None:
        self._jobs = jobs
        self._shutdown = shutdown
        self._is_alive = is_alive

    def by_path(self) -> Mapping[str, Callable[[], Page]]:
        """The pages by their paths."""
        return {
            "/health/live": self._live,
            "/health/ready": self._ready,
            "/debug/process/state": lambda: Page(body=f"{self._shutdown.state}\n".encode()),
            "/debug/jobs/list": self._list_jobs,
        }

    def _live(self) -> Page:
        alive = self._is_alive()
        return Page(body=b"alive\n" if alive else b"stuck\n", status=200 if alive else 503)

    def _ready(self) -> Page:
        match self._shutdown.state:
            case State.RUNNING:
                return Page(body=b"ready\n")
            case State.STARTING:
                return Page(body=b"starting\n", status=503)
            case _:
                return Page(body=b"draining\n", status=503)

    def _list_jobs(self) -> Page:
        lines = [
            f"url={job.url} state={job.state} stage={job.stage} executor_stage=prepare duration={job.duration_s:.9f}s\n"
            for job in running_jobs(self._jobs)
        ]
        return Page(body="".join(lines).encode(), headers=(("X-List-Version", "2"),))


def running_jobs(jobs: Jobs) -> tuple[RunningJob, ...]:
    """The jobs of now."""
    now_ns = time.time_ns()
    return tuple(
        RunningJob(
            runner=run.plan.runner,
            url=run.plan.url,
            stage=run.stage,
            state="running",
            duration_s=(now_ns - run.record.accepted.accepted_at_ns) / 1e9,
        )
        for run in jobs.running.values()
    )


def snapshot(config: Config, scheduler: Scheduler, jobs: Jobs, shutdown: Shutdown) -> Snapshot:
    """What the levels of the metrics are at the moment."""
    known = scheduler.known_counters
    return Snapshot(
        concurrent=config.concurrent,
        state=shutdown.state,
        runners=config.runners,
        jobs=running_jobs(jobs),
        requests={
            runner.token: (known[runner.token].requests, known[runner.token].exceeded, scheduler.request_limit(runner))
            for runner in config.runners
            if runner.token in known
        },
        unreported=len(jobs.unreported),
    )
