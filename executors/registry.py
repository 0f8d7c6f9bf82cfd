"""Which executors there are: the one list that configuration, daemon, help and contract tests read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors.base import Executor
from executors.disk import Trees
from executors.tables import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSettings:
    """Facts of this daemon that executors need. ``pass_env`` are globs of environment variables that jobs inherit;
    ``state_dir`` is the daemon's; ``hidden_env`` names, when asked, the variables that never reach a job; ``records`` are the
    directories of all jobs that there are, whoever follows them; ``trees`` looks after directories, where anybody does."""

    state_dir: str
    pass_env: tuple[str, ...] = ()
    hidden_env: Callable[[], frozenset[str]] = frozenset
    records: Callable[[], Sequence[Path]] = list
    environment: Mapping[str, str] = field(default_factory=dict)
    trees: Trees | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """An executor as the configuration names it.

    ``table`` is its sub-table of ``[[runners]]`` (None: it has none), ``config`` imports the type that the table is read
    into, ``load`` imports and builds the executor on first use.
    ``shells`` are the names that ``shell =`` may have, the first one the default. ``features`` are the keys of the
    runner info that this executor adds. ``shared`` tells that jobs share this host, ``shares_builds`` that the builds
    directory is shared between jobs where the place itself says nothing else. ``in_containers`` tells that paths are those of
    containers, whose shell is found there, and that an exit status is called exit code. ``is_scripted``: jobs get scripts
    and nothing else (:class:`executors.base.ScriptedPlace`).
    """

    name: str
    title: str
    load: Callable[[HostSettings], Executor]
    table: str | None = None
    config: Callable[[], type[Table]] | None = None
    shells: tuple[str, ...] = ("bash", "sh")
    shared: bool = True
    in_containers: bool = False
    shares_builds: bool = True
    is_scripted: bool = False
    custom_build_dir: bool = False
    safe_directory: bool = False
    features: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)


def _shell(host: HostSettings) -> Executor:
    from executors.shell import ShellExecutor

    return ShellExecutor(host)


def _docker(host: HostSettings) -> Executor:
    from executors.docker.executor import DockerExecutor

    return DockerExecutor(host)


def _docker_config() -> type[Table]:
    from executors.docker.config import DockerConfig

    return DockerConfig


def _custom(host: HostSettings) -> Executor:
    from executors.custom.environment import CustomExecutor

    return CustomExecutor(host)


def _custom_config() -> type[Table]:
    from executors.custom.config import CustomConfig

    return CustomConfig


KINDS: Mapping[str, Kind] = {
    "shell": Kind(
        name="shell",
        title="Shell",
        load=_shell,
        features=frozenset({"variables", "shared"}),
    ),
    "docker": Kind(
        name="docker",
        title="Docker",
        load=_docker,
        table="docker",
        config=_docker_config,
        shared=False,
        shares_builds=False,
        in_containers=True,
        custom_build_dir=True,
        safe_directory=True,
        features=frozenset(
            {
                "variables",
                "image",
                "services",
                "service_variables",
                "service_multiple_aliases",
                "image_executor_opts",
                "service_executor_opts",
            }
        ),
    ),
    "custom": Kind(
        name="custom",
        title="Custom",
        load=_custom,
        table="custom",
        config=_custom_config,
        shares_builds=False,
        is_scripted=True,
        features=frozenset({"variables", "shared", "service_variables"}),
    ),
}
