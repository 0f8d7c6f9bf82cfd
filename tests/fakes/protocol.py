"""What the protocol asks of a runner beyond what the server checks, and what a job asks of a runner."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from tests.fakes.job import Job

LARGEST_PATCH_BYTES = 1 << 20
FEATURES = frozenset(
    [
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
    ]
)


def patch_violations(request: web.Request, content: bytes) -> list[str]:
    """``runner-api.md`` 6: the server looks at the first number of the range only."""
    found = []
    spread = re.fullmatch(r"(\d+)-(\d+)", request.headers["Content-Range"])
    if spread is None or int(spread[2]) - int(spread[1]) + 1 != len(content):
        found.append(f"Content-Range {request.headers['Content-Range']} over {len(content)} bytes")
    if not 1 <= len(content) <= LARGEST_PATCH_BYTES:
        found.append(f"a patch of {len(content)} bytes")
    if request.headers.get("Content-Type") != "text/plain":
        found.append(f"a patch of type {request.headers.get('Content-Type')}")
    if request.query_string not in ("debug_trace=true", "debug_trace=false"):
        found.append(f"a patch with the query {request.query_string!r}")
    return found


def update_violations(job: Job, body: dict[str, Any]) -> list[str]:
    """``runner-api.md`` 5.1, 3.6: shape of an update, which the server takes as it is."""
    found = []
    features = (body.get("info") or {}).get("features") or {}
    if set(features) != FEATURES:
        found.append(f"features of an update: {sorted(set(features) ^ FEATURES)}")
    output = body.get("output")
    if not isinstance(output, dict):
        return [*found, f"an update with the output {output!r}"]
    checksum = output.get("checksum")
    if checksum is None and (output or body["state"] != "running"):
        found.append(f"an update without checksum: {output}")
    if checksum is not None and not re.fullmatch(r"crc32:[0-9a-f]{8}", checksum):
        found.append(f"the checksum {checksum}")
    if body.get("checksum") != checksum:
        found.append(f"the checksums {checksum} and {body.get('checksum')} in one update")
    if ("failure_reason" in body) != (body["state"] == "failed"):
        found.append(f"state {body['state']} with the reason {body.get('failure_reason')}")
    if body.get("exit_code") == 0:
        found.append("exit_code 0, which is left out")
    return found


def unmet_needs(payload: dict[str, Any], features: dict[str, bool]) -> set[str]:
    """Features a job needs of its runner and does not find (``runner-api.md`` 3.3, column "Gate")."""
    artifacts, steps = payload.get("artifacts") or [], payload.get("steps") or []
    needs = {
        "fallback_cache_keys": any(cache.get("fallback_keys") for cache in payload.get("cache") or []),
        "upload_multiple_artifacts": len(artifacts) > 1,
        "refspecs": "merge-requests" in str((payload.get("git_info") or {}).get("refspecs")),
        "artifacts_exclude": any(entry.get("exclude") for entry in artifacts),
        "multi_build_steps": isinstance(steps, list) and len([step for step in steps if step["name"] != "after_script"]) > 1,
        "vault_secrets": bool(payload.get("secrets")),
    }
    return {name for name, needed in needs.items() if needed and not features.get(name)}
