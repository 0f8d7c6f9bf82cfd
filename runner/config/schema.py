"""Every key of the configuration file: the one table that loading, checks and ``register`` read.

A key's ``flag`` is how ``register`` and ``run-single`` spell it (empty: no flag), ``env`` the variable that gives it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class Type(enum.StrEnum):
    """What a value must be. ``SECONDS`` are plain integers, ``DURATION`` Go's notation or nanoseconds, ``SIZE`` bytes,
    plain or with a unit."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    OPTIONAL_BOOLEAN = "optional boolean"
    SECONDS = "seconds"
    DURATION = "duration"
    SIZE = "size"
    LIST = "list of strings"
    STRING_MAP = "table of strings"
    BOOLEAN_MAP = "table of booleans"
    LIST_MAP = "table of lists of strings"
    TEXT_OR_LIST = "string or list of strings"
    TABLES = "list of tables"
    DATETIME = "date and time"
    TABLE = "table"
    ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key. ``removed`` names the key that took its place; ``inner`` are the keys of a list of tables; ``ask`` is the
    question of ``register`` for a key that must have a value."""

    name: str
    type: Type
    flag: str = ""
    env: str = ""
    help: str = ""
    removed: str = ""
    inner: tuple[Key, ...] = ()
    ask: str = ""


def _key(name: str, kind: Type, env: str = "", help_: str = "", *, flag: str | None = None) -> Key:
    spelled = name.replace("_", "-") if flag is None else flag
    return Key(name=name, type=kind, flag=spelled, env=env, help=help_)


GLOBAL: tuple[Key, ...] = (
    Key(name="concurrent", type=Type.INTEGER),
    Key(name="check_interval", type=Type.SECONDS),
    Key(name="log_level", type=Type.STRING),
    Key(name="log_format", type=Type.STRING),
    Key(name="shutdown_timeout", type=Type.SECONDS),
    Key(name="listen_address", type=Type.STRING),
    Key(name="connection_max_age", type=Type.DURATION),
    Key(name="sentry_dsn", type=Type.STRING),
    Key(name="user", type=Type.STRING),
    Key(name="labels", type=Type.STRING_MAP),
    Key(name="session_server", type=Type.TABLE),
    Key(name="machine", type=Type.TABLE),
    Key(name="experimental", type=Type.TABLE),
    Key(name="pyrunner", type=Type.TABLE),
    Key(name="runners", type=Type.ANY),
)
PYRUNNER: tuple[Key, ...] = (
    Key(name="graceful_shutdown_timeout", type=Type.DURATION),
    Key(name="interrupted_failure_reason", type=Type.STRING),
    Key(name="control_socket", type=Type.STRING),
    Key(name="state_dir", type=Type.STRING),
    Key(name="shutdown_mode", type=Type.STRING),
    Key(name="system_id", type=Type.STRING),
    Key(name="pass_env", type=Type.LIST),
    Key(name="debug_endpoints", type=Type.BOOLEAN),
    Key(name="disk", type=Type.TABLE),
)
DISK: tuple[Key, ...] = tuple(
    Key(name=name, type=Type.SIZE)
    for name in ("min_free", "go", "caches", "workspaces", "volumes", "images", "records", "mirrors")
)
RUNNER_PYRUNNER: tuple[Key, ...] = (
    Key(name="shutdown_mode", type=Type.STRING),
    Key(name="token_file", type=Type.STRING),
    Key(name="job_user", type=Type.STRING),
    Key(name="kill_leftovers", type=Type.BOOLEAN),
    Key(name="term_grace", type=Type.DURATION),
    Key(name="job_costs", type=Type.BOOLEAN),
)
RUNNER: tuple[Key, ...] = (
    _key("name", Type.STRING, "RUNNER_NAME", "Runner name"),
    _key("url", Type.STRING, "CI_SERVER_URL", "GitLab instance URL"),
    _key("id", Type.INTEGER, flag=""),
    _key("token", Type.STRING, "CI_SERVER_TOKEN", "Runner authentication token"),
    _key("token_obtained_at", Type.DATETIME, flag=""),
    _key("token_expires_at", Type.DATETIME, flag=""),
    _key("tls-ca-file", Type.STRING, "CI_SERVER_TLS_CA_FILE", "CA certificates of the server, PEM"),
    _key("tls-cert-file", Type.STRING, "CI_SERVER_TLS_CERT_FILE", "Client certificate, PEM"),
    _key("tls-key-file", Type.STRING, "CI_SERVER_TLS_KEY_FILE", "Key of the client certificate, PEM"),
    _key("limit", Type.INTEGER, "RUNNER_LIMIT", "Most jobs at once with this token"),
    _key("output_limit", Type.INTEGER, "RUNNER_OUTPUT_LIMIT", "Largest job log, KiB"),
    _key("request_concurrency", Type.INTEGER, "RUNNER_REQUEST_CONCURRENCY", "Most job requests at once"),
    _key("strict_check_interval", Type.BOOLEAN, "RUNNER_STRICT_CHECK_INTERVAL", "Never ask again at once"),
    _key("unhealthy_requests_limit", Type.INTEGER, "RUNNER_UNHEALTHY_REQUESTS_LIMIT", "Refusals before a pause"),
    _key("unhealthy_interval", Type.DURATION, "RUNNER_UNHEALTHY_INTERVAL", "Length of that pause"),
    _key(
        "job_status_final_update_retry_limit",
        Type.INTEGER,
        "RUNNER_job_status_final_update_retry_limit",
        "Tries of the final update",
    ),
    _key("executor", Type.STRING, "RUNNER_EXECUTOR", "Executor"),
    _key("builds_dir", Type.STRING, "RUNNER_BUILDS_DIR", "Root of project directories"),
    _key("cache_dir", Type.STRING, "RUNNER_CACHE_DIR", "Root of local caches"),
    _key("clone_url", Type.STRING, "CLONE_URL", "Base URL of repositories"),
    _key("environment", Type.LIST, "RUNNER_ENV", "Variables of every job, KEY=VALUE", flag="env"),
    _key("shell", Type.STRING, "RUNNER_SHELL", "Shell of the scripts"),
    _key("pre_get_sources_script", Type.STRING, "RUNNER_PRE_GET_SOURCES_SCRIPT", "Commands before the sources"),
    _key("post_get_sources_script", Type.STRING, "RUNNER_POST_GET_SOURCES_SCRIPT", "Commands after the sources"),
    _key("pre_build_script", Type.STRING, "RUNNER_PRE_BUILD_SCRIPT", "Commands before every script"),
    _key("post_build_script", Type.STRING, "RUNNER_POST_BUILD_SCRIPT", "Commands after every script"),
    _key("prepare_timeout", Type.DURATION, "RUNNER_PREPARE_TIMEOUT", "Limit of the preparation"),
    _key("get_sources_timeout", Type.DURATION, "RUNNER_GET_SOURCES_TIMEOUT", "Limit of the sources"),
    _key("debug_trace_disabled", Type.BOOLEAN, "RUNNER_DEBUG_TRACE_DISABLED", "CI_DEBUG_TRACE has no effect"),
    _key("safe_directory_checkout", Type.OPTIONAL_BOOLEAN, "RUNNER_SAFE_DIRECTORY_CHECKOUT", "Set safe.directory"),
    _key("clean_git_config", Type.OPTIONAL_BOOLEAN, "RUNNER_CLEAN_GIT_CONFIG", "Make repositories safe before use"),
    _key("proxy_exec", Type.OPTIONAL_BOOLEAN, "RUNNER_PROXY_EXEC", "Experimental"),
    _key("use_slot_cgroups", Type.BOOLEAN, "RUNNER_USE_SLOT_CGROUPS", "Only with autoscaling"),
    _key("slot_cgroup_template", Type.STRING, "RUNNER_SLOT_CGROUP_TEMPLATE", "Only with autoscaling"),
    _key("step_runner_image", Type.STRING, "STEP_RUNNER_IMAGE", "Image of the step runner"),
    _key("labels", Type.STRING_MAP, flag=""),
    _key("feature_flags", Type.BOOLEAN_MAP, "FEATURE_FLAGS", "Feature flags, NAME:true"),
    _key("monitoring", Type.TABLE, flag=""),
    _key("referees", Type.TABLE, flag=""),
    _key("experimental", Type.TABLE, flag=""),
    _key("pyrunner", Type.TABLE, flag=""),
    Key(name="pre_clone_script", type=Type.ANY, removed="pre_get_sources_script"),
    Key(name="post_clone_script", type=Type.ANY, removed="post_get_sources_script"),
)
MONITORING: tuple[Key, ...] = (
    Key(
        name="job_queuing_durations",
        type=Type.TABLES,
        inner=(
            Key(name="periods", type=Type.LIST),
            Key(name="timezone", type=Type.STRING),
            Key(name="threshold", type=Type.DURATION),
            Key(name="jobs_running_for_project", type=Type.STRING),
        ),
    ),
)
CUSTOM_BUILD_DIR: tuple[Key, ...] = (
    Key(
        name="enabled",
        type=Type.OPTIONAL_BOOLEAN,
        flag="custom_build_dir-enabled",
        env="CUSTOM_BUILD_DIR_ENABLED",
        help="Allow GIT_CLONE_PATH",
    ),
)
ARTIFACT: tuple[Key, ...] = (
    Key(name="upload_timeout", type=Type.DURATION),
    Key(name="response_header_timeout", type=Type.DURATION),
)


def _cache_key(name: str, kind: Type, spelled: str, help_: str, *, flag: str = "", env: str = "") -> Key:
    """A key of ``[runners.cache]``; ``spelled`` is its name in small letters with hyphens, below its table."""
    upper = f"CACHE_{spelled}".upper().replace("-", "_")
    return Key(name=name, type=kind, flag=f"cache-{flag or spelled}", env=env or upper, help=help_)


CACHE: tuple[Key, ...] = (
    _cache_key("Type", Type.STRING, "type", "Remote cache: s3, gcs or azure"),
    _cache_key("Path", Type.STRING, "path", "Prefix of the names of objects"),
    _cache_key("Shared", Type.BOOLEAN, "shared", "Share the remote cache with other runners"),
    _cache_key(
        "MaxUploadedArchiveSize",
        Type.INTEGER,
        "maximum-uploaded-archive-size",
        "Largest archive that is uploaded, bytes",
        flag="max_uploaded_archive_size",
    ),
    Key(name="RedactURL", type=Type.BOOLEAN),
    Key(name="s3", type=Type.TABLE),
    Key(name="gcs", type=Type.TABLE),
    Key(name="azure", type=Type.TABLE),
)
CACHE_S3: tuple[Key, ...] = (
    _cache_key("ServerAddress", Type.STRING, "s3-server-address", "Host and port of an S3 server"),
    _cache_key("AccessKey", Type.STRING, "s3-access-key", "Access key"),
    _cache_key("SecretKey", Type.STRING, "s3-secret-key", "Secret key"),
    _cache_key("SessionToken", Type.STRING, "s3-session-token", "Session token"),
    _cache_key("BucketName", Type.STRING, "s3-bucket-name", "Bucket"),
    _cache_key("BucketLocation", Type.STRING, "s3-bucket-location", "Region of the bucket"),
    _cache_key("Insecure", Type.BOOLEAN, "s3-insecure", "Plain HTTP"),
    _cache_key(
        "AuthenticationType",
        Type.STRING,
        "s3-authentication-type",
        "access-key or iam",
        flag="s3-authentication_type",
    ),
    _cache_key("ServerSideEncryption", Type.STRING, "s3-server-side-encryption", "S3, KMS or DSSE-KMS"),
    _cache_key("ServerSideEncryptionKeyID", Type.STRING, "s3-server-side-encryption-key-id", "Key of the encryption"),
    _cache_key("DualStack", Type.OPTIONAL_BOOLEAN, "s3-dual-stack", "Endpoints of Amazon with IPv6"),
    _cache_key("PathStyle", Type.OPTIONAL_BOOLEAN, "s3-path-style", "The bucket is named in the path"),
    _cache_key("Accelerate", Type.BOOLEAN, "s3-accelerate", "Transfer acceleration of Amazon"),
    _cache_key("RoleARN", Type.STRING, "s3-role-arn", "Role that is assumed for transfers"),
    _cache_key("UploadRoleARN", Type.STRING, "s3-upload-role-arn", "Role that is assumed for uploads (deprecated)"),
    _cache_key("AssumeRoleMaxConcurrency", Type.INTEGER, "s3-assume-role-max-concurrency", "No effect: one request a job"),
    _cache_key(
        "DisableAssumeRoleCredentialsCaching",
        Type.BOOLEAN,
        "s3-disable-assume-role-credentials-caching",
        "No effect: credentials of a role are not kept",
    ),
)
CACHE_GCS: tuple[Key, ...] = (
    _cache_key("AccessID", Type.STRING, "gcs-access-id", "Service account"),
    _cache_key("PrivateKey", Type.STRING, "gcs-private-key", "Its private key, PEM"),
    _cache_key(
        "CredentialsFile",
        Type.STRING,
        "gcs-credentials-file",
        "File with the credentials of a service account",
        env="GOOGLE_APPLICATION_CREDENTIALS",
    ),
    _cache_key("BucketName", Type.STRING, "gcs-bucket-name", "Bucket"),
    _cache_key("UniverseDomain", Type.STRING, "gcs-universe-domain", "Domain of the cloud"),
)
CACHE_AZURE: tuple[Key, ...] = (
    _cache_key("AccountName", Type.STRING, "azure-account-name", "Storage account"),
    _cache_key("AccountKey", Type.STRING, "azure-account-key", "Its key"),
    _cache_key("ContainerName", Type.STRING, "azure-container-name", "Container"),
    _cache_key("StorageDomain", Type.STRING, "azure-storage-domain", "Domain of the storage"),
)
GO: tuple[Key, ...] = (
    Key(name="enabled", type=Type.BOOLEAN),
    Key(name="scope", type=Type.STRING),
    Key(name="protected", type=Type.STRING),
    Key(name="proxy", type=Type.STRING),
    Key(name="max_size", type=Type.STRING),
)
# Tables whose keys other parts read (or will); here they only have to be known.
OPEN_TABLES = frozenset(
    {
        "docker",
        "custom",
        "ssh",
        "kubernetes",
        "parallels",
        "virtualbox",
        "instance",
        "machine",
        "autoscaler",
    }
)
GIT: tuple[Key, ...] = (Key(name="mirror", type=Type.BOOLEAN),)
SUB_TABLES: Mapping[str, tuple[Key, ...]] = {
    "git": GIT,
    "custom_build_dir": CUSTOM_BUILD_DIR,
    "cache": CACHE,
    "artifact": ARTIFACT,
    "go": GO,
    "pyrunner": RUNNER_PYRUNNER,
}
# Tables in tables, by their dotted names.
INNER_TABLES: Mapping[str, tuple[Key, ...]] = {"cache.s3": CACHE_S3, "cache.gcs": CACHE_GCS, "cache.azure": CACHE_AZURE}
LATER_EXECUTORS = ("kubernetes", "ssh")
REFUSED_EXECUTORS = (
    "docker+machine",
    "docker-autoscaler",
    "instance",
    "parallels",
    "virtualbox",
    "docker-windows",
)
LOG_LEVELS = ("panic", "fatal", "error", "warn", "warning", "info", "debug", "trace")
LOG_FORMATS = ("runner", "text", "json")
