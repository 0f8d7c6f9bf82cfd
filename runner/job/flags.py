"""Feature flags: names, defaults, and who decides them (``job-lifecycle.md`` 17)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

# In the order of the reference's table: the header of a job lists changed flags in it.
DEFAULTS: Mapping[str, bool] = {
    "FF_TEST_FEATURE": False,
    "FF_NETWORK_PER_BUILD": False,
    "FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY": False,
    "FF_USE_DIRECT_DOWNLOAD": True,
    "FF_USE_FASTZIP": True,
    "FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR": False,
    "FF_ENABLE_BASH_EXIT_CODE_CHECK": False,
    "FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY": False,
    "FF_USE_LEGACY_BASH_EVAL": False,
    "FF_USE_POWERSHELL_PATH_RESOLVER": False,
    "FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL": False,
    "FF_SCRIPT_SECTIONS": False,
    "FF_ENABLE_JOB_CLEANUP": False,
    "FF_KUBERNETES_HONOR_ENTRYPOINT": False,
    "FF_POSIXLY_CORRECT_ESCAPES": False,
    "FF_RESOLVE_FULL_TLS_CHAIN": False,
    "FF_DISABLE_POWERSHELL_STDIN": False,
    "FF_USE_POD_ACTIVE_DEADLINE_SECONDS": True,
    "FF_USE_ADVANCED_POD_SPEC_CONFIGURATION": False,
    "FF_SECRET_RESOLVING_FAILS_IF_MISSING": True,
    "FF_PRINT_POD_EVENTS": False,
    "FF_USE_GIT_BUNDLE_URIS": True,
    "FF_USE_GIT_NATIVE_CLONE": False,
    "FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR": False,
    "FF_USE_INIT_WITH_DOCKER_EXECUTOR": False,
    "FF_LOG_IMAGES_CONFIGURED_FOR_JOB": False,
    "FF_USE_DOCKER_AUTOSCALER_DIAL_STDIO": True,
    "FF_CLEAN_UP_FAILED_CACHE_EXTRACT": False,
    "FF_USE_WINDOWS_JOB_OBJECT": False,
    "FF_TIMESTAMPS": True,
    "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION": False,
    "FF_USE_LEGACY_GCS_CACHE_ADAPTER": False,
    "FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR": False,
    "FF_USE_LEGACY_S3_CACHE_ADAPTER": False,
    "FF_GIT_URLS_WITHOUT_TOKENS": False,
    "FF_WAIT_FOR_POD_TO_BE_REACHABLE": False,
    "FF_MASK_ALL_DEFAULT_TOKENS": True,
    "FF_EXPORT_HIGH_CARDINALITY_METRICS": False,
    "FF_USE_FLEETING_ACQUIRE_HEARTBEATS": False,
    "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY": True,
    "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY": True,
    "FF_USE_GITALY_CORRELATION_ID": True,
    "FF_USE_GIT_PROACTIVE_AUTH": False,
    "FF_HASH_CACHE_KEYS": False,
    "FF_ENABLE_JOB_INPUTS_INTERPOLATION": True,
    "FF_USE_JOB_ROUTER": False,
    "FF_SCRIPT_TO_STEP_MIGRATION": False,
    "FF_USE_PARALLEL_CACHE_TRANSFER": False,
    "FF_USE_PARALLEL_ARTIFACT_TRANSFER": False,
    "FF_CONCRETE": False,
    "FF_SUSPENDABLE_ENVIRONMENTS": False,
    "FF_USE_NATIVE_CONTAINER_STOP": False,
}
TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def parse_bool(text: str) -> bool | None:
    """A boolean as Go reads it; None for anything else."""
    return True if text in TRUE else False if text in FALSE else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """Resolved flags. ``warnings`` names values that could not be read."""

    values: Mapping[str, bool]
    warnings: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> bool:
        return self.values[name]

    def header(self) -> str:
        """The header's list of flags that differ from their default; empty when there is none."""
        changed = [f"{name}:{'true' if on else 'false'}" for name, on in self.values.items() if on != DEFAULTS[name]]
        return f"feature flags: {', '.join(changed)}" if changed else ""


def resolve(config: Mapping[str, bool], look_up: Callable[[str], str | None]) -> Flags:
    """The configuration decides first, then the job's variables (``look_up``), then the default."""
    values: dict[str, bool] = {}
    warnings: list[str] = []
    for name, default in DEFAULTS.items():
        if name in config:
            values[name] = config[name]
            continue
        text = look_up(name)
        parsed = parse_bool(text) if text else default
        if parsed is None:
            warnings.append(f"{name}: could not parse feature flag, expected bool, got {text}")
            parsed = default
        values[name] = parsed
    return Flags(values=values, warnings=tuple(warnings))
