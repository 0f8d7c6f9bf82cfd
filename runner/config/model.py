"""The configuration, typed and frozen. Durations are seconds."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from runner.identity import short_token


def default_state_dir() -> Path:
    """Where records are kept when the configuration does not say."""
    if os.geteuid() == 0:
        return Path("/var/lib/pyrunner")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "pyrunner"


def default_control_socket(state_dir: Path) -> Path:
    """Where a daemon is asked and told things when the configuration does not say."""
    if os.geteuid() == 0:
        return Path("/run/pyrunner/control.sock")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "pyrunner.sock" if base else state_dir / "control.sock"


class DiskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[pyrunner.disk]``, bytes. ``budgets`` has the kinds of things that are bounded."""

    min_free_bytes: int = 0
    budgets: dict[str, int] = {}

    def budget(self, kind: str) -> int | None:
        """What a kind of things may take; None where nobody bounds it."""
        return self.budgets.get(kind)


class DaemonSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[pyrunner]``: keys that the reference does not know. ``control_socket`` None: the usual place, empty: none."""

    graceful_shutdown_timeout_s: float = 3600.0
    interrupted_failure_reason: str = "runner_system_failure"
    control_socket: str | None = None
    state_dir: Path = msgspec.field(default_factory=default_state_dir)
    shutdown_mode: str = "drain"
    system_id: str = ""
    pass_env: tuple[str, ...] = ()
    debug_endpoints: bool = False
    disk: DiskConfig = DiskConfig()

    @property
    def control_path(self) -> Path | None:
        """Where the control socket is, None for none."""
        if self.control_socket is None:
            return default_control_socket(self.state_dir)
        return Path(self.control_socket) if self.control_socket else None


class RunnerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.pyrunner]``. ``term_grace_s`` is what a script may take to end after SIGTERM; ``job_costs`` whether the log
    of a job ends with what it cost."""

    shutdown_mode: str | None = None
    token_file: str = ""
    job_user: str = ""
    kill_leftovers: bool = False
    term_grace_s: float = 10.0
    job_costs: bool = True


class ArtifactConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.artifact]``."""

    upload_timeout_s: float = 3600.0
    response_header_timeout_s: float = 600.0


class S3Config(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.cache.s3]``. ``path_style`` None: whatever the server address asks for."""

    server_address: str = ""
    access_key: str = ""
    secret_key: str = ""
    session_token: str = ""
    bucket_name: str = ""
    bucket_location: str = ""
    insecure: bool = False
    authentication_type: str = ""
    server_side_encryption: str = ""
    server_side_encryption_key_id: str = ""
    dual_stack: bool = True
    path_style: bool | None = None
    accelerate: bool = False
    role_arn: str = ""
    upload_role_arn: str = ""


class GcsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.cache.gcs]``."""

    credentials_file: str = ""
    access_id: str = ""
    private_key: str = ""
    bucket_name: str = ""
    universe_domain: str = ""


class AzureConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.cache.azure]``."""

    account_name: str = ""
    account_key: str = ""
    container_name: str = ""
    storage_domain: str = ""


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.cache]``. ``type`` is empty (this host only), ``s3``, ``gcs`` or ``azure``.
    ``redact_url``: logs of jobs do not show where the bucket is."""

    type: str = ""
    path: str = ""
    shared: bool = False
    max_uploaded_archive_size: int = 0
    redact_url: bool = False
    s3: S3Config = S3Config()
    gcs: GcsConfig = GcsConfig()
    azure: AzureConfig = AzureConfig()


class GoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.go]``: stores of the Go tool that jobs share. ``proxy`` is ``GOPROXY`` of jobs that have none."""

    enabled: bool = False
    scope: str = "project"
    protected: str = "separate"
    proxy: str = ""
    max_size_bytes: int = 20 << 30


class GitConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[runners.git]``. ``mirror``: checkouts borrow objects from a mirror that the runner keeps of each repository."""

    mirror: bool = False


class QueuingLimit(msgspec.Struct, frozen=True, kw_only=True):
    """How long a job may wait in the queue at the times of ``periods`` (cron expressions with seconds and years) before that
    is counted. ``jobs_running_for_project`` is a regular expression that what the server says of them must match."""

    periods: tuple[str, ...] = ()
    timezone: str = ""
    threshold_s: float = 0.0
    jobs_running_for_project: str = ""


class RunnerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One ``[[runners]]`` entry. ``tables`` holds the sub-tables of executors as they are; ``disabled`` says why the entry
    cannot be used; ``line`` is where it begins; ``token_reference`` names variables that url and token came from."""

    name: str = ""
    url: str = ""
    id: int = 0
    token: str = ""
    token_obtained_at: datetime | None = None
    token_expires_at: datetime | None = None
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    limit: int = 0
    output_limit: int = 4096
    request_concurrency: int = 1
    strict_check_interval: bool = False
    unhealthy_requests_limit: int = 3
    unhealthy_interval_s: float = 3600.0
    job_status_final_update_retry_limit: int = 10
    executor: str = ""
    builds_dir: str = ""
    cache_dir: str = ""
    clone_url: str = ""
    environment: tuple[str, ...] = ()
    shell: str = ""
    pre_get_sources_script: str = ""
    post_get_sources_script: str = ""
    pre_build_script: str = ""
    post_build_script: str = ""
    prepare_timeout_s: float | None = None
    get_sources_timeout_s: float | None = None
    debug_trace_disabled: bool = False
    safe_directory_checkout: bool | None = None
    clean_git_config: bool | None = None
    proxy_exec: bool | None = None
    labels: dict[str, str] = {}
    feature_flags: dict[str, bool] = {}
    custom_build_dir_enabled: bool | None = None
    artifact: ArtifactConfig = ArtifactConfig()
    cache: CacheConfig = CacheConfig()
    go: GoConfig = GoConfig()
    git: GitConfig = GitConfig()
    queuing_limits: tuple[QueuingLimit, ...] = ()
    pyrunner: RunnerSettings = RunnerSettings()
    tables: dict[str, Any] = {}
    line: int = 0
    disabled: str | None = None
    token_reference: frozenset[str] = frozenset()

    @property
    def short_token(self) -> str:
        """The part of the token that may be shown."""
        return short_token(self.token)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. ``runners`` has the usable and the disabled entries in file order."""

    path: Path
    concurrent: int = 1
    check_interval_s: float = 3.0
    log_level: str | None = None
    log_format: str | None = None
    shutdown_timeout_s: float = 30.0
    listen_address: str | None = None
    connection_max_age_s: float = 900.0
    labels: dict[str, str] = {}
    pyrunner: DaemonSettings = msgspec.field(default_factory=DaemonSettings)
    runners: tuple[RunnerConfig, ...] = ()
    content_hash: str = ""


def runner_to_json(runner: RunnerConfig) -> bytes:
    """An entry as a job's record keeps it."""
    return msgspec.json.encode(runner)


def runner_from_json(raw: bytes | msgspec.Raw) -> RunnerConfig:
    """The entry of a record."""
    return msgspec.json.decode(raw, type=RunnerConfig)
