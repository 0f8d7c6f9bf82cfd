"""What ``pyrunner status`` shows of a running daemon (``config-cli-daemon.md`` 9): a stable shape, to which keys may be added."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from runner.config.model import Config, RunnerConfig
from runner.daemon.health import Health
from runner.daemon.jobs import Jobs
from runner.daemon.reload import ConfigFile
from runner.daemon.scheduler import Scheduler
from runner.daemon.shutdown import Shutdown
from runner.disk.budget import DiskBudget
from runner.identity import VERSION
from runner.job.run import JobRun


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """The objects of a daemon that know something. ``started_at`` is a Unix time."""

    config: Callable[[], Config]
    file: ConfigFile
    scheduler: Scheduler
    health: Health
    jobs: Jobs
    disk: DiskBudget
    shutdown: Shutdown
    system_id: str
    started_at: float

    async def as_json(self) -> Mapping[str, Any]:
        """Everything, as of now."""
        await self.disk.look()
        return {
            "version": VERSION,
            "pid": os.getpid(),
            "system_id": self.system_id,
            "state": str(self.shutdown.state),
            "started_at": _moment(self.started_at),
            "uptime_s": round(time.time() - self.started_at, 3),
            "config": {
                "path": str(self.file.path),
                "loaded_at": _moment(self.file.loaded_at),
                "last_error": self.file.last_error or None,
            },
            "slots": {"total": self.scheduler.slots.total, "used": self.scheduler.slots.used},
            "drain": self._drain(),
            "runners": [self._runner(runner) for runner in self.config().runners],
            **self.jobs_as_json(),
            "disk": self._disk(),
        }

    def jobs_as_json(self) -> Mapping[str, Any]:
        """The jobs alone, for whoever asks often."""
        return {
            "jobs": [self._job(run) for run in self.jobs.running.values()],
            "unreported": sorted(self.jobs.unreported),
        }

    def _drain(self) -> Mapping[str, Any] | None:
        since = self.shutdown.stopping_since
        if since is None:
            return None
        left_s = self.shutdown.drain_left_s
        return {"since": _moment(since), "deadline": None if left_s is None else _moment(time.time() + left_s)}

    def _runner(self, runner: RunnerConfig) -> Mapping[str, Any]:
        counters = self.scheduler.known_counters.get(runner.token)
        rest_s = self.health.rest_s(runner)
        state = "disabled" if runner.disabled is not None else "ok" if rest_s is None else "unhealthy"
        effective = 1 if counters is None else self.scheduler.request_limit(runner)
        answer = counters.last_answer if counters is not None else None
        return {
            "name": runner.name,
            "token_short": runner.short_token,
            "url": runner.url,
            "executor": runner.executor,
            "state": state,
            "reason": runner.disabled,
            "failures": self.health.failures(runner),
            "unhealthy_until": None if rest_s is None else _moment(time.time() + rest_s),
            "jobs": sum(run.plan.runner.token == runner.token for run in self.jobs.running.values()),
            "limit": runner.limit,
            "requests_in_flight": counters.requests if counters is not None else 0,
            "request_concurrency_effective": effective,
            "last_poll": None if answer is None else {"at": _moment(answer[0]), "status": answer[1], "result": answer[2]},
            "token_expires_at": runner.token_expires_at.isoformat() if runner.token_expires_at is not None else None,
        }

    def _job(self, run: JobRun) -> Mapping[str, Any]:
        accepted_at = run.record.accepted.accepted_at_ns / 1e9
        size, pending = run.log_progress
        return {
            "id": run.payload.id,
            "url": run.plan.url,
            "project": run.payload.job_info.project_name,
            "runner": run.plan.runner.short_token,
            "executor": run.plan.runner.executor,
            "stage": run.stage,
            "state": "reporting" if run.outcome is not None else "running",
            "adopted": run.record.adopted,
            "started_at": _moment(accepted_at),
            "duration_s": round(time.time() - accepted_at, 3),
            "timeout_s": run.payload.timeout_s,
            "trace_bytes": size,
            "trace_pending_bytes": pending,
        }

    def _disk(self) -> Mapping[str, Any]:
        disk = self.disk
        return {
            "low": disk.is_low,
            "min_free_bytes": self.config().pyrunner.disk.min_free_bytes,
            "spaces": [{"path": space.path, "free_bytes": space.free_bytes} for space in disk.spaces],
            "kinds": [
                {
                    "kind": state.kind.name,
                    "used_bytes": state.size_bytes,
                    "budget_bytes": budget,
                    "items": len(state.items),
                    "removed": state.removed,
                }
                for state in disk.kinds
                if (budget := disk.budget(state)) is not None
            ],
        }


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=UTC).isoformat(timespec="seconds")
