"""URLs of servers: their parts, and how they may be shown."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit, urlunsplit

from runner.errors import CoordinatorError


def server_url(url: str) -> SplitResult:
    """The URL of a server in its parts. Raises :class:`CoordinatorError`, which says why nothing can be asked there."""
    try:
        parts = urlsplit(url.strip())
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise CoordinatorError(f"{safe_url(url)!r} is not a URL: {error}") from error
    if not is_usable:
        raise CoordinatorError(f"only http and https URLs with a host can be used, not {safe_url(url)!r}")
    return parts


def root_path(parts: SplitResult) -> str:
    """The path of a GitLab: without a slash at its end and the ``/ci`` of old configurations."""
    return parts.path.rstrip("/").removesuffix("/ci").rstrip("/")


def is_same_server(one: str, other: str) -> bool:
    """Whether two URLs of the configuration lead to the same GitLab."""
    try:
        a, b = server_url(one), server_url(other)
    except CoordinatorError:
        return one == other
    return (a.scheme, a.netloc.lower(), root_path(a)) == (b.scheme, b.netloc.lower(), root_path(b))


def safe_url(url: str) -> str:
    """A URL without credentials and query."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return re.sub(r"//[^/]*@", "//", url.partition("?")[0])
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
