"""The disk budget of a daemon, built from its configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from executors.registry import KINDS
from runner.config.model import Config, RunnerConfig
from runner.disk.budget import DiskBudget
from runner.disk.directories import Directories
from runner.job.directories import builds_root, cache_root
from runner.job.plan import JobPlan
from runner.job.record import KEPT, SET_ASIDE


def places_of(plan: JobPlan, mirrors: Sequence[str]) -> list[str]:
    """What must stay while a job runs: its workspace, by its real name as far as only the administrator decides over that,
    and the mirrors of its repository."""
    root = builds_root(plan.runner.builds_dir, plan.record.accepted.working_dir)
    return [os.path.realpath(root) + plan.directories.project.removeprefix(root), *mirrors]


def disk_budget(config: Callable[[], Config]) -> DiskBudget:
    """Looks after workspaces, caches and records; ``config`` gives what is in force."""

    def on_host() -> list[RunnerConfig]:
        return [runner for runner in config().runners if runner.executor in KINDS and KINDS[runner.executor].shared]

    def workspaces() -> list[str]:
        return [f"{builds_root(runner.builds_dir, here)}/{runner.short_token}" for runner in on_host()]

    def caches() -> list[str]:
        return [cache_root(runner.cache_dir, here) for runner in config().runners]

    def records() -> list[str]:
        return [str(config().pyrunner.state_dir / name) for name in (SET_ASIDE, KEPT)]

    def places() -> list[str]:
        return [str(config().pyrunner.state_dir), *workspaces(), *caches()]

    here = str(Path.cwd())
    found = DiskBudget(lambda: config().pyrunner.disk, places)
    found.add(
        Directories("workspaces", "workspaces", workspaces),
        Directories("caches", "caches", caches),
        Directories("records", "entries", records),
    )
    return found
