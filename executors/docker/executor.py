"""The Docker executor of a daemon: engines, and what its jobs share (``docker-executor.md``)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from executors.base import Environment, JobSpec, Sharing
from executors.disk import DiskKind
from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.connection import Connection
from executors.docker.disk import ELSEWHERE, OnEngines
from executors.docker.environment import DockerEnvironment
from executors.docker.errors import EngineUnreachable
from executors.docker.helper_image import HelperImages
from executors.docker.images import Pulls
from executors.docker.journal import Journal
from executors.docker.kept_directories import KeptDirectories
from executors.docker.kept_images import KeptImages
from executors.docker.kept_volumes import KeptVolumes
from executors.docker.ledger import Ledger
from executors.docker.shared import check_host, check_sharing, reaches_host
from executors.docker.shelf import Shelf
from executors.docker.sweep import remove_all, sweep
from executors.docker.uses import JobUses, key_of, used_by
from executors.errors import ExecutorError, PrepareError
from executors.file_operations import write_private
from executors.registry import HostSettings

log = structlog.get_logger()

STATE_ID_FILE = "docker-id"
KEPT = "docker"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0


class DockerExecutor:
    """Hands out environments; engines are connected to when the first job needs them."""

    def __init__(self, host: HostSettings) -> None:
        self._host = host
        self._engines: dict[Connection, Engine] = {}
        self._pulls: dict[Connection, Pulls] = {}
        self._helpers: dict[Connection, HelperImages] = {}
        self._volumes: dict[Connection, Shelf] = {}
        self._images: dict[Connection, Shelf] = {}
        self._directories: dict[tuple[Connection, str], KeptDirectories] = {}
        self._roots: dict[Connection, str] = {}
        self._sweeping: set[asyncio.Task[None]] = set()
        self.state_id = ""

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment of the daemon."""
        return self._host.environment or os.environ

    async def open(self) -> None:
        """Learn, or choose, the id by which this daemon's state directory marks what it makes."""
        path = Path(self._host.state_dir) / STATE_ID_FILE
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_private(str(path), secrets.token_hex(16).encode())
        self.state_id = path.read_text().strip()

    def environment(self, spec: JobSpec) -> Environment:
        """The place of one job."""
        return DockerEnvironment(self, spec)

    def expect(self, record_dir: Path) -> None:
        """Nothing can be made ready for a job whose image is not known."""

    def sweep(self, tables: Sequence[Mapping[str, Any]], kept: Callable[[], Collection[str]]) -> None:
        """Remove, beside the work, what carries this state directory's id and belongs to no record."""
        engines = {id(engine): engine for engine, _, _ in map(self.engine, map(DockerConfig.from_values, tables))}
        for engine in engines.values():
            self._beside(self._sweep(engine, kept))

    def remove_later(self, engine: Engine, record: str) -> None:
        """Remove what a job has left on an engine that is gone, when it comes back while this daemon is there; else the
        next one sweeps."""
        self._beside(self._remove_later(engine, record))

    def _beside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._sweeping.add(task)
        task.add_done_callback(self._sweeping.discard)

    async def _remove_later(self, engine: Engine, record: str) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await remove_all(engine, self.state_id, record)
                return
            except EngineUnreachable:
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except ExecutorError as error:
                log.warning("containers of a job could not be removed", record=record, error=str(error))
                return

    async def _sweep(self, engine: Engine, kept: Callable[[], Collection[str]]) -> None:
        try:
            await self._root_of(engine)
            await sweep(engine, self.state_id, kept)
        except ExecutorError as error:
            log.warning("leftovers of earlier jobs could not be removed", host=engine.connection.host, error=str(error))

    def engine(self, table: DockerConfig) -> tuple[Engine, Pulls, HelperImages]:
        """The engine that a table names, the pulls that it has under way, and its helper images."""
        connection = Connection.resolve(
            table.host, tls_verify=table.tls_verify, tls_cert_path=table.tls_cert_path, environ=self.environ
        )
        if connection not in self._engines:
            self._engines[connection] = engine = Engine(connection)
            self._pulls[connection] = Pulls()
            self._stock(engine)
        self._stock_directories(self._engines[connection], table.cache_dir.rstrip("/"))
        return self._engines[connection], self._pulls[connection], self._helpers[connection]

    # What is kept on engines

    def _stock(self, engine: Engine) -> None:
        """Know what is kept on an engine, from here on."""
        connection = engine.connection
        folder = self._ledgers(engine)
        images = KeptImages(engine, Ledger(folder / "images"), self._used)
        self._volumes[connection] = KeptVolumes(engine, Ledger(folder / "volumes"), self._used, self.state_id)
        self._images[connection] = images
        self._helpers[connection] = HelperImages(engine, lambda image, name: images.ledger.add(key_of(image), name))

    def _stock_directories(self, engine: Engine, root: str) -> None:
        """The same for what is kept in directories in place of volumes."""
        key = (engine.connection, root)
        if self._host.trees is not None and root.startswith("/") and key not in self._directories:
            ledger = Ledger(self._ledgers(engine) / f"directories-{_digest(root)}")
            self._directories[key] = KeptDirectories(engine, ledger, self._used, root=root, trees=self._host.trees)

    def _ledgers(self, engine: Engine) -> Path:
        return Path(self._host.state_dir) / KEPT / _digest(engine.connection.host)

    def _used(self) -> set[str]:
        return used_by(self._host.records())

    def uses(self, engine: Engine, journal: Journal, table: DockerConfig) -> JobUses:
        """What one job uses of it."""
        connection = engine.connection
        directories = self._directories.get((connection, table.cache_dir.rstrip("/")))
        return JobUses(journal, self._volumes[connection], self._images[connection], directories)

    def disk_kinds(self) -> Sequence[DiskKind]:
        """See :class:`executors.disk.KeepsOnDisk`."""
        return (
            OnEngines("volumes", lambda: [*self._volumes.values(), *self._directories.values()], self._device_of),
            OnEngines("images", lambda: list(self._images.values()), self._device_of),
        )

    def disk_places(self) -> Sequence[str]:
        """See :class:`executors.disk.KeepsOnDisk`."""
        engines = [root for root in self._roots.values() if root]
        return engines + [root for connection, root in self._directories if self._roots.get(connection)]

    async def _device_of(self, shelf: Shelf) -> int:
        root = await self._root_of(shelf.engine)
        if not root:
            return ELSEWHERE
        place = Path(shelf.root if isinstance(shelf, KeptDirectories) else root)
        try:
            return (await asyncio.to_thread(place.stat)).st_dev
        except OSError:
            return 0

    async def _root_of(self, engine: Engine) -> str:
        """The directory of this host in which an engine keeps everything; empty for an engine of another one.

        Raises :class:`ExecutorError`.
        """
        connection = engine.connection
        if connection not in self._roots:
            about: Mapping[str, Any] = await engine.call(lambda client: client.info())
            try:
                await asyncio.to_thread(check_sharing, connection)
                await check_host(engine)
                self._roots[connection] = str(about.get("DockerRootDir") or "")
            except EngineUnreachable:
                raise
            except PrepareError:
                self._roots[connection] = ""
        return self._roots[connection]

    async def sharing(self, user: str | None, table: Mapping[str, Any]) -> Sharing:
        """Binds of one container, whose processes are whose its image says."""
        del user
        config = DockerConfig.from_values(table)
        engine, _, _ = self.engine(config)
        check_sharing(engine.connection)
        await check_host(engine)
        return Sharing(is_tight=not reaches_host(config, os.path.realpath(self._host.state_dir)))

    async def close(self) -> None:
        """Close the connections; containers go on."""
        for task in self._sweeping:
            task.cancel()
        for engine in self._engines.values():
            await engine.close()
        self._engines.clear()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
