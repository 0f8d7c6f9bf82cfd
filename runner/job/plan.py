"""Everything that follows from a job's payload, its runner entry and its place, worked out before anything is done."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

import msgspec

from executors.base import JobSpec, Mount, PlaceFacts
from executors.registry import Kind
from runner.archive.cache_key import CacheKey, cache_key
from runner.config.model import RunnerConfig, runner_from_json
from runner.coordinator.payload import Cache, JobPayload
from runner.gocache.access import NO_ACCESS, GoAccess, without_served
from runner.identity import REVISION, VERSION, architecture, os_name
from runner.job import flags as feature_flags
from runner.job.containers import Place, container_place, container_spec, image_spec, labels, network_of, service_specs
from runner.job.directories import Directories, place, slug, with_clone_path
from runner.job.flags import Flags
from runner.job.git_config import remote_of, ssh_rewrites
from runner.job.inputs import interpolate
from runner.job.outcome import JobFailure, Outcome, misconfigured
from runner.job.record import JobRecord
from runner.job.settings import GitStrategy, JobSettings, parse_settings
from runner.job.sources import SEED, SourcesPlan
from runner.job.variables import Variable, Variables, exports, from_payload, own
from runner.trace.log import TraceSettings

# What git and the programs that it starts understand of a job's variables; the rest is none of their business.
_GIT_VARIABLES = re.compile(
    r"GIT_(?!DIR$|WORK_TREE$|CONFIG_(?:GLOBAL|SYSTEM)$)[A-Z0-9_]+|(?:https?|no|all)_proxy|SSL_CERT_(?:FILE|DIR)"
    r"|SSH_(?:AUTH_SOCK|ASKPASS|ASKPASS_REQUIRE)",
    re.IGNORECASE,
)
SUPERVISOR_MARGIN_S = 120.0
DRIVER_GRACE_S = 600.0
DRIVER_FORCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """The facts of one job. ``payload`` has the job's inputs in it. ``refused`` is why the job cannot begin, if so;
    ``misconfigured`` why it cannot be prepared. ``caches`` are those of the payload that are packed."""

    payload: JobPayload
    runner: RunnerConfig
    kind: Kind
    record: JobRecord
    variables: Variables
    settings: JobSettings
    flags: Flags
    directories: Directories
    go: GoAccess
    caches: tuple[Cache, ...]
    refused: JobFailure | None
    misconfigured: JobFailure | None
    uses_inputs: bool
    warnings: tuple[str, ...]
    place: PlaceFacts

    @property
    def shell(self) -> str:
        """The shell of the scripts."""
        return self.place.shell or self.runner.shell or self.kind.shells[0]

    @property
    def term_grace_s(self) -> float:
        """What a script may take to end after SIGTERM."""
        if self.kind.is_scripted:
            found = self.runner.tables.get(self.kind.table or "", {}).get("graceful_kill_timeout", 0)
            return float(found) if found > 0 else DRIVER_GRACE_S
        return self.runner.pyrunner.term_grace_s

    @property
    def force_kill_s(self) -> float:
        """What a driver's program is waited for after SIGKILL; on other executors nothing is given up."""
        if not self.kind.is_scripted:
            return 0.0
        found = self.runner.tables.get(self.kind.table or "", {}).get("force_kill_timeout", 0)
        return float(found) if found > 0 else DRIVER_FORCE_S

    @property
    def script_shell(self) -> str:
        """The shell that scripts are written for: one that is found in an image may be any."""
        return "sh" if self.kind.in_containers else self.shell

    def worded(self, outcome: Outcome) -> Outcome:
        """The same outcome in the words of the job's executor."""
        if not self.kind.in_containers or not outcome.message.startswith("exit status "):
            return outcome
        return msgspec.structs.replace(outcome, message=outcome.message.replace("exit status", "exit code", 1))

    @property
    def url(self) -> str:
        """Where people look at the job."""
        project = self.payload.git_info.repo_url.removesuffix(".git")
        return self.variables.get("CI_JOB_URL") or f"{project}/-/jobs/{self.payload.id}"

    @property
    def env_file(self) -> str:
        """Where ``GITLAB_ENV`` points."""
        return f"{self.directories.tmp}/gitlab_runner_env"

    def cache_key(self, text: str) -> CacheKey:
        """The key of a cache; an empty one stands for the job and its ref."""
        name = text or f"{self.payload.job_info.name}/{self.payload.git_info.ref}"
        return cache_key(self.variables.expand(name), hashed=self.hashes_cache_keys)

    @property
    def hashes_cache_keys(self) -> bool:
        """Whether caches are stored under the hash of their key."""
        return self.flags["FF_HASH_CACHE_KEYS"]

    def exports(self, status: str) -> list[tuple[str, str]]:
        """What the scripts of a stage see."""
        return exports(self.variables.with_status(status))

    def trace_settings(self) -> TraceSettings:
        """How the log is written."""
        features = self.payload.features
        return TraceSettings(
            masks=self.variables.masks(),
            token_prefixes=tuple(features.token_mask_prefixes),
            mask_default_tokens=self.flags["FF_MASK_ALL_DEFAULT_TOKENS"],
            timestamps=self.flags["FF_TIMESTAMPS"],
            sections=features.trace_sections,
        )

    def spec(self, *, orphan_grace_s: float | None = None, mounts: tuple[Mount, ...] = ()) -> JobSpec:
        """What the executor gets; ``mounts`` beside those of the job's Go store."""
        accepted = self.record.accepted
        return JobSpec(
            job_id=self.payload.id,
            record_dir=self.record.directory,
            project_dir=self.directories.project,
            tmp_dir=self.directories.tmp,
            builds_root=posixpath.normpath(posixpath.join(accepted.working_dir, self.directories.builds)),
            shell=self.shell,
            user=self.runner.pyrunner.job_user or accepted.job_user,
            output_limit_bytes=max(256 * 1024 * 1024, self.runner.output_limit * 1024 * 8),
            deadline_unix_s=accepted.accepted_at_ns / 1e9 + self.payload.timeout_s + SUPERVISOR_MARGIN_S,
            orphan_grace_s=orphan_grace_s,
            kill_leftovers=self.runner.pyrunner.kill_leftovers,
            mounts=(*self.go.mounts, *mounts),
            image=image_spec(self),
            services=service_specs(self) if self.kind.in_containers else (),
            labels=labels(self) if self.kind.in_containers else {},
            containers=container_spec(self) if self.kind.in_containers else None,
            table=self.runner.tables.get(self.kind.table) if self.kind.table else None,
        )

    def sources(self) -> SourcesPlan:
        """What the git work gets."""
        runner, payload = self.runner, self.payload
        clean = runner.clean_git_config
        safe = runner.safe_directory_checkout
        files = {"sslCAInfo": "CA", "sslCert": "CERT", "sslKey": "KEY"}
        names = {key: f"CI_SERVER_TLS_{name}_FILE" for key, name in files.items()}
        return SourcesPlan(
            git=payload.git_info,
            settings=self.settings,
            remote=remote_of(
                payload.git_info.repo_url,
                token=payload.token,
                clone_url=runner.clone_url,
                project_path=self.variables.get("CI_PROJECT_PATH") or "",
            ),
            token=payload.token,
            project_dir=self.directories.project,
            tmp_dir=self.directories.tmp,
            bases=(runner.clone_url or runner.url,),
            correlation_id=self.record.accepted.correlation_id if self.flags["FF_USE_GITALY_CORRELATION_ID"] else "",
            bundle_uris=self.flags["FF_USE_GIT_BUNDLE_URIS"],
            proactive_auth=self.flags["FF_USE_GIT_PROACTIVE_AUTH"],
            native_clone=self.flags["FF_USE_GIT_NATIVE_CLONE"],
            clean_config=True if clean is None else clean,
            says_fresh=clean is True,
            without_tokens=self.flags["FF_GIT_URLS_WITHOUT_TOKENS"],
            safe_directory=self.kind.safe_directory if safe is None else safe,
            job_cleanup=self.flags["FF_ENABLE_JOB_CLEANUP"],
            tls={key: self.variables.path(name) for key, name in names.items() if self.variables.get(name)},
            rewrites=self._ssh_rewrites(),
            shares_logins=self.kind.shared,
            environment={key: value for key, value in self.exports("running") if _GIT_VARIABLES.fullmatch(key)},
        )

    def _ssh_rewrites(self) -> dict[str, str]:
        if not self.settings.submodule_force_https:
            return {}
        get = self.variables.get
        host = get("CI_SERVER_SHELL_SSH_HOST") or get("CI_SERVER_HOST") or ""
        return ssh_rewrites(host, get("CI_SERVER_SHELL_SSH_PORT") or "", self.runner.clone_url or self.runner.url)


