"""Which configuration file counts (``config-cli-daemon.md`` 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """``is_fallback``: the file is GitLab Runner's, since there is none of our own."""

    path: Path
    is_fallback: bool = False


def find_config(flag: str | None, environ: Mapping[str, str], *, is_root: bool) -> Location:
    """Flag, then environment, then the default; GitLab Runner's file where only that exists."""
    for chosen in (flag, environ.get("PYRUNNER_CONFIG_FILE"), environ.get("CONFIG_FILE")):
        if chosen:
            return Location(path=Path(chosen))
    if is_root:
        own, other = Path("/etc/pyrunner/config.toml"), Path("/etc/gitlab-runner/config.toml")
    else:
        home = environ.get("HOME")
        if not home:
            return Location(path=Path("config.toml"))
        own, other = Path(home, ".pyrunner", "config.toml"), Path(home, ".gitlab-runner", "config.toml")
    if not own.exists() and other.exists():
        return Location(path=other, is_fallback=True)
    return Location(path=own)
