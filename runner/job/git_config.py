"""Configuration files that the runner gives to git: the template of a repository, and what must stay outside of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

USER = "gitlab-ci-token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """Where sources come from. ``clean_url`` carries no credentials; ``url`` does, where it is HTTP."""

    clean_url: str
    url: str
    host_base: str


def remote_of(repo_url: str, *, token: str, clone_url: str, project_path: str) -> Remote:
    """The remote of a job (``job-lifecycle.md`` 11.5)."""
    if clone_url:
        base = urlsplit(clone_url.rstrip("/"))
        address = f"{base.path}/{project_path}.git"
        if base.scheme == "ssh":
            url = urlunsplit((base.scheme, f"git@{_host(base.netloc)}", address, "", ""))
            return Remote(clean_url=url, url=url, host_base="")
        clean = urlunsplit((base.scheme, _host(base.netloc), address, "", ""))
        return Remote(clean_url=clean, url=with_credentials(clean, token), host_base=_base(clean))
    parts = urlsplit(repo_url)
    if parts.scheme not in ("http", "https"):
        return Remote(clean_url=repo_url, url=repo_url, host_base="")
    clean = urlunsplit((parts.scheme, _host(parts.netloc), parts.path, parts.query, ""))
    return Remote(clean_url=clean, url=repo_url, host_base=_base(clean))


def with_credentials(url: str, token: str) -> str:
    """The URL with the job's login in it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return url
    login = f"{USER}:{quote(token, safe='')}@{_host(parts.netloc)}"
    return urlunsplit((parts.scheme, login, parts.path, parts.query, ""))


def external_config(
    remote: Remote,
    *,
    token: str,
    bases: Iterable[str],
    correlation_id: str,
    bundle_uris: bool,
    tls: Mapping[str, str],
) -> bytes:
    """What holds the job's credentials while it runs. ``tls`` maps ``sslCAInfo`` and the like to paths."""
    lines: list[str] = []
    if correlation_id:
        lines += ["[http]", f"\textraHeader = {_value(f'X-Gitaly-Correlation-ID: {correlation_id}')}"]
    if bundle_uris:
        lines += ["[transfer]", "\tbundleURI = true"]
    if tls and remote.host_base:
        lines.append(f'[http "{_name(remote.host_base)}"]')
        lines += [f"\t{key} = {_value(path)}" for key, path in tls.items()]
    rewrites: dict[str, str] = {}
    if remote.url != remote.clean_url:
        rewrites[remote.clean_url] = remote.url
    for base in (*bases, remote.host_base):
        plain = base.rstrip("/")
        if plain.startswith(("http://", "https://")):
            rewrites.setdefault(plain, with_credentials(plain, token))
    for plain, secret in rewrites.items():
        lines += [f'[url "{_name(secret)}"]', f"\tinsteadOf = {_value(plain)}"]
    return ("\n".join(lines) + "\n").encode()


def template_config(remote: Remote, external: str) -> bytes:
    """The configuration of a repository that the runner makes."""
    lines = [
        "[init]",
        "\tdefaultBranch = none",
        "[fetch]",
        "\trecurseSubmodules = false",
        "[credential]",
        "\tinteractive = never",
        "[gc]",
        "\tautoDetach = false",
        "[include]",
        f"\tpath = {_value(external)}",
        '[remote "origin"]',
        f"\turl = {_value(remote.clean_url)}",
        "\tfetch = +refs/heads/*:refs/remotes/origin/*",
    ]
    return ("\n".join(lines) + "\n").encode()


def _value(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _name(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "")


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _base(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