def make_plan(
    record: JobRecord,
    payload: JobPayload,
    kind: Kind,
    go: GoAccess = NO_ACCESS,
    place_facts: PlaceFacts | None = None,
) -> JobPlan:
    """Work the plan out; the same one for whoever has the record. ``place_facts`` is what only the place could tell."""
    found_place = place_facts or PlaceFacts()
    runner = runner_from_json(record.accepted.runner)
    configured = _configured(runner)
    sent = [from_payload(variable) for variable in payload.variables]
    # A first look, to learn what decides over directories; variables that name directories come later.
    early = Variables([*configured, *sent], "")
    flags = feature_flags.resolve(runner.feature_flags, early.get)
    sent_payload, (payload, refused) = payload, _with_inputs(payload, flags)
    settings = _settings(early.expanded(), payload, runner)
    roots = container_place(runner, record.directory.parents[1]) if kind.in_containers else _roots(runner, kind, found_place)
    directories = place(
        working_dir=record.accepted.working_dir,
        builds_dir=roots.builds_dir,
        cache_dir=roots.cache_dir,
        shared=roots.shared,
        short_token=runner.short_token,
        project_slot=record.accepted.project_slot,
        name=slug(payload.git_info.repo_url, payload.job_info.project_id),
        is_empty_strategy=settings.git_strategy is GitStrategy.EMPTY,
    )
    variables = _assemble(record, payload, runner, kind, flags, directories)
    unusable = _missing_directory(runner, place_facts) if kind.is_scripted else None
    clone_path = early.get("GIT_CLONE_PATH")
    if clone_path:
        allowed, here = runner.custom_build_dir_enabled, record.accepted.working_dir
        allowed = kind.custom_build_dir if allowed is None else allowed
        try:
            directories = with_clone_path(directories, variables.expand(clone_path), allowed=allowed, working_dir=here)
            variables = _assemble(record, payload, runner, kind, flags, directories)
        except JobFailure as failure:
            unusable = failure
    expanded = variables.expanded()
    settings = _settings(expanded, payload, runner)
    own = {variable.key: variable.value for variable in expanded.effective()}
    go, caches = without_served(go, payload.cache, variables=own, expand=expanded.expand, project=directories.project)
    return JobPlan(
        payload=payload,
        runner=runner,
        kind=kind,
        record=record,
        variables=expanded,
        settings=settings,
        flags=flags,
        directories=directories,
        go=go,
        caches=caches,
        refused=refused,
        misconfigured=unusable,
        uses_inputs=payload != sent_payload,
        warnings=(*settings.warnings, *flags.warnings, *flags.warnings, *expanded.problems()),
        place=found_place,
    )


