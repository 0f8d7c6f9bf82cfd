"""The volumes of a job: what ``volumes`` asks for, which ones are made, and what goes with the job
(``docker-executor.md`` 4)."""

from __future__ import annotations

import asyncio
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from executors.docker.names import LABELS, Names, path_hash, suffix
from executors.errors import InvalidSpec, PrepareError

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.config import DockerConfig

log = structlog.get_logger()

KEEPS_ANONYMOUS = "volume_keep is enabled: Docker volumes will not be removed after job completion and may accumulate on disk"
_CHARACTERS = r"[^\\:*?\"<>|\r\n]"
_ENTRY = re.compile(
    rf"(?:(?P<source>/{_CHARACTERS}*|[^/\\:*?\"<>|\r\n]+):)?"
    rf"(?P<destination>/{_CHARACTERS}*)"
    r"(?::(?P<mode>ro|rw|O))?(?:[:,](?P<label>[zZ]))?(?:[:,](?P<propagation>r?(?:shared|slave|private)))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One of ``volumes``. ``source`` is a path of the host or the name of a volume, empty for a path alone."""

    source: str
    destination: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """Something that is mounted at ``destination``. A ``name`` means that it is a volume of the runner's, which is made
    for the job; ``reusable`` that it is the runner's, and the next job of the slot gets it too."""

    source: str
    destination: str
    options: tuple[str, ...] = ()
    name: str = ""
    reusable: bool = False

    @property
    def bind(self) -> str:
        """As the engine's ``Binds`` take it."""
        parts = [self.source, self.destination, ",".join(self.options)]
        return ":".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Volumes:
    """The mounts of a job, in order. ``protected`` is a label of the volumes that are made."""

    mounts: tuple[Mount, ...]
    protected: bool

    @property
    def binds(self) -> tuple[str, ...]:
        """What every container of the job gets."""
        return tuple(mount.bind for mount in self.mounts)

    def binds_without_copy(self, place: str) -> tuple[str, ...]:
        """The same, where a volume that the runner makes at ``place`` gets nothing of the image's."""
        return tuple(f"{mount.bind}:nocopy" if mount.name and mount.destination == place else mount.bind for mount in self.mounts)

    @property
    def made(self) -> tuple[Mount, ...]:
        """The volumes that the runner makes."""
        return tuple(mount for mount in self.mounts if mount.name)

    @property
    def open_to_all(self) -> tuple[str, ...]:
        """Paths whose root any user of the container may write to: they get mode 0777 before the job begins."""
        return tuple(mount.destination for mount in self.made)

    @property
    def temporary(self) -> tuple[str, ...]:
        """Names of the volumes that go with the job."""
        return tuple(mount.name for mount in self.made if not mount.reusable)

    @property
    def kept(self) -> tuple[str, ...]:
        """Names of the volumes that stay for the next job."""
        return tuple(mount.name for mount in self.made if mount.reusable)

    @property
    def kept_directories(self) -> tuple[str, ...]:
        """Directories of the engine's host that do."""
        return tuple(mount.source for mount in self.mounts if mount.reusable and not mount.name)


def parse_entry(text: str) -> Entry:
    """One of ``volumes``. Raises :class:`InvalidSpec`."""
    match = _ENTRY.fullmatch(text)
    if match is None:
        raise InvalidSpec(f'invalid volume specification: "{text}"')
    options = (match["mode"], match["label"], match["propagation"])
    return Entry(
        source=match["source"] or "",
        destination=match["destination"],
        options=tuple(option for option in options if option),
    )


def shares_builds(volumes: Iterable[str], builds_dir: str) -> bool:
    """Whether the directory of builds lies on the host or in a volume that slots share (4.4)."""
    builds = posixpath.normpath(builds_dir)
    for text in volumes:
        match = _ENTRY.fullmatch(text)
        if match is None or not match["source"]:
            continue
        above = posixpath.normpath(match["destination"])
        if builds == above or builds.startswith(above.rstrip("/") + "/"):
            return True
    return False


def is_protected(*, ref: bool, cache_keys: Iterable[str]) -> bool:
    """Whether a job uses the volumes of protected refs: ``ref`` is, or a key of its caches says so (4.2)."""
    return ref or any(key.endswith("-protected") and not key.endswith("-non_protected") for key in cache_keys)


def plan_volumes(
    table: DockerConfig,
    names: Names,
    *,
    expand: Callable[[str], str],
    builds_dir: str,
    keeps_builds: bool,
    protected: bool,
) -> Volumes:
    """What the job's containers mount: ``volumes`` in their order, then the directory of builds.

    ``expand`` replaces the job's variables, in destinations only; ``keeps_builds`` tells that sources are fetched into
    what the last job of the slot left. Raises :class:`InvalidSpec` for an entry that cannot be read and
    :class:`PrepareError` for one that cannot be used.
    """
    plan = _Plan(table, names, protected=protected)
    for entry in [parse_entry(text) for text in table.volumes]:
        plan.add(entry, expand(entry.destination))
    plan.add_builds(builds_dir, keeps=keeps_builds)
    return Volumes(mounts=tuple(plan.mounts.values()), protected=protected)


class _Plan:
    """Mounts by their cleaned destination."""

    def __init__(self, table: DockerConfig, names: Names, *, protected: bool) -> None:
        self._table = table
        self._names = names
        self._protected = protected
        self.mounts: dict[str, Mount] = {}

    def add(self, entry: Entry, destination: str) -> None:
        what = "adding host volume" if entry.source else "adding cache volume"
        path = _absolute(destination, what)
        if path in self.mounts:
            text = f'updating managed volumes list: volume for container path "{path}" is already defined'
            raise PrepareError(f"{what}: {text}")
        if entry.source:
            self.mounts[path] = Mount(source=entry.source, destination=path, options=entry.options)
        else:
            self._add_store(path, keeps=True)

    def add_builds(self, builds_dir: str, *, keeps: bool) -> None:
        path = _absolute(builds_dir, "adding build directory")
        if path not in self.mounts:
            self._add_store(path, keeps=keeps)

    def _add_store(self, path: str, *, keeps: bool) -> None:
        protected = self._protected
        if not keeps or self._table.disable_cache:
            name = self._names.job_volume(path, protected=protected)
            self.mounts[path] = Mount(source=name, destination=path, name=name)
        elif self._table.cache_dir:
            source = f"{self._table.cache_dir.rstrip('/')}/runner-{self._names.store}/{path_hash(path)}"
            self.mounts[path] = Mount(source=source + suffix(protected=protected), destination=path, reusable=True)
        else:
            name = self._names.kept_volume(path, protected=protected)
            self.mounts[path] = Mount(source=name, destination=path, name=name, reusable=True)


def _absolute(path: str, what: str) -> str:
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    if cleaned == "/":
        raise PrepareError(f"{what}: defining absolute path: build directory needs to be a non-root path")
    return cleaned


async def create_volumes(engine: Engine, volumes: Volumes, table: DockerConfig, labels: Mapping[str, str]) -> None:
    """Make the job's volumes; those that are there already stay as they are, with their first labels.

    Raises :class:`PrepareError`.
    """
    await asyncio.gather(*(_create(engine, mount, volumes, table, labels) for mount in volumes.made))


async def _create(engine: Engine, mount: Mount, volumes: Volumes, table: DockerConfig, labels: Mapping[str, str]) -> None:
    own = {
        "type": "cache",
        "destination": mount.destination,
        "protected": "true" if volumes.protected else "false",
        "reusable": "true" if mount.reusable else "false",
    }
    marked = {**labels, **{f"{LABELS}{name}": value for name, value in own.items()}}
    driver = table.volume_driver or "local"
    options = dict(table.volume_driver_ops) or None
    try:
        await engine.call(lambda client: client.create_volume(mount.name, driver, options, marked))
    except PrepareError as error:
        raise PrepareError(f"adding cache volume: creating docker volume: {error}") from error


async def remove_volumes(engine: Engine, names: Sequence[str]) -> None:
    """Remove volumes that went with a job; those that are gone are fine, other problems are logged."""
    for outcome in await asyncio.gather(*(_remove(engine, name) for name in names), return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, PrepareError):
            raise outcome


async def _remove(engine: Engine, name: str) -> None:
    from executors.docker.errors import NotFound

    try:
        await engine.call(lambda client: client.remove_volume(name, force=True))
    except NotFound:
        pass
    except PrepareError as error:
        log.warning("volume could not be removed", volume=name, error=str(error))
