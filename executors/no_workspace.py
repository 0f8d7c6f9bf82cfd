"""The files of a place that nobody but its driver reaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from executors.errors import WorkspaceError
from executors.workspace import EntriesWriter, Entry, FilesReader


class NoWorkspace:
    """Refuses everything: see :class:`executors.workspace.Workspace`."""

    def _refuse(self, what: str) -> NoReturn:
        raise WorkspaceError(f"{what}: the files of this job are out of the runner's reach")

    async def make_dir(self, path: str, *, parents: bool = True) -> None:
        """Refused."""
        self._refuse(f"make directory {path}")

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Refused."""
        self._refuse(f"write {path}")

    async def read(self, path: str, *, limit: int = 16 * 1024 * 1024) -> bytes | None:
        """Refused."""
        self._refuse(f"read {path}")

    async def read_files(self, root: str, paths: Sequence[str]) -> FilesReader:
        """Refused."""
        self._refuse(f"read files below {root}")

    async def write_entries(self, root: str) -> EntriesWriter:
        """Refused."""
        self._refuse(f"write below {root}")

    async def remove(self, paths: Sequence[str]) -> None:
        """Refused."""
        self._refuse("remove files")

    async def remove_matching(self, root: str, names: Sequence[str], *, suffixes: Sequence[str] = ()) -> None:
        """Refused."""
        self._refuse(f"remove files below {root}")

    async def list(self, root: str, *, max_depth: int | None = None) -> list[Entry]:
        """Refused."""
        self._refuse(f"list {root}")

    async def exists(self, path: str) -> bool:
        """Refused."""
        self._refuse(f"look for {path}")