def _with_inputs(payload: JobPayload, flags: Flags) -> tuple[JobPayload, JobFailure | None]:
    """The payload with its inputs in it, or as it is and why it cannot be had so."""
    if not flags["FF_ENABLE_JOB_INPUTS_INTERPOLATION"]:
        return payload, None
    try:
        return interpolate(payload), None
    except JobFailure as failure:
        return payload, failure


def _roots(runner: RunnerConfig, kind: Kind, found: PlaceFacts) -> Place:
    """Where jobs work that are in no container: what their place says counts more than the configuration."""
    return Place(
        builds_dir=found.builds_dir or runner.builds_dir,
        cache_dir=found.cache_dir or runner.cache_dir,
        shared=kind.shares_builds if found.is_shared is None else found.is_shared,
    )


def _missing_directory(runner: RunnerConfig, place_facts: PlaceFacts | None) -> JobFailure | None:
    """Nobody can guess directories of a place that only its driver knows."""
    if place_facts is None:
        return None
    if not (place_facts.builds_dir or runner.builds_dir):
        return misconfigured("the builds_dir is not configured")
    if not (place_facts.cache_dir or runner.cache_dir):
        return misconfigured("the cache_dir is not configured")
    return None


def _settings(variables: Variables, payload: JobPayload, runner: RunnerConfig) -> JobSettings:
    """The settings that expanded variables hold."""
    return parse_settings(
        variables.get,
        allow_fetch=payload.allow_git_fetch,
        depth=payload.git_info.depth,
        debug_disabled=runner.debug_trace_disabled,
    )


