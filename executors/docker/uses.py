"""What jobs use of the things that are kept on an engine, known from their records: those that are followed, and those that
nobody has adopted yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from executors.docker.journal import Journal, facts

if TYPE_CHECKING:
    from executors.docker.shelf import Shelf

log = structlog.get_logger()

FACT = "uses"
ID = "sha256:"


def used_by(records: Iterable[Path]) -> set[str]:
    """Names of volumes, ids of images and paths of directories that the jobs of these records use."""
    found: set[str] = set()
    for directory in records:
        found.update(facts(directory).get((FACT, ""), {}).get("names", ()))
    return found


class JobUses:
    """The uses of one job. A use is in the job's journal before it is looked whether the thing is on its way out, and nothing
    that is in a journal is put on its way: so no two ever meet."""

    def __init__(self, journal: Journal, volumes: Shelf, images: Shelf, directories: Shelf | None = None) -> None:
        self._journal = journal
        self._volumes = volumes
        self._images = images
        self._directories = directories
        known = journal.find(FACT)
        self._names: list[str] = list(known["names"]) if known is not None else []

    async def take_volumes(self, names: Sequence[str]) -> None:
        """The job is about to use these volumes, or directories in place of volumes. One that is on its way out is gone when this
        returns, and is to be made."""
        self._note(names)
        for name in names:
            shelf = self._shelf_of(name)
            if shelf is not None:
                await shelf.settle(name)
                shelf.ledger.use(key_of(name))

    def _shelf_of(self, name: str) -> Shelf | None:
        if name.startswith(ID):
            return self._images
        return self._directories if name.startswith("/") else self._volumes

    async def take_image(self, image: str) -> bool:
        """The job is about to use the image of this id; False where it is not there any more."""
        self._note([name_of(image)])
        if await self._images.settle(name_of(image)):
            return False
        self._images.ledger.use_known(key_of(image))
        return True

    def made_image(self, image: str, name: str, *, is_new: bool) -> None:
        """The engine has got an image, under this name, for the job; ``is_new`` tells that it was not there before."""
        if is_new or key_of(image) in self._images.ledger.last_uses():
            self._images.ledger.add(key_of(image), name)

    def _note(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._names]
        if new:
            self._names += new
            self._journal.note(FACT, names=self._names)

    def end(self) -> None:
        """Nothing of the job is there any more."""
        if not self._names:
            return
        for name in self._names:
            shelf = self._shelf_of(name)
            if shelf is not None:
                shelf.ledger.use_known(key_of(name))
        self._names = []
        try:
            self._journal.note(FACT, names=[])
        except OSError as error:
            log.warning("end of a use could not be noted", error=str(error))


def name_of(image: str) -> str:
    """The id of an image, which some engines shorten."""
    return f"{ID}{key_of(image)}"


def key_of(name: str) -> str:
    """What a thing is called in a ledger; a directory is the second one below the root that it is kept in."""
    if name.startswith("/"):
        return ":".join(name.split("/")[-2:])
    return name.removeprefix(ID)
