"""What a runner says of itself with every request (``runner-api.md`` 3.2, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from executors.registry import Kind
from runner.identity import NAME, REVISION, VERSION, architecture, os_name

# In the order of the wire.
FEATURES = (
    "variables",
    "image",
    "services",
    "artifacts",
    "cache",
    "fallback_cache_keys",
    "shared",
    "upload_multiple_artifacts",
    "upload_raw_artifacts",
    "session",
    "terminal",
    "refspecs",
    "masking",
    "proxy",
    "raw_variables",
    "artifacts_exclude",
    "multi_build_steps",
    "trace_reset",
    "trace_checksum",
    "trace_size",
    "vault_secrets",
    "cancelable",
    "return_exit_code",
    "service_variables",
    "service_multiple_aliases",
    "image_executor_opts",
    "service_executor_opts",
    "cancel_gracefully",
    "native_steps_integration",
    "two_phase_job_commit",
    "job_inputs",
)
# What the client does for every runner, and what job scripts can do on every executor. The server withholds jobs that
# need what is not listed here.
IMPLEMENTED = frozenset(
    {
        "trace_reset",
        "trace_checksum",
        "trace_size",
        "cancelable",
        "cancel_gracefully",
        "two_phase_job_commit",
        "refspecs",
        "masking",
        "raw_variables",
        "multi_build_steps",
        "return_exit_code",
        "job_inputs",
        "artifacts",
        "artifacts_exclude",
        "upload_multiple_artifacts",
        "upload_raw_artifacts",
        "cache",
        "fallback_cache_keys",
        "vault_secrets",
    }
)
CLIENT_ONLY = frozenset(
    {
        "trace_reset",
        "trace_checksum",
        "trace_size",
        "cancelable",
        "cancel_gracefully",
        "two_phase_job_commit",
        "job_inputs",
    }
)


def runner_info(kind: Kind | None, *, shell: str = "", labels: Mapping[str, str] | None = None, gpus: str = "") -> dict[str, Any]:
    """The ``info`` object of a runner; without ``kind`` that of a runner that is being registered."""
    known = IMPLEMENTED | kind.features if kind is not None else IMPLEMENTED & CLIENT_ONLY
    info: dict[str, Any] = {
        "name": NAME,
        "version": VERSION,
        "revision": REVISION,
        "platform": os_name(),
        "architecture": architecture(),
    }
    if kind is not None:
        info["executor"] = kind.name
        info["shell"] = shell or kind.shells[0]
    info["features"] = {feature: feature in known for feature in FEATURES}
    info["config"] = {"gpus": gpus}
    if labels:
        info["labels"] = dict(labels)
    return info
