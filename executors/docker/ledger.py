"""What the runner knows of the things that it keeps on an engine: when each was used last, and what is on its way out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import structlog

from executors.file_operations import write_private

log = structlog.get_logger()

# No name of a volume that the runner makes, and no id of an image, has a dot.
GOING = ".going"
DRAFT = ".draft"


class Ledger:
    """A file for each thing below ``folder``: its time is that of the last use, its content the names that the runner gave
    (a JSON list, empty for what has one name only). Of something on its way out the file has another name.

    Nothing that goes wrong with the disk is a job's problem: it is logged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def use(self, name: str) -> None:
        """It was used just now; one that was not known is from here on."""
        try:
            try:
                os.utime(self._folder / name)
            except FileNotFoundError:
                self._write(name, ())
        except OSError as error:
            log.warning("use of something on the engine could not be noted", name=name, error=str(error))

    def use_known(self, name: str) -> None:
        """The same for what is known, and nothing for what is not."""
        try:
            os.utime(self._folder / name)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("use of something on the engine could not be noted", name=name, error=str(error))

    def add(self, name: str, given: str) -> None:
        """The runner made or got a thing under a name that was not there before."""
        try:
            self._write(name, {*self.given(name), given})
        except OSError as error:
            log.warning("something on the engine could not be noted", name=name, error=str(error))

    def given(self, name: str) -> frozenset[str]:
        """The names that the runner gave a thing, also one on its way out."""
        for path in (self._folder / name, self._folder / f"{name}{GOING}"):
            try:
                return frozenset(json.loads(path.read_bytes() or b"[]"))
            except OSError:
                continue
        return frozenset()

    def last_uses(self) -> dict[str, int]:
        """Everything that is known and not on its way out, with the time of its last use in Unix nanoseconds."""
        found = {}
        for entry in self._entries():
            if not entry.name.endswith((GOING, DRAFT)):
                try:
                    found[entry.name] = entry.stat().st_mtime_ns
                except FileNotFoundError:
                    continue
        return found

    # On the way out

    def mark(self, name: str) -> None:
        """From here on it is on its way out. Raises :class:`OSError`."""
        try:
            (self._folder / name).rename(self._folder / f"{name}{GOING}")
        except FileNotFoundError:
            self._write(f"{name}{GOING}", ())

    def is_going(self, name: str) -> bool:
        """Whether it is on its way out."""
        return (self._folder / f"{name}{GOING}").exists()

    def going(self) -> list[str]:
        """Everything that is on its way out."""
        return [entry.name.removesuffix(GOING) for entry in self._entries() if entry.name.endswith(GOING)]

    def put_back(self, name: str) -> None:
        """It stays after all, since somebody uses it."""
        try:
            (self._folder / f"{name}{GOING}").rename(self._folder / name)
        except FileNotFoundError:
            return
        self.use_known(name)

    def forget(self, name: str) -> None:
        """It is there no more."""
        for path in (self._folder / name, self._folder / f"{name}{GOING}"):
            path.unlink(missing_ok=True)

    def forget_others(self, there: Iterable[str], *, before_ns: int) -> None:
        """Whatever is not ``there`` was removed by somebody; what was used after ``before_ns`` is younger than that list."""
        known = set(there)
        for name, used_ns in self.last_uses().items():
            if name not in known and used_ns < before_ns:
                self.forget(name)

    def _entries(self) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._folder) as found:
                return list(found)
        except FileNotFoundError:
            return []

    def _write(self, name: str, given: Iterable[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f"{name}{DRAFT}"
        write_private(str(draft), json.dumps(sorted(given)).encode())
        draft.rename(self._folder / name)
