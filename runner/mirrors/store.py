"""The mirrors of one daemon, below its state directory: found or made, brought up to date once for all who ask, kept in order.

``mirrors/<closed|open>/<key>/<number>/`` is a bare repository; a job uses the newest one of its repository that is not
retired. Nothing is ever removed in one of them: it is taken away as a whole, while no job uses it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from executors.base import Mount, Sharing
from executors.disk import Item
from runner.disk.directories import Directories
from runner.disk.holds import Holds
from runner.mirrors.access import CLOSED, NO_MIRROR, OPEN, ROOT, TARGET, MirrorAccess
from runner.mirrors.repository import Access, Mirror, MirrorBusy, MirrorError

log = structlog.get_logger()

RETIRED = "retired"
# Each fetch adds a pack, and git looks into all of them.
MANY_PACKS = 30
MAINTENANCE_PERIOD_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a job wants of a mirror. ``credentials`` is a path in its record for the file that git reads them from."""

    access: Access
    credentials: Path
    sha: str
    object_format: str
    limit_s: float


class Mirrors:
    """Owned by the process that owns the state directory. ``run`` is the service that fetches and repacks."""

    def __init__(self, state_dir: Path, holds: Holds) -> None:
        self._root = Path(os.path.realpath(state_dir)) / ROOT
        self._holds = holds
        self._group: asyncio.TaskGroup | None = None
        self._fetches: dict[Path, asyncio.Task[MirrorError | None]] = {}
        self._repacks: dict[Path, asyncio.Task[MirrorError | None]] = {}
        self.kind = Directories("mirrors", "entries", self._places)

    def places(self, url: str) -> list[str]:
        """Where mirrors of a repository may be."""
        return [str(self._place(url, is_open=is_open)) for is_open in (False, True)]

    def _place(self, url: str, *, is_open: bool) -> Path:
        key = hashlib.sha256(url.encode()).hexdigest()[:32]
        return self._root / (OPEN if is_open else CLOSED) / key

    def give(self, wanted: Wanted, sharing: Sharing, *, is_protected: bool) -> MirrorAccess:
        """What a job gets. Where other jobs could write to its mirror, one of a protected ref gets none. Raises
        :class:`OSError`."""
        is_mounted = not sharing.problem
        is_open = not sharing.is_tight or (not is_mounted and sharing.uid in (None, os.geteuid()))
        if is_open and is_protected:
            return NO_MIRROR
        place = self._place(wanted.access.url, is_open=is_open)
        place.mkdir(parents=True, exist_ok=True)
        self._reach(place, for_others=not is_mounted and not is_open)
        lender = _Lender(self, place, wanted, shown=TARGET if is_mounted else str(place))
        if not is_mounted:
            return MirrorAccess(lender=lender, place=str(place))
        if sharing.uid is not None:
            # A view of this host is made before the first use: the place where it is mounted must be there.
            Path(TARGET).mkdir(parents=True, exist_ok=True)
        mount = Mount(source=str(place), target=TARGET, read_only=True, for_tools=True)
        return MirrorAccess(mounts=(mount,), lender=lender, place=str(place))

    def _reach(self, place: Path, *, for_others: bool) -> None:
        """What is above a mirror is closed, unless the jobs' account has to find its way through it."""
        self._root.chmod(0o711 if for_others else 0o700)
        place.parent.chmod(0o711)
        place.chmod(0o755)
        if for_others:
            state = self._root.parent
            state.chmod(state.stat().st_mode | 0o011)

    def newest(self, place: Path, object_format: str) -> Mirror:
        """The mirror to use now; made where there is none. Raises :class:`OSError`."""
        last = newest_number(place)
        usable = last and not (place / str(last) / RETIRED).exists()
        found = Mirror(place / str(last if usable else last + 1), object_format=object_format)
        found.make()
        return found

    async def refresh(self, mirror: Mirror, wanted: Wanted) -> None:
        """Fetch, or join whoever is fetching. Raises :class:`MirrorError`."""
        repack = self._repacks.pop(mirror.place, None)
        if repack is not None:
            repack.cancel()
            await asyncio.wait((repack,))
        running = self._fetches.get(mirror.place)
        if running is None or running.done():
            if self._group is None:
                raise MirrorError("the daemon is about to end")
            work = mirror.fetch(wanted.access, wanted.credentials, limit_s=wanted.limit_s)
            running = self._group.create_task(_quiet(work), name=f"mirror-{mirror.place.parent.name}")
            self._fetches[mirror.place] = running
        await asyncio.wait((running,))
        problem = MirrorError("the fetch was given up") if running.cancelled() else running.result()
        if problem is not None:
            raise problem

    def retire(self, mirror: Mirror) -> None:
        """Nobody borrows from it any more; it goes once no job uses it."""
        with contextlib.suppress(OSError):
            (mirror.place / RETIRED).touch()

    # The service

    async def run(self) -> None:
        """Keep mirrors in order while nobody uses them."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                while True:
                    await self._remove_retired()
                    self._begin_repacks(group)
                    await asyncio.sleep(MAINTENANCE_PERIOD_S)
            finally:
                self._group = None

    async def _remove_retired(self) -> None:
        gone = [
            item
            for mirror in self._all()
            if (mirror.place / RETIRED).exists() and not self._holds.is_held(item := _item(mirror.place))
        ]
        with self._holds.going(gone) as free:
            if free:
                await self.kind.take_away(free)
        if free:
            await self.kind.sweep()

    def _begin_repacks(self, group: asyncio.TaskGroup) -> None:
        for mirror in self._all():
            is_idle = not self._holds.is_held(_item(mirror.place)) and mirror.place not in self._repacks
            if is_idle and mirror.packs() > MANY_PACKS:
                task = group.create_task(_quiet(mirror.repack()), name=f"repack-{mirror.place.parent.name}")
                self._repacks[mirror.place] = task
                task.add_done_callback(lambda _, place=mirror.place: self._repacks.pop(place, None))  # type: ignore[misc]

    def _all(self) -> list[Mirror]:
        return [
            Mirror(entry, object_format="")
            for place in map(Path, self._places())
            for entry in place.iterdir()
            if entry.name.isdigit() and (entry / "HEAD").exists()
        ]

    def _places(self) -> Sequence[str]:
        return [str(place) for area in (CLOSED, OPEN) for place in _directories(self._root / area)]


class _Lender:
    """Lends one job from the mirrors at ``place``, which its git sees at ``shown``."""

    def __init__(self, mirrors: Mirrors, place: Path, wanted: Wanted, *, shown: str) -> None:
        self._mirrors = mirrors
        self._place = place
        self._wanted = wanted
        self._shown = shown
        self._lent: Mirror | None = None

    async def borrow(self) -> str:
        """See :class:`runner.mirrors.access.Lender`."""
        try:
            mirror = self._mirrors.newest(self._place, self._wanted.object_format)
            mirror.touch()
        except OSError as error:
            log.warning("a repository has no mirror", error=str(error), mirror=str(self._place))
            return ""
        self._lent = mirror
        if not await mirror.has(self._wanted.sha) and not await self._refresh(mirror):
            return ""
        return f"{self._shown}/{mirror.place.name}/objects"

    async def _refresh(self, mirror: Mirror) -> bool:
        """Whether there is something to borrow: what is there already is worth it even where nothing new can be had."""
        try:
            await self._mirrors.refresh(mirror, self._wanted)
        except MirrorError as error:
            log.warning("the mirror of a repository could not be brought up to date", error=str(error), mirror=str(mirror.place))
            if not mirror.packs():
                return False
            if not isinstance(error, MirrorBusy) and not await mirror.is_whole():
                await self.discard()
                return False
        return True

    def lent(self) -> str:
        """See :class:`runner.mirrors.access.Lender`."""
        number = newest_number(self._place)
        return f"{self._shown}/{number}/objects" if number and not (self._place / str(number) / RETIRED).exists() else ""

    async def discard(self) -> None:
        """See :class:`runner.mirrors.access.Lender`."""
        if self._lent is not None:
            log.warning("the mirror of a repository is broken, it is made anew", mirror=str(self._lent.place))
            self._mirrors.retire(self._lent)
            self._lent = None


def newest_number(place: Path) -> int:
    """The number of the newest mirror of a repository, 0 where there is none. Raises :class:`OSError`."""
    return max((int(entry.name) for entry in place.iterdir() if entry.name.isdigit()), default=0)


async def _quiet(work: Awaitable[None]) -> MirrorError | None:
    """What went wrong, as a value: nobody may be waiting for it."""
    try:
        await work
    except (MirrorError, OSError) as error:
        return error if isinstance(error, MirrorError) else MirrorError(str(error))
    return None


def _item(path: Path) -> Item:
    return Item(name=str(path), size_bytes=0, last_used_ns=0)


def _directories(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except OSError:
        return []
