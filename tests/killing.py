"""Daemons that die at a point of a job's life, and what is left to compare of its log."""

from __future__ import annotations

import re
import signal
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon

KILLER = [sys.executable, str(Path(__file__).parent / "e2e" / "killer.py")]
RESTART_LINE = "\x1b[0;33mWARNING: The runner was restarted, this stage is run again from its beginning\x1b[0;m\n"


def start_to_die(daemon: Daemon, point: str) -> None:
    """Start a daemon that dies at a fact (see ``killer.py``); its later starts are ordinary ones."""
    ordinary = daemon.command
    daemon.command = KILLER
    daemon.environment["KILL_AT"] = point
    daemon.start()
    daemon.command = ordinary
    del daemon.environment["KILL_AT"]


class KilledCase(ABC):
    """One job whose daemon is to die. ``death_s`` is how long it may take to come to its point."""

    payload: dict[str, Any]
    death_s = 20.0

    def __init__(self, fake: FakeCoordinator, daemon: Daemon) -> None:
        self.fake = fake
        self.daemon = daemon

    async def run(self, *points: str) -> Job:
        """Run the job through daemons of which each dies at its point, and a last one that does not."""
        job = self.fake.add_job(self.payload)
        for point in points:
            start_to_die(self.daemon, point)
            assert await self.daemon.wait(self.death_s) == -signal.SIGKILL, f"{point} is never reached"
        self.daemon.start()
        return await self.over(job)

    @abstractmethod
    async def over(self, job: Job) -> Job:
        """Wait for the end of the job, and check what it left."""


def without_places(job: Job, daemon: Daemon) -> str:
    """The log without times and places."""
    log = job.log.replace(str(daemon.root), "ROOT").replace(job.payload["git_info"]["sha"][:8], "SHA")
    log = re.sub(r"section_(start|end):\d+:", r"section_\1:T:", log)
    return re.sub(r"(Gitaly correlation ID: |correlation_id\x1b\[0;m=)[0-9a-f]+", r"\1ID", log)
