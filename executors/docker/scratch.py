"""Files of a job, with as few containers as it takes (``docker-executor.md`` 12.2, rule 7).

A job without sources, caches and artifacts needs directories only, in volumes that go with it. They are put into its own
container before that has ever run; the first operation that this cannot do brings up the helper.
"""

from __future__ import annotations

import asyncio
import io
import posixpath
import tarfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from executors.base import ContainerSpec
from executors.docker.files import HelperFiles
from executors.workspace import EntriesWriter, Entry, FilesReader

if TYPE_CHECKING:
    from executors.docker.builder import Builder
    from executors.docker.client import Engine
    from executors.docker.helper import Helper
    from executors.docker.place import JobPlace

log = structlog.get_logger()


class JobFiles(HelperFiles):
    """The workspace of a job. ``is_direct`` tells that there is no helper, nor need for one yet."""

    def __init__(
        self, engine: Engine, helper: Helper, builder: Builder, place: Callable[[], JobPlace], need: ContainerSpec
    ) -> None:
        super().__init__(engine, helper, need.builds_dir)
        self._builder = builder
        self._place = place
        self._uses_helper = need.uses_tools
        self._wanted: dict[str, bytes | None] = {}
        self._given: dict[str, bytes | None] = {}
        self._starting: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Begin to start the helper, and behind it the job's own container; what goes wrong shows when they are needed."""
        self._starting = asyncio.create_task(self._start())
        self._starting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())

    async def _start(self) -> None:
        await self._helper.start()
        self._builder.begin_early()

    async def detach(self) -> None:
        """Let go of what was begun."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])

    @property
    def is_direct(self) -> bool:
        """See the class."""
        return not self._uses_helper and not self._helper.is_running and self._is_fresh()

    def _is_fresh(self) -> bool:
        """Whether the directory of builds goes with the job."""
        volumes = self._place().volumes
        builds = self._place().need.builds_dir
        return any(mount.destination == builds and not mount.reusable for mount in volumes.made)

    async def leave_direct(self) -> None:
        """From now on there is a helper."""
        self._uses_helper = True
        await self._helper.start()
        for path, data in self._wanted.items():
            if data is None:
                await super().make_dir(path)
            else:
                await super().write(path, data)
        self._wanted.clear()

    async def hand_over(self) -> None:
        """Make what was asked for, before a script needs it."""
        if not self.is_direct or self._builder.has_run:
            return
        container = await self._builder.created()
        archive = self._archive()
        await self._engine.call(lambda client: client.put_archive(container, "/", archive))
        self._given |= self._wanted
        self._wanted.clear()

    def _archive(self) -> bytes:
        """Directories and files as a tar file: the engine needs each directory on the way that may not be there."""
        place = self._place()
        names: dict[str, bytes | None] = dict.fromkeys(place.volumes.open_to_all)
        root = place.need.builds_dir
        for path, data in sorted(self._wanted.items()):
            above = path if data is None else posixpath.dirname(path)
            inside = [part for part in posixpath.relpath(above, root).split("/") if part not in ("", ".")]
            for length in range(1, len(inside) + 1):
                names.setdefault(f"{root}/{'/'.join(inside[:length])}", None)
            if data is not None:
                names[path] = data
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name, data in names.items():
                member = tarfile.TarInfo(name.lstrip("/"))
                if data is None:
                    member.type, member.mode, member.mtime = tarfile.DIRTYPE, 0o777, time.time()
                    archive.addfile(member)
                else:
                    member.size, member.mode, member.mtime = len(data), 0o666, time.time()
                    archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    def _is_ours(self, path: str) -> bool:
        root = self._place().need.builds_dir
        return self.is_direct and path.startswith(f"{root}/") and posixpath.normpath(path) == path

    async def make_dir(self, path: str, *, parents: bool = True) -> None:
        """See :class:`executors.workspace.Workspace`."""
        if self._is_ours(path):
            self._wanted[path] = None
        else:
            await self._via_helper()
            await super().make_dir(path, parents=parents)

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See :class:`executors.workspace.Workspace`."""
        if self._is_ours(path) and (not self._builder.has_run or self._given.get(path) == data):
            self._wanted[path] = data
        else:
            await self._via_helper()
            await super().write(path, data, mode=mode)

    async def remove(self, paths: Sequence[str]) -> None:
        """See :class:`executors.workspace.Workspace`. What is in a volume that goes with the job goes with it."""
        if all(self._is_ours(path) for path in paths):
            for path in paths:
                self._wanted.pop(path, None)
            return
        await self._via_helper()
        await super().remove(paths)

    async def _via_helper(self) -> None:
        if not self._uses_helper or self._wanted:
            await self.leave_direct()

    async def read(self, path: str, *, limit: int = 16 * 1024 * 1024) -> bytes | None:
        """See :class:`executors.workspace.Workspace`."""
        await self._via_helper()
        return await super().read(path, limit=limit)

    async def read_files(self, root: str, paths: Sequence[str]) -> FilesReader:
        """See :class:`executors.workspace.Workspace`."""
        await self._via_helper()
        return await super().read_files(root, paths)

    async def write_entries(self, root: str) -> EntriesWriter:
        """See :class:`executors.workspace.Workspace`."""
        await self._via_helper()
        return await super().write_entries(root)

    async def remove_matching(self, root: str, names: Sequence[str], *, suffixes: Sequence[str] = ()) -> None:
        """See :class:`executors.workspace.Workspace`."""
        if self.is_direct and not self._wanted:
            return
        await self._via_helper()
        await super().remove_matching(root, names, suffixes=suffixes)

    async def list(self, root: str, *, max_depth: int | None = None) -> list[Entry]:
        """See :class:`executors.workspace.Workspace`."""
        await self._via_helper()
        return await super().list(root, max_depth=max_depth)

    async def exists(self, path: str) -> bool:
        """See :class:`executors.workspace.Workspace`."""
        if self._is_ours(path) and not self._builder.has_run:
            return path in self._wanted
        await self._via_helper()
        return await super().exists(path)
