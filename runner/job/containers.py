"""What a job in containers asks for, for an executor that knows nothing of GitLab."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.base import ContainerSpec, ImageSpec, JobSpec, RegistryLogin, ServiceSpec, Slot
from executors.docker.names import network_name
from executors.docker.volumes import is_protected, shares_builds
from executors.registry import Kind
from runner.config.duration import format_duration
from runner.config.model import RunnerConfig
from runner.coordinator.payload import Image, JobPayload
from runner.job.record import Accepted
from runner.job.settings import GitStrategy
from runner.job.variables import Variable

if TYPE_CHECKING:
    from runner.job.plan import JobPlan

AUTH_CONFIG = "DOCKER_AUTH_CONFIG"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Roots of the directories of jobs; ``shared`` tells that slots share the one of builds."""

    builds_dir: str
    cache_dir: str
    shared: bool


def bare_spec(runner: RunnerConfig, kind: Kind, record_dir: Path) -> JobSpec:
    """What there is to say of a job of which nothing but the record's place is known: enough to take down what it left."""
    nowhere = Slot(short_token=runner.short_token, project_id=0, number=0, store="")
    return JobSpec(
        job_id=0,
        record_dir=record_dir,
        project_dir="/",
        tmp_dir="/",
        containers=ContainerSpec(slot=nowhere) if kind.in_containers else None,
        table=runner.tables.get(kind.table) if kind.table else None,
    )


def image_spec(plan: JobPlan) -> ImageSpec | None:
    """The image that the job names, if it names one."""
    image = plan.payload.image
    if not image.name:
        return None
    return ImageSpec(
        name=plan.variables.expand(image.name),
        entrypoint=tuple(image.entrypoint),
        pull_policies=tuple(image.pull_policy),
        executor_opts=_options(plan, image),
    )


def service_specs(plan: JobPlan) -> tuple[ServiceSpec, ...]:
    """The services that the job asks for."""
    return tuple(_service(plan, service) for service in plan.payload.services)


def _service(plan: JobPlan, service: Image) -> ServiceSpec:
    return ServiceSpec(
        name=plan.variables.expand(service.name),
        aliases=tuple(filter(None, re.split(r"[ ,]+", plan.variables.expand(service.alias)))),
        entrypoint=tuple(service.entrypoint),
        command=tuple(service.command),
        pull_policies=tuple(service.pull_policy),
        environment={
            variable.key: variable.value if variable.raw else plan.variables.expand(variable.value)
            for variable in service.variables
        },
        executor_opts=_options(plan, service),
    )


def _options(plan: JobPlan, image: Image) -> dict[str, str]:
    """What ``executor_opts`` say to this executor; numbers may stand for users."""
    found: Any = image.executor_opts.get(plan.kind.name) or {}
    return {key: plan.variables.expand(str(value)) for key, value in found.items()}


def container_spec(plan: JobPlan) -> ContainerSpec:
    """The rest of it."""
    payload, variables = plan.payload, plan.variables
    configured = {entry.partition("=")[0] for entry in plan.runner.environment}
    sent = {variable.key for variable in payload.variables}
    return ContainerSpec(
        slot=_slot(plan),
        expand=variables.expand,
        variables=tuple(_pair(plan, variable) for variable in variables.all),
        service_variables=tuple(_pair(plan, variable) for variable in variables.all if variable.public or variable.internal),
        flags=frozenset(name for name, on in plan.flags.values.items() if on),
        logins=tuple(
            RegistryLogin(registry=login.url, username=login.username, password=login.password)
            for login in payload.credentials
            if login.type == "registry"
        ),
        auth_config=variables.get(AUTH_CONFIG) or "",
        own_auth_config=AUTH_CONFIG in configured and AUTH_CONFIG not in sent,
        builds_dir=plan.directories.builds,
        keeps_builds=plan.settings.git_strategy is GitStrategy.FETCH,
        protected=_is_protected(plan),
        uses_tools=_uses_tools(plan),
        shows_services=plan.settings.debug_services,
    )


def _pair(plan: JobPlan, variable: Variable) -> str:
    value = plan.variables.path(variable.key) if variable.file else variable.value
    return f"{variable.key}={value}"


def _slot(plan: JobPlan) -> Slot:
    accepted = plan.record.accepted
    project, number = plan.payload.job_info.project_id, accepted.project_slot
    text = f"{plan.runner.token}-{accepted.system_id}-{project}-{number}"
    return Slot(
        short_token=plan.runner.short_token,
        project_id=project,
        number=number,
        store=hashlib.sha256(text.encode()).hexdigest()[:32],
    )


def _is_protected(plan: JobPlan) -> bool:
    said = plan.payload.git_info.protected
    ref = plan.variables.get("CI_COMMIT_REF_PROTECTED") == "true" if said is None else said
    return is_protected(ref=ref, cache_keys=(plan.variables.expand(cache.key) for cache in plan.payload.cache))


def container_place(runner: RunnerConfig, state_dir: Path) -> Place:
    """Where jobs in containers work. Their caches are kept on this host, out of their reach."""
    builds = runner.builds_dir or "/builds"
    volumes = runner.tables.get("docker", {}).get("volumes", ())
    return Place(builds_dir=builds, cache_dir=str(state_dir / "cache"), shared=shares_builds(volumes, builds))


def network_of(runner: RunnerConfig, payload: JobPayload, accepted: Accepted) -> str:
    """The name of the network that a job gets for itself."""
    return network_name(runner.short_token, payload.job_info.project_id, accepted.project_slot, payload.id)


def _uses_tools(plan: JobPlan) -> bool:
    """Whether there is anything to do in the job's directories but running its scripts."""
    payload, runner = plan.payload, plan.runner
    has_hooks = bool(payload.hooks or runner.pre_get_sources_script or runner.post_get_sources_script)
    gets_sources = plan.settings.git_strategy in (GitStrategy.CLONE, GitStrategy.FETCH)
    has_files = bool(payload.cache or payload.artifacts or payload.dependencies)
    return gets_sources or has_files or (has_hooks and plan.sources().uses_git)


def labels(plan: JobPlan) -> Mapping[str, str]:
    """What the reference says of a job on everything that it makes (``docker-executor.md`` 2.2), without the prefix."""
    payload, accepted = plan.payload, plan.record.accepted
    git = payload.git_info
    return {
        "job.id": str(payload.id),
        "job.url": plan.url,
        "job.sha": git.sha,
        "job.before_sha": git.before_sha,
        "job.ref": git.ref,
        "job.timeout": format_duration(payload.timeout_s),
        "project.id": str(payload.job_info.project_id),
        "project.runner_id": str(accepted.project_slot),
        "pipeline.id": plan.variables.get("CI_PIPELINE_ID") or "",
        "runner.id": plan.runner.short_token,
        "runner.local_id": str(accepted.concurrent_id),
        "runner.system_id": accepted.system_id,
        "managed": "true",
    }
