"""What the git work of a job wants of the mirror of its repository."""

from __future__ import annotations

from pathlib import Path

from executors.file_operations import write_private
from runner.job.git_config import external_config
from runner.job.plan import JobPlan
from runner.mirrors.repository import Access
from runner.mirrors.store import Wanted

FETCH_S = 3600.0
TLS = {"sslCAInfo": "ca_chain", "sslCert": "client_cert", "sslKey": "client_key"}


def wanted(plan: JobPlan) -> Wanted | None:
    """None where there is nothing that could be mirrored: no git work, or a repository that is not reached over HTTP."""
    sources = plan.sources()
    remote = sources.remote
    if not sources.uses_git or not remote.clean_url.startswith(("http://", "https://")):
        return None
    config = external_config(
        remote,
        token=sources.token,
        bases=sources.bases,
        correlation_id="",
        bundle_uris=False,
        tls=_tls_files(plan),
        rewrites={},
    )
    return Wanted(
        access=Access(url=remote.clean_url, config=config, secret=sources.token),
        credentials=plan.record.directory / "mirror.conf",
        sha=sources.git.sha,
        object_format=sources.git.repo_object_format,
        limit_s=plan.runner.get_sources_timeout_s or FETCH_S,
    )


def _tls_files(plan: JobPlan) -> dict[str, str]:
    """The files of the job's place are the job's to write: git of the daemon's user gets its own, in the record."""
    found: dict[str, str] = {}
    for key, name in TLS.items():
        text: str = getattr(plan.record.accepted, name)
        if text:
            path: Path = plan.record.directory / f"mirror-{name}.pem"
            write_private(str(path), text.encode())
            found[key] = str(path)
    return found
