"""What a job gets of the mirror of its repository, and how its checkouts know a mirror."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from executors.base import Mount

# Where processes of jobs find the mirrors of their repository, where they can be mounted for one job alone.
TARGET = "/var/cache/pyrunner/git"
# Below the state directory: mirrors that no job can write, and those of jobs that run as the daemon itself.
ROOT = "mirrors"
CLOSED = "closed"
OPEN = "open"
ALTERNATES = "objects/info/alternates"
_OURS = re.compile(rf"({re.escape(TARGET)}|/.*/{ROOT}/({CLOSED}|{OPEN})/[0-9a-f]{{32}})/[0-9]+/objects\n")


class Lender(Protocol):
    """The mirror of one job's repository."""

    async def borrow(self) -> str:
        """Bring the mirror up to the job's commit; the directory of its objects as the job's git sees it. Empty where there
        is nothing to borrow: that is never an error."""
        ...

    def lent(self) -> str:
        """What checkouts borrow now, as :meth:`borrow` names it, without bringing anything; empty where there is nothing."""
        ...

    async def discard(self) -> None:
        """What was borrowed is broken: let nobody borrow it again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorAccess:
    """``lender`` None: the job's repository has no mirror. ``place`` is the directory of this host that is held for the job."""

    mounts: tuple[Mount, ...] = ()
    lender: Lender | None = None
    place: str = ""


NO_MIRROR = MirrorAccess()


def is_borrowed(alternates: bytes) -> bool:
    """Whether a checkout has borrowed from a mirror: without it it is not whole."""
    return _OURS.fullmatch(alternates.decode(errors="replace")) is not None
