"""Where artifacts come from: an in-toto statement with SLSA provenance (``job-lifecycle.md`` 13.6). Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from runner.identity import NAME, REVISION, VERSION, architecture

STATEMENT = "https://in-toto.io/Statement/v0.1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://gitlab.com/gitlab-org/gitlab-runner/-/blob/{revision}/PROVENANCE.md"
KNOWN_VERSION = "v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The facts of a job. ``variables`` are the names of its variables; ``started_s`` and ``ended_s`` Unix seconds."""

    project_url: str
    sha: str
    runner_id: str
    runner_name: str
    executor: str
    job_id: int
    job_name: str
    variables: Sequence[str]
    started_s: float
    ended_s: float


def statement(subjects: Iterable[tuple[str, str]], facts: Provenance) -> bytes:
    """The statement about files: (path, SHA-256 in hex) each."""
    revision = REVISION if REVISION != "HEAD" else VERSION
    parameters: dict[str, str] = dict.fromkeys(sorted(facts.variables), "")
    parameters |= {"entryPoint": facts.job_name, "source": facts.project_url}
    found: Mapping[str, Any] = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE.format(revision=revision),
                "externalParameters": parameters,
                "internalParameters": {
                    "architecture": architecture(),
                    "executor": facts.executor,
                    "job": str(facts.job_id),
                    "name": facts.runner_name,
                },
                "resolvedDependencies": [{"uri": facts.project_url, "digest": {"sha256": facts.sha}}],
            },
            "runDetails": {
                "builder": {
                    "id": f"{facts.project_url}/-/runners/{facts.runner_id}",
                    "version": {NAME: revision},
                },
                "metadata": {
                    "invocationId": str(facts.job_id),
                    "startedOn": utc(facts.started_s),
                    "finishedOn": utc(facts.ended_s),
                },
            },
        },
    }
    return msgspec.json.format(msgspec.json.encode(found), indent=1)


def utc(unix_s: float) -> str:
    """A time in the form of RFC 3339."""
    return datetime.datetime.fromtimestamp(int(unix_s), tz=datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