def _configured(runner: RunnerConfig) -> list[Variable]:
    """``environment`` of the runner entry."""
    found = [entry.partition("=") for entry in runner.environment]
    return [Variable(key=key, value=value, public=True, internal=True) for key, equals, value in found if equals]


def _assemble(
    record: JobRecord,
    payload: JobPayload,
    runner: RunnerConfig,
    kind: Kind,
    flags: Flags,
    directories: Directories,
) -> Variables:
    """All variables in the order of precedence, lowest first (``job-lifecycle.md`` 8.1)."""
    accepted = record.accepted
    found = [own(name, "true" if on else "false") for name, on in flags.values.items()]
    if payload.image.name:
        found.append(own("CI_JOB_IMAGE", payload.image.name))
    found.append(own("CI_RUNNER_SHORT_TOKEN", runner.short_token))
    # The flags above are what came of these: scripts see what the header says.
    found += [variable for variable in _configured(runner) if variable.key not in flags.values]
    found += [
        own("CI_BUILDS_DIR", directories.builds),
        own("CI_PROJECT_DIR", directories.shown),
        own("CI_CONCURRENT_ID", str(accepted.concurrent_id)),
        own("CI_CONCURRENT_PROJECT_ID", str(accepted.project_slot)),
        own("CI_SERVER", "yes"),
        own("CI_JOB_STATUS", "running"),
        own("CI_JOB_TIMEOUT", str(payload.timeout_s)),
    ]
    tls = {"CA": accepted.ca_chain, "CERT": accepted.client_cert, "KEY": accepted.client_key}
    found += [
        Variable(key=f"CI_SERVER_TLS_{name}_FILE", value=text, public=name != "KEY", internal=True, file=True)
        for name, text in tls.items()
        if text
    ]
    found += [from_payload(variable) for variable in payload.variables if variable.key not in flags.values]
    found += [
        own("CI_SHARED_ENVIRONMENT" if kind.shared else "CI_DISPOSABLE_ENVIRONMENT", "true"),
        own("CI_RUNNER_VERSION", VERSION),
        own("CI_RUNNER_REVISION", REVISION),
        own("CI_RUNNER_EXECUTABLE_ARCH", f"{os_name()}/{architecture()}"),
    ]
    found += [
        Variable(key=it.name, value=it.value, masked=True, raw=True, file=it.file)
        for it in (record.secrets if payload.secrets else ())
    ]
    found.append(own("RUNNER_TEMP_PROJECT_DIR", directories.tmp))
    if kind.in_containers and flags["FF_NETWORK_PER_BUILD"]:
        found.append(own("CI_BUILD_NETWORK_NAME", network_of(runner, payload, accepted)))
    if flags["FF_GIT_URLS_WITHOUT_TOKENS"]:
        found.append(own("GIT_CONFIG_GLOBAL", f"{directories.tmp}/{SEED}"))
    return Variables(found, directories.tmp)
