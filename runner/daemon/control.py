"""What the daemon does when it is asked over the control socket."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from runner.daemon.reload import Watcher
from runner.daemon.shutdown import Shutdown, State
from runner.daemon.status import StatusReport
from runner.ops.control import Command, Refused


class Control:
    """The commands of one daemon."""

    def __init__(self, report: StatusReport, watcher: Watcher, shutdown: Shutdown) -> None:
        self._report = report
        self._watcher = watcher
        self._shutdown = shutdown
        self.commands: Mapping[str, Command] = {
            "ping": self._ping,
            "status": self._status,
            "jobs": self._jobs,
            "drain": self._drain,
            "reload": self._reload,
        }

    async def _ping(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"state": str(self._shutdown.state)}

    async def _status(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        return await self._report.as_json()

    async def _jobs(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._report.jobs_as_json()

    async def _drain(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """As SIGQUIT."""
        if self._shutdown.state is State.ABORTING or self._shutdown.restart:
            raise Refused("the daemon stops already")
        self._shutdown.receive(signal.SIGQUIT)
        return {"state": str(self._shutdown.state)}

    async def _reload(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """As SIGHUP; tells what came of it."""
        if self._shutdown.state is not State.RUNNING:
            raise Refused("the daemon stops: the configuration is not loaded again")
        problem = await self._watcher.reload()
        if problem:
            raise Refused(problem)
        return {}
