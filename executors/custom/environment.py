"""One job in the place of a driver: its config, prepare, run and cleanup programs, each under the job's supervisor.

A driver's programs are the host owner's. They run with the daemon's rights and environment, and what they leave running
on purpose (a virtual machine, a container) is theirs: the runner signals the process group of the program it started,
nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from executors.accounts import account, job_environment
from executors.base import DriverInput, Environment, ExitStatus, JobSpec, Output, OutputSink, PlaceFacts, Script, Stream
from executors.custom.config import FORCE_KILL_S, CustomConfig, Program
from executors.custom.exits import dormant, failure_of
from executors.custom.reply import BadReply, parse_reply
from executors.errors import EnvironmentLost, ExecutorError, InvalidSpec, PrepareError, ReportedFailure
from executors.file_operations import write_private
from executors.no_workspace import NoWorkspace
from executors.supervised import SupervisedExecutor, SupervisedPlace
from executors.workspace import Workspace

log = structlog.get_logger()

BUILD_FAILURE = 1
SYSTEM_FAILURE = 2
# Of what the config step prints.
REPLY_BYTES = 1024 * 1024
# What a program gets between SIGTERM and SIGKILL when nobody waits for its result any more.
ABANDONED_GRACE_S = 10.0
# The driver knows the stage of the user's script by the name that it had first.
STAGE_NAMES = {"step_script": "build_script"}


class CustomExecutor(SupervisedExecutor):
    """What all custom jobs of this daemon share."""

    def environment(self, spec: JobSpec) -> Environment:
        """The place of one job."""
        return CustomEnvironment(self, spec)

    def sweep(self, tables: Sequence[Mapping[str, Any]], kept: Callable[[], Collection[str]]) -> None:
        """What a driver leaves behind is its own."""

    def base_environment(self) -> dict[str, str]:
        """What a driver's programs see of the daemon's environment: all of it, but its secrets."""
        environ = self._host.environment or os.environ
        return job_environment(account(None), environ, pass_env=("*",), hidden=self._host.hidden_env())


class CustomEnvironment(SupervisedPlace):
    """One job. ``driver.json`` of the record is there as long as the driver may have to clean up."""

    def __init__(self, executor: CustomExecutor, spec: JobSpec) -> None:
        super().__init__(executor.parent, spec)
        self._executor = executor
        self._config = None if spec.table is None else CustomConfig.from_values(spec.table)
        self._state_path = spec.record_dir / "driver.json"
        self._state = _read_state(self._state_path)
        self._script_dirs: dict[str, Path] = {}
        self.files: Workspace = NoWorkspace()

    # The place

    async def prepare(self) -> None:
        """Find or start the supervisor."""
        await self._connect(account(None))

    async def hostname(self) -> str:
        """The name that the driver gave the place; empty where it gave none."""
        return self.facts().hostname

    def facts(self) -> PlaceFacts:
        """See :class:`executors.base.ScriptedPlace`."""
        return PlaceFacts(**self._state["facts"]) if self._state is not None else PlaceFacts()

    async def configure(self, job: DriverInput, output: OutputSink) -> PlaceFacts:
        """See :class:`executors.base.ScriptedPlace`."""
        config = self._checked()
        await self.tear_down()
        self._state = {"temp": str(self._make_temp(job)), "variables": dict(job.variables), "facts": {}}
        self._write_state()
        facts = await self._ask(config.config, output) if config.config.path else PlaceFacts()
        self._state["facts"] = asdict(facts)
        self._write_state()
        with_driver = f" with driver {facts.driver}" if facts.driver else ""
        self._remarks = [("plain", f"Using Custom executor{with_driver}...")]
        return facts

    async def _ask(self, program: Program, output: OutputSink) -> PlaceFacts:
        reply = bytearray()

        def keep(piece: Output) -> None:
            if piece.stream is Stream.STDERR:
                output(piece)
            elif len(reply) < REPLY_BYTES:
                reply.extend(piece.data)

        await self._step(program, keep)
        try:
            return parse_reply(bytes(reply))
        except BadReply as error:
            raise PrepareError(str(error)) from error

    async def provision(self, job: DriverInput, output: OutputSink) -> None:
        """See :class:`executors.base.ScriptedPlace`."""
        config = self._checked()
        state = self._known_state()
        state["variables"] = dict(job.variables)
        self._write_state()
        if config.prepare.path:
            await self._step(config.prepare, output)

    async def tear_down(self) -> str:
        """See :class:`executors.base.ScriptedPlace`."""
        state = self._state
        if state is None:
            return ""
        await self._stop_calls()
        config = self._config
        try:
            return await self._run_cleanup(config.cleanup) if config is not None and config.cleanup.path else ""
        finally:
            # Whoever has let go of the job leaves this to the next daemon.
            if self._link.connected:
                self._state = None
                shutil.rmtree(state["temp"], ignore_errors=True)
                self._state_path.unlink(missing_ok=True)

    async def _run_cleanup(self, program: Program) -> str:
        lines = _ManagerLines()
        try:
            self._temp().mkdir(mode=0o700, exist_ok=True)
            failure = failure_of(await self._call(program, lines.add), self._exit_code_file())
        except (ExecutorError, OSError) as error:
            return str(error)
        finally:
            lines.close()
        return "" if failure is None else str(failure)

    async def cleanup(self) -> None:
        """Take down what is left, and end the supervisor."""
        try:
            if self._state is not None:
                await self.prepare()
                await self._stop_scripts()
                problem = await self.tear_down()
                if problem:
                    log.warning(f"Cleanup script failed: {problem}")
        except (ExecutorError, OSError) as error:
            log.warning("the place of the job could not be taken down", error=str(error))
        await self._close(kill=False)

    # Scripts

    async def start(self, run: str, script: Script) -> None:
        """Hand the script to the driver as a file, with the name of the stage."""
        name = f"run-{run}"
        directory = self._spec.record_dir / name
        directory.mkdir(mode=0o700, exist_ok=True)
        if (directory / "started").exists():
            return
        config = self._checked()
        folder = self._temp() / f"script{secrets.randbelow(10**9):09d}"
        folder.mkdir(mode=0o700)
        self._script_dirs[run] = folder
        path = folder / "script"
        write_private(str(path), script.text)
        path.chmod(0o700)
        self._exit_code_file().unlink(missing_ok=True)
        program = replace(config.run, arguments=(*config.run.arguments, str(path), STAGE_NAMES.get(script.stage, script.stage)))
        try:
            await self._begin_program(name, program, {"CUSTOM_ENV_CI_JOB_STATUS": script.status})
        except PrepareError as error:
            raise ExecutorError(str(error)) from error

    async def wait(self, run: str) -> ExitStatus:
        """How the driver's run ended, in the words of its contract."""
        status = await super().wait(run)
        folder = self._script_dirs.pop(run, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        failure = failure_of(status, self._exit_code_file())
        if isinstance(failure, ReportedFailure):
            return replace(status, exit_code=failure.exit_code)
        if failure is not None:
            raise failure
        return status

    async def stop(self, run: str, *, grace_s: float) -> None:
        """SIGTERM to the process group of the driver's run, later SIGKILL."""
        if not await self.ended(run):
            await self._stop_group(f"run-{run}", grace_s)
            if await self.ended(run):
                status = await super().wait(run)
                if status.dormant is not None:
                    log.error(str(dormant(status.dormant)))

    async def kill_tools(self) -> None:
        """There are no tools."""

    async def login_environment(self) -> Mapping[str, str]:
        """Nobody can be asked for it."""
        return {}

    async def tool(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        output: OutputSink | None = None,
    ) -> ExitStatus:
        """Refused: a driver takes scripts only."""
        raise InvalidSpec(f"{argv[0]} cannot be run: the custom executor takes scripts only")

    # Calls of the driver

    async def _step(self, program: Program, output: OutputSink) -> None:
        failure = failure_of(await self._call(program, output), self._exit_code_file())
        if isinstance(failure, ReportedFailure):
            raise failure
        if failure is not None:
            raise PrepareError(str(failure)) from failure

    async def _call(self, program: Program, output: OutputSink) -> ExitStatus:
        """Run a program within its limit."""
        name = self._new_directory("call")
        try:
            self._exit_code_file().unlink(missing_ok=True)
            await self._begin_program(name, program, {})
            offset = 0
            try:
                async with asyncio.timeout(program.timeout_s):
                    async for piece in self._follow(name, 0):
                        offset = piece.next_offset
                        output(piece)
            except TimeoutError:
                await self._stop_group(name, self._checked().graceful_kill_s)
                async for piece in self._follow(name, offset):
                    output(piece)
            return await self._wait(name)
        except asyncio.CancelledError:
            await self._stop_group(name, min(ABANDONED_GRACE_S, self._checked().graceful_kill_s))
            raise
        finally:
            self._alive.discard(name)
            if (self._spec.record_dir / name / "status").exists() or not self._link.connected:
                shutil.rmtree(self._spec.record_dir / name, ignore_errors=True)

    async def _begin_program(self, name: str, program: Program, more: Mapping[str, str]) -> None:
        environment = {**self._environment(), **more}
        path = _resolve(program.path, environment.get("PATH", ""))
        write_private(f"{self._spec.record_dir / name}/stdin", b"")
        try:
            await self._begin(
                name,
                argv=[path, *program.arguments],
                env=environment,
                cwd=str(self._temp()),
                stdin="stdin",
                limit=self._spec.output_limit_bytes,
                group=True,
            )
        except PrepareError as error:
            raise PrepareError(f"failed to start command: {error}") from error

    async def _stop_group(self, name: str, grace_s: float) -> None:
        if not self._link.connected:
            return
        force_s = FORCE_KILL_S if self._config is None else self._config.force_kill_s
        await self._link.call("stop", run=name, grace=grace_s, force=force_s, group=True)

    async def _stop_calls(self) -> None:
        """End the calls that an earlier daemon left running."""
        left = [path.parent.name for path in self._spec.record_dir.glob("call-*/started")]
        for name in left:
            await self._stop_group(name, ABANDONED_GRACE_S)
            shutil.rmtree(self._spec.record_dir / name, ignore_errors=True)

    async def _stop_scripts(self) -> None:
        """End the scripts of a job that nobody follows any more: its place is taken down behind them."""
        grace_s = ABANDONED_GRACE_S if self._config is None else min(ABANDONED_GRACE_S, self._config.graceful_kill_s)
        for path in self._spec.record_dir.glob("run-*/started"):
            if not (path.parent / "status").exists():
                await self._stop_group(path.parent.name, grace_s)

    def _environment(self) -> dict[str, str]:
        state = self._known_state()
        temp = state["temp"]
        own = {
            "TMPDIR": temp,
            "BUILD_FAILURE_EXIT_CODE": str(BUILD_FAILURE),
            "SYSTEM_FAILURE_EXIT_CODE": str(SYSTEM_FAILURE),
            "BUILD_EXIT_CODE_FILE": f"{temp}/build_exit_code",
            "JOB_RESPONSE_FILE": f"{temp}/response.json",
        }
        variables = {f"CUSTOM_ENV_{key}": value for key, value in state["variables"].items()}
        found = {**self._executor.base_environment(), **own, **self.facts().environment, **variables}
        return {key: value for key, value in found.items() if key and "=" not in key and "\0" not in key + value}

    # What is known

    def _checked(self) -> CustomConfig:
        if self._config is None:
            raise InvalidSpec("custom executor not configured")
        if not self._config.run.path:
            raise InvalidSpec("custom executor is missing RunExec")
        return self._config

    def _make_temp(self, job: DriverInput) -> Path:
        """The directory of the job's calls, with the job itself in it."""
        path = self._spec.record_dir / f"custom-executor{secrets.randbelow(10**9):09d}"
        path.mkdir(mode=0o700)
        write_private(str(path / "response.json"), job.response)
        return path

    def _known_state(self) -> dict[str, Any]:
        if self._state is None:
            raise EnvironmentLost("the place of the job was taken down")
        return self._state

    def _temp(self) -> Path:
        return Path(self._known_state()["temp"])

    def _exit_code_file(self) -> Path:
        return self._temp() / "build_exit_code"

    def _write_state(self) -> None:
        """By rename: another process finds it whole or not at all."""
        new = f"{self._state_path}.new"
        write_private(new, json.dumps(self._state).encode())
        os.rename(new, self._state_path)  # noqa: PTH104 - strings at hand


class _ManagerLines:
    """Output of the cleanup program, which goes into the manager's log line by line."""

    def __init__(self) -> None:
        self._rest = {Stream.STDOUT: b"", Stream.STDERR: b""}

    def add(self, piece: Output) -> None:
        *lines, rest = (self._rest[piece.stream] + piece.data).split(b"\n")
        self._rest[piece.stream] = rest[-4096:]
        for line in lines:
            self._say(piece.stream, line)

    def close(self) -> None:
        for stream, rest in self._rest.items():
            if rest:
                self._say(stream, rest)

    def _say(self, stream: Stream, line: bytes) -> None:
        text = line.decode(errors="replace")
        if stream is Stream.STDOUT:
            log.debug(text, cleanup_std="out")
        else:
            log.warning(text, cleanup_std="err")


def _read_state(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        log.warning("what is known of the place of a job cannot be read", path=str(path))
        return None
    return found


def _resolve(program: str, path: str) -> str:
    """Where the program is. Raises :class:`PrepareError` in the reference's words where there is none."""
    if "/" not in program:
        found = shutil.which(program, path=path)
        if found is None:
            raise PrepareError(f'failed to start command: exec: "{program}": executable file not found in $PATH')
        return found
    place = Path(program).absolute()
    if not place.exists():
        raise PrepareError(f"failed to start command: fork/exec {program}: no such file or directory")
    if place.is_dir() or not os.access(place, os.X_OK):
        raise PrepareError(f"failed to start command: fork/exec {program}: permission denied")
    return str(place)
