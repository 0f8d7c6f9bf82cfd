"""Preparation of a place that only its driver can make: config and prepare programs, tried anew as a whole."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

import structlog

from executors.base import DriverInput, Environment, Output, OutputSink, PlaceFacts, ScriptedPlace
from executors.errors import InvalidSpec, PrepareError
from runner.job.outcome import failure_of
from runner.job.plan import JobPlan
from runner.job.steps import Step
from runner.trace.log import JobLog

log = structlog.get_logger()

TRIES = 3
PAUSE_S = 3.0
# Nobody knows these before the place does.
_OF_THE_PLACE = ("CI_BUILDS_DIR", "CI_PROJECT_DIR", "RUNNER_TEMP_PROJECT_DIR")


class Preparation:
    """The stage that prepares the executor. ``place`` is the environment, seen as what its driver makes of it."""

    def __init__(
        self,
        environment: Environment,
        place: ScriptedPlace,
        job_log: JobLog,
        *,
        replan: Callable[[PlaceFacts], JobPlan],
        is_detached: Callable[[], bool],
    ) -> None:
        self._environment = environment
        self._place = place
        self._log = job_log
        self._replan = replan
        self._is_detached = is_detached

    async def run(self, plan: JobPlan, step: Step) -> None:
        """Prepare, up to three times. What has a failure reason of its own is final."""
        for attempt in range(1, TRIES + 1):
            try:
                await self._once(plan, step)
                return
            except InvalidSpec as error:
                self._log.warning(str(error), time_ns=time.time_ns())
                raise
            except PrepareError as error:
                now_ns = time.time_ns()
                self._log.error(f"Preparation failed: {error}", time_ns=now_ns)
                self._log.info("Will be retried in 3s ...", time_ns=now_ns)
                problem = await self._place.tear_down()
                if problem:
                    self._log.warning(f"Cleanup script failed: {problem}", time_ns=time.time_ns())
                await asyncio.sleep(PAUSE_S)
                if attempt == TRIES:
                    raise failure_of(error) from error

    async def _once(self, plan: JobPlan, step: Step) -> None:
        await self._environment.prepare()
        await self._in_log(lambda output: self._place.configure(driver_input(plan), output))
        plan = self._replan(self._place.facts())
        for _, line in self._environment.remarks():
            self._log.plain(line, time_ns=time.time_ns())
        if plan.misconfigured is not None:
            raise plan.misconfigured
        await self._in_log(lambda output: self._place.provision(driver_input(plan, is_placed=True), output))

    async def _in_log(self, work: Callable[[OutputSink], Awaitable[object]]) -> None:
        """Work of the driver, with what it prints in the log."""
        stage = self._log.open_stage()

        def write(piece: Output) -> None:
            stage.write(piece.stream, piece.data, piece.time_ns)

        try:
            await work(write)
        finally:
            if not self._is_detached():
                stage.close(time.time_ns())


def driver_input(plan: JobPlan, *, is_placed: bool = False) -> DriverInput:
    """What a driver may know of the job. Directories are known once the driver has spoken."""
    variables = {variable.key: variable.value for variable in plan.variables.effective()}
    if not is_placed:
        for name in _OF_THE_PLACE:
            variables.pop(name, None)
    variables["CI_JOB_SERVICES"] = _services(plan)
    return DriverInput(variables=variables, response=plan.record.raw_payload)


def _services(plan: JobPlan) -> str:
    """The services of the job as JSON; empty without any."""
    found = []
    for service in plan.payload.services:
        entry: dict[str, object] = {
            "name": service.name,
            "alias": service.alias.split()[0] if service.alias.split() else "",
            "entrypoint": list(service.entrypoint) or None,
            "command": list(service.command) or None,
        }
        if service.variables:
            entry["variables"] = {variable.key: variable.value for variable in service.variables}
        found.append(entry)
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False) if found else ""
