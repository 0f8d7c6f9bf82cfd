"""Files of a job on this host, touched by a child of the job's supervisor."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from executors.errors import WorkspaceError
from executors.file_channel import ANSWER, SCRATCH
from executors.file_feed import Channel, FeedReader, FeedWriter
from executors.supervision import SupervisorLink
from executors.workspace import EntriesWriter, Entry, FilesReader


class Keeper(NamedTuple):
    """What an account may not write to, and the id of its owner."""

    path: str
    owner: int


class HostWorkspace:
    """File operations, carried out below the job's directories by a child of its supervisor."""

    def __init__(self, link: SupervisorLink) -> None:
        self._link = link

    async def _do(self, *operations: dict[str, Any]) -> list[Any]:
        answer = await self._link.call("files", operations=list(operations))
        if "error" in answer:
            kinds = ", ".join(sorted({operation["kind"].replace("_", " ") for operation in operations}))
            raise WorkspaceError(f"{kinds}: {answer['error']}")
        results: list[Any] = answer["results"]
        return results

    async def make_dir(self, path: str, *, parents: bool = True) -> None:
        """See :class:`executors.workspace.Workspace`."""
        await self._do({"kind": "make_dir", "path": path})

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See :class:`executors.workspace.Workspace`."""
        await self._do({"kind": "write", "path": path, "data": base64.b64encode(data).decode(), "mode": mode})

    async def read(self, path: str, *, limit: int = 16 * 1024 * 1024) -> bytes | None:
        """See :class:`executors.workspace.Workspace`."""
        (result,) = await self._do({"kind": "read", "path": path, "limit": limit})
        return None if result is None else base64.b64decode(result)

    async def read_files(self, root: str, paths: Sequence[str]) -> FilesReader:
        """See :class:`executors.workspace.Workspace`."""
        return FeedReader(await self._channel(root), paths)

    async def write_entries(self, root: str) -> EntriesWriter:
        """See :class:`executors.workspace.Workspace`."""
        return FeedWriter(await self._channel(root), root)

    async def scratch(self, root: str, directory: str) -> int:
        """See :class:`executors.workspace.HasScratch`."""
        channel = await self._channel(root)
        try:
            channel.send(SCRATCH + os.fsencode(directory))
            answer, fd = await asyncio.to_thread(channel.receive)
        finally:
            channel.close()
            channel.dispose()
        _, code, _ = ANSWER.unpack(answer)
        if code:
            raise WorkspaceError(f"open {directory}/artifacts: {os.strerror(code).lower()}")
        return fd

    async def _channel(self, root: str) -> Channel:
        channel = Channel(self._link.record_dir)
        problem = "cancelled"
        try:
            answer = await self._link.call("open_channel", socket=channel.name, root=root)
            problem = answer.get("error", "")
        finally:
            if problem:
                channel.close()
        if problem:
            raise WorkspaceError(f"files: {problem}")
        channel.accept()
        return channel

    async def clear_path(self, path: str, own: Sequence[str]) -> tuple[list[str], Keeper | None]:
        """Take away links and files that stand in the place of a directory above ``path``. Names them, and what then still
        keeps the job's account from writing at one of ``own``."""
        asked = [{"kind": "kept_by", "path": one} for one in own]
        try:
            taken, *found = await self._do({"kind": "clear_path", "path": path}, *asked)
        except WorkspaceError:
            taken, found = [], await self._do(*asked)
            if not any(found):
                raise
        return list(taken), next((Keeper(*one) for one in found if one), None)

    async def remove(self, paths: Sequence[str]) -> None:
        """See :class:`executors.workspace.Workspace`."""
        if paths:
            await self._do(*({"kind": "remove", "path": path} for path in paths))

    async def remove_matching(self, root: str, names: Sequence[str], *, suffixes: Sequence[str] = ()) -> None:
        """See :class:`executors.workspace.Workspace`."""
        await self._do({"kind": "remove_matching", "path": root, "names": list(names), "suffixes": list(suffixes)})

    async def list(self, root: str, *, max_depth: int | None = None) -> list[Entry]:
        """See :class:`executors.workspace.Workspace`."""
        (result,) = await self._do({"kind": "list", "path": root, "max_depth": max_depth})
        return [
            Entry(path, kind, mode, size, mtime_ns, target, "", (uid, gid))
            for path, kind, mode, size, mtime_ns, target, uid, gid in result
        ]

    async def exists(self, path: str) -> bool:
        """See :class:`executors.workspace.Workspace`."""
        (result,) = await self._do({"kind": "exists", "path": path})
        return bool(result)
