"""``[runners.custom]``: the programs of a driver (``job-lifecycle.md`` 16)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from executors.tables import Option, Problem, Table

STEP_TIMEOUT_S = 3600
GRACEFUL_KILL_S = 600
FORCE_KILL_S = 10
_SECONDS = ("config_exec_timeout", "prepare_exec_timeout", "cleanup_exec_timeout", "graceful_kill_timeout", "force_kill_timeout")

Strings = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One step of a driver: a program of this host, its arguments, its limit in seconds. Without a path there is none."""

    path: str
    arguments: tuple[str, ...] = ()
    timeout_s: float = STEP_TIMEOUT_S


class CustomConfig(Table, frozen=True, kw_only=True):
    """The table. Times are seconds; those that are no limit count as absent."""

    config_exec: Annotated[str, Option(help="Program that says what the driver's place is like")] = ""
    config_args: Annotated[Strings, Option(help="Its arguments", env="-")] = ()
    config_exec_timeout: Annotated[int, Option(help="Its limit, seconds")] = 0
    prepare_exec: Annotated[str, Option(help="Program that makes the place")] = ""
    prepare_args: Annotated[Strings, Option(help="Its arguments", env="-")] = ()
    prepare_exec_timeout: Annotated[int, Option(help="Its limit, seconds")] = 0
    run_exec: Annotated[str, Option(help="Program that runs a script in the place")] = ""
    run_args: Annotated[Strings, Option(help="Its arguments, before script and stage", env="-")] = ()
    cleanup_exec: Annotated[str, Option(help="Program that takes the place down")] = ""
    cleanup_args: Annotated[Strings, Option(help="Its arguments", env="-")] = ()
    cleanup_exec_timeout: Annotated[int, Option(help="Its limit, seconds")] = 0
    graceful_kill_timeout: Annotated[int, Option(help="Time between SIGTERM and SIGKILL, seconds")] = 0
    force_kill_timeout: Annotated[int, Option(help="Time after SIGKILL until a program is given up, seconds")] = 0

    def problems(self) -> Iterable[Problem]:
        """Jobs say the rest: they fail without ``run_exec``."""
        if not self.run_exec:
            yield Problem(place=(), text='"run_exec" is missing: every job will fail')
        for name in _SECONDS:
            if getattr(self, name) < 0:
                yield Problem(place=(name,), text=f'"{name}" is negative, the default counts')

    @property
    def config(self) -> Program:
        """Says what the place is like."""
        return self._program(self.config_exec, self.config_args, self.config_exec_timeout)

    @property
    def prepare(self) -> Program:
        """Makes the place."""
        return self._program(self.prepare_exec, self.prepare_args, self.prepare_exec_timeout)

    @property
    def run(self) -> Program:
        """Runs a script in the place; the job's own limits count."""
        return self._program(self.run_exec, self.run_args, 0)

    @property
    def cleanup(self) -> Program:
        """Takes the place down."""
        return self._program(self.cleanup_exec, self.cleanup_args, self.cleanup_exec_timeout)

    @property
    def graceful_kill_s(self) -> float:
        """Between SIGTERM and SIGKILL."""
        return float(self.graceful_kill_timeout if self.graceful_kill_timeout > 0 else GRACEFUL_KILL_S)

    @property
    def force_kill_s(self) -> float:
        """What a process group is waited for after SIGKILL."""
        return float(self.force_kill_timeout if self.force_kill_timeout > 0 else FORCE_KILL_S)

    def _program(self, path: str, arguments: Strings, timeout_s: int) -> Program:
        return Program(path=path, arguments=arguments, timeout_s=float(timeout_s if timeout_s > 0 else STEP_TIMEOUT_S))
