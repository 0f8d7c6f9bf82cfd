"""The job as the coordinator sends it (``runner-api.md`` 4), typed. Field names are those of the wire.

Unknown keys are ignored, missing and null ones are the zero value; a value of the wrong type fails the whole payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from runner.errors import PayloadInvalid

DEFAULT_TIMEOUT_S = 7200
DOCKER_OPTIONS = frozenset({"platform", "user"})
KUBERNETES_OPTIONS = frozenset({"user"})


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """Every part is frozen and tolerant of unknown keys."""


class JobInfo(_Part, frozen=True, kw_only=True):
    """Names and ids, for logs and directories."""

    name: str = ""
    stage: str = ""
    pipeline_id: int = 0
    project_id: int = 0
    project_name: str = ""
    project_full_path: str = ""
    namespace_id: int = 0
    root_namespace_id: int = 0
    organization_id: int = 0
    user_id: int = 0
    scoped_user_id: int | None = None
    time_in_queue_seconds: float = 0
    project_jobs_running_on_instance_runners_count: str = ""
    queue_size: int = 0
    queue_depth: int = 0


class GitInfo(_Part, frozen=True, kw_only=True):
    """What to check out. ``repo_url`` carries the job token."""

    repo_url: str = ""
    repo_object_format: str = ""
    ref: str = ""
    sha: str = ""
    before_sha: str = ""
    ref_type: str = ""
    refspecs: list[str] = []
    depth: int = 0
    protected: bool | None = None


class RunnerInfo(_Part, frozen=True, kw_only=True):
    """``timeout`` is the job's, seconds; zero and less mean two hours."""

    timeout: int = 0


class JobVariable(_Part, frozen=True, kw_only=True):
    """One variable; of several with one key the last counts."""

    key: str = ""
    value: str = ""
    public: bool = False
    masked: bool = False
    file: bool = False
    raw: bool = False


class JobStep(_Part, frozen=True, kw_only=True):
    """A user script. Only name and script act."""

    name: str = ""
    script: list[str] = []


class Hook(_Part, frozen=True, kw_only=True):
    """A script around the git work."""

    name: str = ""
    script: list[str] = []


class Image(_Part, frozen=True, kw_only=True):
    """An image or a service."""

    name: str = ""
    alias: str = ""
    entrypoint: list[str] = []
    command: list[str] = []
    ports: list[dict[str, Any]] = []
    variables: list[JobVariable] = []
    pull_policy: list[str] = []
    executor_opts: dict[str, Any] = {}


class Artifact(_Part, frozen=True, kw_only=True):
    """One upload."""

    name: str = ""
    untracked: bool = False
    paths: list[str] = []
    exclude: list[str] = []
    when: str = ""
    expire_in: str = ""
    artifact_type: str = ""
    artifact_format: str = ""


class Cache(_Part, frozen=True, kw_only=True):
    """One cache."""

    key: str = ""
    untracked: bool = False
    policy: str = ""
    paths: list[str] = []
    when: str = ""
    fallback_keys: list[str] = []


class Credentials(_Part, frozen=True, kw_only=True):
    """A login; only ``registry`` is used."""

    type: str = ""
    url: str = ""
    username: str = ""
    password: str = ""


class DependencyFile(_Part, frozen=True, kw_only=True):
    """The archive of a dependency."""

    filename: str = ""
    size: int = 0


class Dependency(_Part, frozen=True, kw_only=True):
    """An earlier job whose artifacts are wanted; ``token`` is its own."""

    id: int = 0
    token: str = ""
    name: str = ""
    artifacts_file: DependencyFile = DependencyFile()


class Features(_Part, frozen=True, kw_only=True):
    """What the server understands."""

    trace_sections: bool = False
    token_mask_prefixes: list[str] = []
    failure_reasons: list[str] = []


class InputValue(_Part, frozen=True, kw_only=True):
    """A job input's value. ``content`` is JSON."""

    type: str = ""
    content: Any = None
    sensitive: bool = False


class JobInput(_Part, frozen=True, kw_only=True):
    """A job input."""

    key: str = ""
    value: InputValue = InputValue()


class PolicyOptions(_Part, frozen=True, kw_only=True):
    """Where the job comes from a security policy; only for lines of the log."""

    execution_policy_job: bool = False
    policy_name: str = ""
    policy_variables_override_allowed: bool | None = None
    policy_variables_override_exceptions: list[str] = []


class JobPayload(_Part, frozen=True, kw_only=True):
    """A job. ``secrets`` is None where the server knows none at all, which the log does not mention."""

    id: int = 0
    token: str = ""
    allow_git_fetch: bool = False
    job_info: JobInfo = JobInfo()
    git_info: GitInfo = GitInfo()
    runner_info: RunnerInfo = RunnerInfo()
    inputs: list[JobInput] = []
    variables: list[JobVariable] = []
    steps: list[JobStep] = []
    hooks: list[Hook] = []
    image: Image = Image()
    services: list[Image] = []
    artifacts: list[Artifact] = []
    cache: list[Cache] = []
    credentials: list[Credentials] = []
    dependencies: list[Dependency] = []
    features: Features = Features()
    secrets: dict[str, dict[str, Any]] | None = None
    run: str = ""
    policy_options: PolicyOptions = PolicyOptions()

    @property
    def timeout_s(self) -> int:
        """The job's time limit."""
        return self.runner_info.timeout if self.runner_info.timeout > 0 else DEFAULT_TIMEOUT_S


def decode(raw: bytes) -> JobPayload:
    """Parse the body of a 201. Raises :class:`PayloadInvalid`, which names the place."""
    try:
        payload = msgspec.convert(_without_nulls(msgspec.json.decode(raw)), JobPayload)
    except msgspec.DecodeError as error:
        raise PayloadInvalid(f"the job payload cannot be decoded: {error}") from error
    except RecursionError as error:
        raise PayloadInvalid("the job payload cannot be decoded: it is nested too deeply") from error
    if payload.id <= 0 or not payload.token:
        raise PayloadInvalid("the job payload cannot be used: it has no id or no token")
    return payload


def salvage(raw: bytes) -> tuple[int, str] | None:
    """Id and token of a payload that cannot be decoded, so that the job can be reported failed."""
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    job_id, token = found.get("id"), found.get("token")
    return (job_id, token) if isinstance(job_id, int) and isinstance(token, str) and token else None


def unsupported_options(payload: JobPayload) -> str:
    """What ``executor_opts`` ask for that no executor knows (``runner-api.md`` 4.5); empty when all is known."""
    parts = [("image", payload.image.executor_opts)]
    parts += [("service", service.executor_opts) for service in payload.services]
    found = [text for kind, options in parts for text in _unknown(kind, options)]
    return "\n".join(found)


def _unknown(kind: str, options: Mapping[str, Any]) -> list[str]:
    known = {"docker": DOCKER_OPTIONS, "kubernetes": KUBERNETES_OPTIONS}
    found = [_complaint(kind, sorted(set(options) - set(known)), "executor_opts", known)]
    for executor, names in known.items():
        inner = options.get(executor)
        if isinstance(inner, dict):
            found.append(_complaint(kind, sorted(set(inner) - names), f"{executor} executor", names))
    return [text for text in found if text]


def _complaint(kind: str, unknown: list[str], place: str, known: Mapping[str, Any] | frozenset[str]) -> str:
    if not unknown:
        return ""
    supported = " ".join(sorted(known))
    return f'Unsupported "{kind}" options [{" ".join(unknown)}] for "{place}"; supported options are [{supported}]'


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value if item is not None]
    return value
