"""Scripts of configuration and job around the git work (``job-lifecycle.md`` 5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from executors.base import Environment, ExitStatus
from runner.job.outcome import script_failed
from runner.job.plan import JobPlan
from runner.job.script import Commands, change_directory, quote
from runner.job.stages import Stage
from runner.job.steps import Step, Steps
from runner.scope import StopScope

Run = Callable[[Step, str, str, StopScope], Awaitable[ExitStatus]]


class SourceHooks:
    """Runs them, in one shell on each side of the git work. ``exported`` is what the first ones exported, which git and
    the later ones see."""

    def __init__(
        self,
        plan: JobPlan,
        environment: Environment,
        steps: Steps,
        *,
        run: Run,
        commands: Callable[[], Commands],
        prelude: Callable[[str], str],
    ) -> None:
        self._plan = plan
        self._environment = environment
        self._steps = steps
        self._run_script = run
        self._commands = commands
        self._prelude = prelude
        self.exported: dict[str, str] = {}

    async def before(self, step: Step) -> None:
        """The ones before git. Raises :class:`JobFailure`."""
        await self._run(step, "pre_get_sources_script", self._plan.runner.pre_get_sources_script, first=True)

    async def after(self, step: Step) -> None:
        """The ones behind it. Raises :class:`JobFailure`."""
        await self._run(step, "post_get_sources_script", self._plan.runner.post_get_sources_script, first=False)

    async def _run(self, step: Step, name: str, configured: str, *, first: bool) -> None:
        elements = [element for hook in self._plan.payload.hooks if hook.name == name for element in hook.script]
        own = [configured] if configured else []
        elements = [*own, *elements] if first else [*elements, *own]
        if not elements:
            return
        prefix = "pre_clone_script" if first else "post_clone_script"
        exported = f"{self._plan.directories.tmp}/.pyrunner-hook-env"
        body = self._prelude("running") + "export GIT_TERMINAL_PROMPT=0 GCM_INTERACTIVE=Never\n"
        body += "".join(f"export {key}={quote(value)}\n" for key, value in self.exported.items())
        body += "" if first else change_directory(self._plan.directories.project)
        body += self._commands().render(elements, prefix)
        if first:
            body += f"umask 077; env -0 >{quote(exported)}\n"
        hook = self._steps.begin(f"{step.name} {name}", replayable=False, script=True, within=step.name)
        status = await self._run_script(hook, body, Stage.GET_SOURCES, StopScope())
        self._steps.end(hook)
        if status.exit_code != 0:
            raise script_failed(status)
        if first:
            self.exported = await self._read_exported(exported)

    async def _read_exported(self, path: str) -> dict[str, str]:
        """What the scripts before the git work exported: git and the scripts behind it see it."""
        raw = await self._environment.files.read(path) or b""
        await self._environment.files.remove([path])
        pairs = (entry.split("=", 1) for entry in raw.decode(errors="surrogateescape").split("\0") if "=" in entry)
        login = await self._environment.login_environment()
        known = dict(self._plan.exports("running"))
        hidden = {"_", "SHLVL", "PWD", "OLDPWD", "GITLAB_ENV"}
        return {
            key: value
            for key, value in pairs
            if key not in hidden and login.get(key) != value and known.get(key) != value and key.isidentifier()
        }
