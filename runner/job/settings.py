"""Settings of a job that are variables: parsed once, with the warnings that the log shows (``job-lifecycle.md`` 8.5)."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from runner.config.duration import parse_duration
from runner.job.flags import parse_bool

_INT = re.compile(r"[+-]?[0-9]+", re.ASCII)
DEFAULT_AFTER_SCRIPT_S = 300.0
MAX_ATTEMPTS = 10
DEFAULT_CLEAN_FLAGS = ("-ffdx",)


class GitStrategy(enum.StrEnum):
    """How sources come into the project directory."""

    CLONE = "clone"
    FETCH = "fetch"
    NONE = "none"
    EMPTY = "empty"


class SubmoduleStrategy(enum.StrEnum):
    """What happens to submodules. ``INVALID`` fails the stage."""

    NONE = "none"
    NORMAL = "normal"
    RECURSIVE = "recursive"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """What the variables of a job say about its run. Times are seconds."""

    debug_trace: bool
    debug_services: bool
    git_strategy: GitStrategy
    git_checkout: bool
    submodule_strategy: SubmoduleStrategy
    submodule_paths: tuple[str, ...]
    submodule_depth: int
    submodule_update_flags: tuple[str, ...]
    submodule_force_https: bool
    git_clean_flags: tuple[str, ...]
    git_fetch_extra_flags: tuple[str, ...]
    git_clone_extra_flags: tuple[str, ...]
    lfs_skip_smudge: bool | None
    after_script_ignore_errors: bool
    get_sources_attempts: int
    restore_cache_attempts: int
    cache_request_timeout_s: float
    artifact_download_attempts: int
    secrets_attempts: int
    section_attempts: int
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptTimes:
    """Limits of scripts. ``script_s`` None: none but the job's."""

    script_s: float | None
    after_script_s: float
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Reader:
    """Reads values and collects what is wrong with them."""

    look_up: Callable[[str], str | None]
    warnings: list[str] = field(default_factory=list)
    clamped: list[str] = field(default_factory=list)

    def text(self, name: str, default: str = "") -> str:
        found = self.look_up(name)
        return default if found is None else found

    def boolean(self, name: str, *, default: bool) -> bool:
        text = self.text(name)
        parsed = parse_bool(text) if text else default
        if parsed is None:
            shown = "true" if default else "false"
            self.warnings.append(f'{name}: expected bool got "{text}", using default value: {shown}')
            return default
        return parsed

    def integer(self, name: str, default: int) -> int:
        text = self.text(name)
        if not text:
            return default
        if not _INT.fullmatch(text):
            self.warnings.append(f'{name}: expected int got "{text}", using default value: {default}')
            return default
        return int(text)

    def attempts(self, name: str) -> int:
        value = self.integer(name, 1)
        limited = min(max(value, 1), MAX_ATTEMPTS)
        if limited != value:
            self.clamped.append(f"{name}: number of attempts out of the range [1, {MAX_ATTEMPTS}], clamping to: {limited}")
        return limited

    def flag_list(self, name: str, default: tuple[str, ...]) -> tuple[str, ...]:
        text = self.text(name).strip()
        if not text:
            return default
        return () if text == "none" else tuple(text.split())

    def strategy(self, default: GitStrategy) -> GitStrategy:
        text = self.text("GIT_STRATEGY")
        if not text:
            return default
        try:
            return GitStrategy(text)
        except ValueError:
            self.warnings.append(
                "GIT_STRATEGY: expected either 'clone', 'fetch', 'none' or 'empty' "
                f"got \"{text}\", using default value '{default}'"
            )
            return default

    def submodules(self) -> SubmoduleStrategy:
        text = self.text("GIT_SUBMODULE_STRATEGY")
        if text in ("", "none", "normal", "recursive"):
            return SubmoduleStrategy(text or "none")
        self.warnings.append(f"GIT_SUBMODULE_STRATEGY: expected either 'normal', 'recursive' or 'none' got \"{text}\"")
        return SubmoduleStrategy.INVALID


