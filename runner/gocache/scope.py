"""Which store a job sees: one for its project, its namespace or its runner, and for what it may be trusted with. Pure."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from runner.config.model import RunnerConfig
from runner.coordinator.payload import JobPayload, JobVariable

PROTECTED = "CI_COMMIT_REF_PROTECTED"
SWITCH = "PYRUNNER_GO_CACHE"
_UNFIT = re.compile(r"[^A-Za-z0-9.]+")
NAME_LENGTH = 40


class Trust(enum.StrEnum):
    """Whose stores a job uses: those of protected refs, those of all others, or one for both."""

    PROTECTED = "protected"
    UNPROTECTED = "unprotected"
    SHARED = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKey:
    """A store. ``group`` is what has one budget; ``name`` is that of its directory, without its trust, ``account`` whose
    files it holds."""

    group: str
    scope: str
    name: str
    trust: Trust
    account: str

    @property
    def directory(self) -> str:
        """The name of its directory."""
        return f"{self.group}-{self.name}-{self.account}-{self.trust}"

    @property
    def shown(self) -> str:
        """Scope and trust, as the log of a job names them."""
        return self.scope if self.trust is Trust.SHARED else f"{self.scope}/{self.trust}"

    def trusted(self) -> StoreKey:
        """The store of protected refs beside this one."""
        return StoreKey(group=self.group, scope=self.scope, name=self.name, trust=Trust.PROTECTED, account=self.account)


def group_of(runner: RunnerConfig) -> str:
    """What the stores of a runner entry have in common. A new token does not change it."""
    return _digest(runner.url.rstrip("/"), runner.name)


def is_protected(payload: JobPayload) -> bool:
    """Whether the ref is protected, as the server says it (``runner-api.md`` 4.3).

    A variable of that name counts only where the server says nothing else, and then the first one: the server's own come
    before those that a project or a job may set.
    """
    if payload.git_info.protected is not None:
        return payload.git_info.protected
    return next((variable.value for variable in payload.variables if variable.key == PROTECTED), "") == "true"


def is_declined(variables: Sequence[JobVariable]) -> bool:
    """Whether the job wants no store."""
    found = [variable.value for variable in variables if variable.key == SWITCH]
    return bool(found) and found[-1].lower() in ("off", "false", "0", "no")


def is_instance_runner(payload: JobPayload) -> bool:
    """Whether everybody on the server may use the runner that got this job (``runner-api.md`` 4.2)."""
    return payload.job_info.project_jobs_running_on_instance_runners_count not in ("", "+Inf")


def store_key(payload: JobPayload, runner: RunnerConfig, *, account: str) -> StoreKey:
    """The store of a job. A namespace that nobody names is its project's, and so is a runner that is everybody's."""
    info = payload.job_info
    scope, name = "project", f"project-{info.project_id}"
    group = info.project_full_path.partition("/")[0] if "/" in info.project_full_path else ""
    match runner.go.scope:
        case "namespace" if info.root_namespace_id:
            scope, name = "namespace", f"namespace-{info.root_namespace_id}"
        case "namespace" if group:
            scope, name = "namespace", f"group-{_fit(group)}"
        case "runner" if not is_instance_runner(payload):
            scope, name = "runner", f"runner-{_fit(runner.name)}"
    trust = Trust.SHARED
    if runner.go.protected == "separate":
        trust = Trust.PROTECTED if is_protected(payload) else Trust.UNPROTECTED
    return StoreKey(group=group_of(runner), scope=scope, name=name, trust=trust, account=account)


def _fit(text: str) -> str:
    """A part of a file name that no two texts share."""
    clean = _UNFIT.sub("_", text).strip("._")[:NAME_LENGTH]
    return clean if clean == text else f"{clean}_{_digest(text)}"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()[:12]
