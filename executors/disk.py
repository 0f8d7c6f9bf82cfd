"""What is kept on a disk and may go when room is needed: the contract between whoever keeps it and the disk budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing that goes as a whole. ``name`` is unique in its kind; of directories it is the absolute path.

    ``size_bytes`` is what its removal gives back, ``last_used_ns`` Unix nanoseconds. ``in_use`` is what the keeper itself
    knows of its use; what running jobs hold is known to the budget. ``device`` is the file system (``st_dev``), 0 where
    nobody knows it, negative on another host.
    """

    name: str
    size_bytes: int
    last_used_ns: int
    in_use: bool = False
    device: int = 0


class DiskKind(Protocol):
    """Things of one kind, bounded together by the key of ``[pyrunner.disk]`` that ``name`` is.

    Each method may take as long as it needs and may be cancelled; two of them never run at once. Errors are logged by
    the caller, who tries again later: :class:`OSError`, :class:`executors.errors.ExecutorError`.
    """

    @property
    def name(self) -> str:
        """``go``, ``caches``, ``workspaces``, ``volumes``, ``images``, ``records`` or ``mirrors``."""
        ...

    async def items(self) -> Sequence[Item]:
        """Everything that there is of this kind."""
        ...

    async def take_away(self, items: Sequence[Item]) -> None:
        """Make items unusable for good: at once, and each whole or not at all, whatever dies in between.

        No job begins to use one of them before this returns. One that is gone, or found to be in use, is passed over.
        """
        ...

    async def sweep(self) -> None:
        """Give the room of everything that was taken away back to the disk, also what an earlier process took away."""
        ...


class Trees(Protocol):
    """Looks after directories of this host for whoever keeps things there: in processes of their own, so that a file system
    that does not answer holds up nothing else. ``root`` is absolute, names are paths below it, whose content is hostile. Each
    raises :class:`OSError`."""

    async def sizes(self, root: str, known: Mapping[str, int | None]) -> Mapping[str, int]:
        """Bytes on disk of those directories that are there; those whose size is ``known`` are not measured."""
        ...

    async def take(self, root: str, names: Sequence[str]) -> Mapping[str, str]:
        """Move directories out of sight, each whole; why it could not be, by the names of those that stay."""
        ...

    async def sweep(self, root: str) -> Mapping[str, str]:
        """Remove what was moved out of sight; why it could not be, by path."""
        ...


@runtime_checkable
class KeepsOnDisk(Protocol):
    """An executor that keeps more on a disk than the directories of jobs."""

    def disk_kinds(self) -> Sequence[DiskKind]:
        """What it keeps; asked for once, after it was opened."""
        ...

    def disk_places(self) -> Sequence[str]:
        """Directories of this host that jobs fill there, as far as they are known yet."""
        ...