def parse_settings(look_up: Callable[[str], str | None], *, allow_fetch: bool, depth: int, debug_disabled: bool) -> JobSettings:
    """Read the settings in the order in which the reference reports what is wrong with them."""
    reader = _Reader(look_up)
    debug_services = reader.boolean("CI_DEBUG_SERVICES", default=False)
    debug_trace = reader.boolean("CI_DEBUG_TRACE", default=False)
    strategy = reader.strategy(GitStrategy.FETCH if allow_fetch else GitStrategy.CLONE)
    checkout = reader.boolean("GIT_CHECKOUT", default=True)
    submodules = reader.submodules()
    submodule_depth = reader.integer("GIT_SUBMODULE_DEPTH", depth)
    lfs_skip = reader.boolean("GIT_LFS_SKIP_SMUDGE", default=False)
    force_https = reader.boolean("GIT_SUBMODULE_FORCE_HTTPS", default=False)
    ignore_errors = reader.boolean("AFTER_SCRIPT_IGNORE_ERRORS", default=True)
    cache_minutes = reader.integer("CACHE_REQUEST_TIMEOUT", 10)
    get_sources = reader.attempts("GET_SOURCES_ATTEMPTS")
    artifact_download = reader.attempts("ARTIFACT_DOWNLOAD_ATTEMPTS")
    restore_cache = reader.attempts("RESTORE_CACHE_ATTEMPTS")
    section = reader.attempts("EXECUTOR_JOB_SECTION_ATTEMPTS")
    secrets = reader.attempts("SECRETS_RETRIEVAL_ATTEMPTS")
    disabled = []
    if debug_disabled:
        disabled = [
            f"{name}: usage is disabled on this Runner"
            for name, on in (("CI_DEBUG_TRACE", debug_trace), ("CI_DEBUG_SERVICES", debug_services))
            if on
        ]
        debug_trace = debug_services = False
    return JobSettings(
        debug_trace=debug_trace,
        debug_services=debug_services,
        git_strategy=strategy,
        git_checkout=checkout,
        submodule_strategy=submodules,
        submodule_paths=reader.flag_list("GIT_SUBMODULE_PATHS", ()),
        submodule_depth=submodule_depth,
        submodule_update_flags=reader.flag_list("GIT_SUBMODULE_UPDATE_FLAGS", ()),
        submodule_force_https=force_https,
        git_clean_flags=reader.flag_list("GIT_CLEAN_FLAGS", DEFAULT_CLEAN_FLAGS),
        git_fetch_extra_flags=reader.flag_list("GIT_FETCH_EXTRA_FLAGS", ("--prune", "--quiet")),
        git_clone_extra_flags=reader.flag_list("GIT_CLONE_EXTRA_FLAGS", ()),
        lfs_skip_smudge=lfs_skip,
        after_script_ignore_errors=ignore_errors,
        get_sources_attempts=get_sources,
        restore_cache_attempts=restore_cache,
        cache_request_timeout_s=60.0 * (cache_minutes if cache_minutes > 0 else 10),
        artifact_download_attempts=artifact_download,
        secrets_attempts=secrets,
        section_attempts=section,
        warnings=(*disabled, *reader.warnings, *reader.clamped),
    )


def parse_times(look_up: Callable[[str], str | None], *, left_s: float) -> ScriptTimes:
    """Limits of the scripts, given what is left of the job's own."""
    warnings: list[str] = []
    script = _time(look_up, "RUNNER_SCRIPT_TIMEOUT", left_s, warnings)
    after = _time(look_up, "RUNNER_AFTER_SCRIPT_TIMEOUT", left_s, warnings)
    return ScriptTimes(
        script_s=script,
        after_script_s=DEFAULT_AFTER_SCRIPT_S if after is None else after,
        warnings=tuple(warnings),
    )


def _time(look_up: Callable[[str], str | None], name: str, left_s: float, warnings: list[str]) -> float | None:
    text = look_up(name)
    if not text:
        return None
    try:
        seconds = parse_duration(text)
    except ValueError:
        warnings.append(f"Ignoring malformed {name} timeout: {text}")
        return None
    if seconds < 0:
        warnings.append(f"Ignoring relative {name} timeout: {text}")
        return None
    if seconds == 0:
        return None
    if seconds > left_s:
        warnings.append(f"{name} timeout: {text} is longer than job timeout. Setting to job timeout")
        return left_s
    return seconds
