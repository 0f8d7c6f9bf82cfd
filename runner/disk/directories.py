"""Kinds of things that are directories of this host: workspaces, caches, and whatever has a directory of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from executors.disk import Item

log = structlog.get_logger()

KILL_S = 1.0

# The interpreter of the worker sees neither site packages nor its environment, only this package.
_ROOT = str(Path(__file__).parents[2])
WORKER = f"import sys; sys.path.insert(0, {_ROOT!r}); from runner.disk.worker import main; main()"


class Directories:
    """One kind. ``shape`` is ``workspaces`` (projects below roots of builds), ``caches`` (archives of the local store) or
    ``entries`` (each directory right below a root). ``roots`` are absolute; one that is not there holds nothing.

    Each call is a process of its own: a directory that does not answer keeps nothing else from going on.
    """

    def __init__(self, name: str, shape: str, roots: Callable[[], Sequence[str]]) -> None:
        self._name = name
        self._shape = shape
        self._roots = roots
        self._known: dict[str, tuple[int, int]] = {}

    @property
    def name(self) -> str:
        """The key of ``[pyrunner.disk]``."""
        return self._name

    def used(self, path: str) -> None:
        """A job has worked there: what was measured before says nothing any more."""
        for name in [name for name in self._known if covers(path, name)]:
            del self._known[name]

    async def items(self) -> Sequence[Item]:
        """See :class:`executors.disk.DiskKind`."""
        rows = await _work(do="list", shape=self._shape, roots=self._real_roots(), known=self._known)
        self._known = {name: (stamp, size) for name, size, stamp, _ in rows}
        return [Item(name=name, size_bytes=size, last_used_ns=stamp, device=device) for name, size, stamp, device in rows]

    async def take_away(self, items: Sequence[Item]) -> None:
        """See :class:`executors.disk.DiskKind`."""
        roots = sorted(self._real_roots(), key=len, reverse=True)
        names: dict[str, list[str]] = {}
        for item in items:
            root = next((root for root in roots if item.name.startswith(f"{root}/")), None)
            if root is not None:
                names.setdefault(root, []).append(item.name)
        self._complain(await _work(do="take", shape=self._shape, names=names))

    async def sweep(self) -> None:
        """See :class:`executors.disk.DiskKind`."""
        self._complain(await _work(do="sweep", roots=self._real_roots()))

    def _real_roots(self) -> list[str]:
        """A root itself may be a link of the administrator's; nothing below is followed."""
        return list(dict.fromkeys(os.path.realpath(root) for root in self._roots()))

    def _complain(self, failed: Sequence[Sequence[str]]) -> None:
        for path, why in failed:
            log.warning("could not be removed from the disk", kind=self._name, path=path, error=why)


class HostTrees:
    """See :class:`executors.disk.Trees`."""

    async def sizes(self, root: str, known: Mapping[str, int | None]) -> Mapping[str, int]:
        """See :class:`executors.disk.Trees`."""
        found: dict[str, int] = await _work(do="measure", root=os.path.realpath(root), known=dict(known))
        return found

    async def take(self, root: str, names: Sequence[str]) -> Mapping[str, str]:
        """See :class:`executors.disk.Trees`."""
        real = os.path.realpath(root)
        failed = await _work(do="take", shape="entries", names={real: [f"{real}/{name}" for name in names]})
        return {path.removeprefix(f"{real}/"): why for path, why in failed}

    async def sweep(self, root: str) -> Mapping[str, str]:
        """See :class:`executors.disk.Trees`."""
        return dict(await _work(do="sweep", roots=[os.path.realpath(root)]))


def covers(path: str, other: str) -> bool:
    """Whether one of two paths is the other, or lies below it."""
    return path == other or path.startswith(f"{other}/") or other.startswith(f"{path}/")


async def _work(**request: Any) -> Any:
    """Have a process do it. Raises :class:`OSError` when it dies."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", WORKER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    try:
        answer, errors = await process.communicate(json.dumps(request).encode())
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                process.kill()
                await asyncio.wait_for(process.wait(), KILL_S)
    if process.returncode != 0:
        text = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"the process that looks after {request['do']} ended with {process.returncode}: {text}")
    return json.loads(answer)
