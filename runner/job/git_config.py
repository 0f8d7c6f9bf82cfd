"""Configuration files that the runner gives to git: the template of a repository, and what must stay outside of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit, urlunsplit

USER = "gitlab-ci-token"
# Constant: the token is a variable of whoever runs git, and stands in no file.
HELPER = '!f() { test "$1" = get && printf "password=%s\\n" "$CI_JOB_TOKEN"; }; f'

# What a file may say without quotes.
_PLAIN = re.compile(r"[^\s\"\\#;][^\n\t\"\\#;]*[^\s\"\\#;]|[^\s\"\\#;]")


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


def ssh_rewrites(host: str, port: str, base: str) -> dict[str, str]:
    """What stands in for addresses of the server over SSH (``GIT_SUBMODULE_FORCE_HTTPS``)."""
    base = base.rstrip("/")
    if not host or not base.startswith(("http://", "https://")):
        return {}
    if port not in ("", "22"):
        return {f"ssh://git@{host}:{port}": base}
    return {f"git@{host}:": f"{base}/", f"ssh://git@{host}": base}


def external_config(
    remote: Remote,
    *,
    token: str | None,
    bases: Iterable[str],
    correlation_id: str,
    bundle_uris: bool,
    tls: Mapping[str, str],
    rewrites: Mapping[str, str],
) -> bytes:
    """What holds the job's credentials while it runs. ``tls`` maps ``sslCAInfo`` and the like to paths, ``rewrites`` what
    other addresses begin with to the bases that stand in for it.

    Without a token a helper answers with the variable of the job that has it.
    """
    lines: list[str] = []
    if correlation_id:
        lines += ["[http]", f"\textraHeader = {_value(f'X-Gitaly-Correlation-ID: {correlation_id}')}"]
    if bundle_uris:
        lines += ["[transfer]", "\tbundleURI = true"]
    if tls and remote.host_base:
        lines.append(f'[http "{_name(remote.host_base)}"]')
        lines += [f"\t{key} = {_value(path)}" for key, path in tls.items()]
    web = [base for base in (*bases, remote.host_base) if base.startswith(("http://", "https://"))]
    found: dict[str, str] = {}
    if token is None:
        lines += helper_lines(web)
        found |= rewrites
    else:
        if remote.url != remote.clean_url:
            found[remote.clean_url] = remote.url
        for base in web:
            found.setdefault(base.rstrip("/"), with_credentials(base.rstrip("/"), token))
        for other, base in rewrites.items():
            found.setdefault(other, with_credentials(base, token))
    for target in dict.fromkeys(found.values()):
        lines.append(f'[url "{_name(target)}"]')
        lines += [f"\tinsteadOf = {_value(plain)}" for plain, other in found.items() if other == target]
    return ("\n".join(lines) + "\n").encode()


def helper_settings(bases: Iterable[str]) -> list[tuple[str, str]]:
    """Settings by which git asks for logins at these addresses: nobody but the job's own variable."""
    hosts = dict.fromkeys(_base(base) for base in bases)
    return [(f"credential.{host}.{key}", value) for host in hosts for key, value in (("username", USER), ("helper", HELPER))]


def helper_lines(bases: Iterable[str]) -> list[str]:
    """The same for a file; helpers of others are forgotten."""
    lines = ["[credential]", "\thelper ="]
    for name, value in helper_settings(bases):
        section, _, key = name.removeprefix("credential.").rpartition(".")
        lines += [f'[credential "{_name(section)}"]', f"\t{key} = {_value(value)}"]
    return lines


def seed_config(external: str) -> bytes:
    """What takes the place of the user's own configuration of git, and includes it."""
    return f"[include]\n\tpath = ~/.config/git/config\n\tpath = ~/.gitconfig\n\tpath = {_value(external)}\n".encode()


def template_config(remote: Remote | None, external: str) -> bytes:
    """The configuration of a repository that the runner makes; without a remote where git adds its own."""
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
    ]
    if remote is not None:
        lines += [
            '[remote "origin"]',
            f"\turl = {_value(remote.clean_url)}",
            "\tfetch = +refs/heads/*:refs/remotes/origin/*",
        ]
    return ("\n".join(lines) + "\n").encode()


def _value(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _name(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "")


def _host(netloc: str) -> str:
    return netloc.rpartition("@")[2]


def _base(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
