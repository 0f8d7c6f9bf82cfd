"""Saving the caches of a job (``job-lifecycle.md`` 12.4)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import posixpath
from collections.abc import Sequence

from executors.base import Environment
from executors.errors import WorkspaceError
from executors.file_operations import write_all
from executors.workspace import Entry
from runner.archive.cache_key import CacheKey
from runner.archive.formats import Format, compression_level, read_mark
from runner.archive.local_store import LocalStore, Stored
from runner.archive.match import shown
from runner.archive.object_store import CACHE_KEY, ObjectStore, StoreError
from runner.archive.pack import pack
from runner.coordinator.payload import Cache
from runner.errors import ArchiveError
from runner.job.cache_transfer import CacheTransfer
from runner.job.lines import Lines, Move
from runner.job.plan import JobPlan
from runner.job.selection import Selector
from runner.job.uploads import GONE

NO_URL = "No URL provided, cache will not be uploaded to shared cache server. Cache will be stored only locally."
# Digits of each of the two prints that an archive carries.
DIGITS = 32
NS = 10**9
FORMATS = {"zip": Format.ZIP, "tarzstd": Format.TARZSTD, "zipzstd": Format.ZIPZSTD}


class Saver:
    """Saves for one stage. Nothing that goes wrong fails the job."""

    def __init__(self, plan: JobPlan, environment: Environment, lines: Lines, remote: ObjectStore | None) -> None:
        self._plan = plan
        self._files = environment.files
        self._lines = lines
        self._local = LocalStore(plan.directories.cache_root, plan.directories.cache)
        self._remote = remote
        self._project = plan.directories.project
        self._selector = Selector(plan, environment, lines)
        self._transfer = CacheTransfer(plan, lines)
        self._slot = f"{plan.runner.short_token}/{plan.record.accepted.project_slot}/{self._project}"

    async def look_around(self, status: str) -> None:
        """Read what the variables of this stage are."""
        await self._selector.look_around(status)

    async def save(self, cache: Cache, *, pushes: bool) -> None:
        """One entry."""
        key = self._plan.cache_key(cache.key)
        if key.complaint:
            self._lines.odd(key.complaint)
        if not key.stored:
            self._lines.notice("Skipping cache archiving due to empty cache key")
            return
        if not pushes:
            self._lines.notice(f"Not uploading cache {key.shown} due to policy")
            return
        self._lines.notice(f"Creating cache {key.shown}...")
        try:
            await self._save(cache, key)
        except (ArchiveError, WorkspaceError) as error:
            self._lines.fatal(str(error))
        except OSError as error:
            self._lines.fatal(f"mkdir {self._relative(error.filename or self._place(key))}: {_reason(error)}")
        else:
            self._lines.notice("Created cache")
            return
        self._lines.odd("Failed to create cache")

    async def _save(self, cache: Cache, key: CacheKey) -> None:
        problem = self._stat_problem(key)
        if problem:
            self._lines.warning("Failed to stat primary cache file", error=problem)
        selection = await self._selector.select(cache.paths, untracked=cache.untracked)
        if not selection.members:
            self._lines.warning("No files to cache.")
            return
        if problem:
            self._lines.warning(problem)
        elif await self._reuse(selection.members, key):
            return
        await self._build(selection.members, key)

    def _stat_problem(self, key: CacheKey) -> str:
        try:
            with self._local.opened(key.stored):
                return ""
        except OSError as error:
            return f"stat {self._relative(self._place(key))}/cache.zip: {_reason(error)}"

    async def _build(self, members: Sequence[Entry], key: CacheKey) -> None:
        variables = self._selector.variables
        level, complaint = compression_level(variables.get("CACHE_COMPRESSION_LEVEL", ""))
        if complaint:
            self._lines.warning(complaint)
        kind = FORMATS.get(variables.get("CACHE_COMPRESSION_FORMAT", "").lower(), Format.ZIP)
        mark = "".join(fingerprint(members, self._slot))
        with self._local.draft(key.stored, self._transfer.writer) as draft:

            async def sink(piece: bytes) -> None:
                try:
                    await asyncio.to_thread(write_all, draft.fd, piece)
                except OSError as error:
                    raise ArchiveError(f"write {self._relative(self._place(key))}/cache.zip: {_reason(error)}") from error

            packed = await pack(self._files, self._project, members, sink, format=kind, level=level, mark=mark)
            for path, why in packed.skipped:
                if why != GONE:
                    self._lines.warning(f"{shown(path)}: {why}")
            await asyncio.to_thread(draft.keep, {})
            about = os.fstat(draft.fd)
            await self._upload(Stored(draft.fd, about.st_size, about.st_mtime_ns), key)

    async def _reuse(self, members: Sequence[Entry], key: CacheKey) -> bool:
        """Whether the archive is what would be made: then at most it is missing in the remote store."""
        with self._local.opened(key.stored) as stored:
            if stored is None or not self._is_up_to_date(stored, members):
                return False
            if self._remote is not None and await self._is_there(self._remote, key):
                self._lines.info("Primary cache already exists remotely, skipping upload")
            else:
                self._lines.info("Primary cache does not exist remotely, uploading existing archive")
                await self._upload(stored, key)
            return True

    async def _is_there(self, remote: ObjectStore, key: CacheKey) -> bool:
        try:
            return await remote.exists(self._transfer.object_name(key), timeout_s=self._plan.settings.cache_request_timeout_s)
        except StoreError as error:
            self._lines.warning("The remote cache could not be looked for", error=error)
            return False

    async def _upload(self, stored: Stored, key: CacheKey) -> None:
        remote, limit = self._remote, self._plan.runner.cache.max_uploaded_archive_size
        if remote is None:
            self._lines.info(NO_URL)
            return
        if 0 < limit < stored.size:
            text = f"Cache archive size ({stored.size}) is too big (Limit is set to {limit})"
            self._lines.info(f"{text}. Cache will be stored only locally.")
            return
        name = self._transfer.object_name(key)
        last: StoreError | None = None
        for _ in self._transfer.tries():
            if last is not None:
                self._lines.warning("Retrying...", error=last)
                await asyncio.sleep(self._transfer.PAUSE_S)
            self._lines.info("Using presigned URL for cache upload")
            self._lines.info(f"Uploading cache.zip to {remote.url(name)}")
            try:
                async with self._transfer.how(Move.UPLOAD_CACHE, self._selector.variables.get) as how:
                    tag = await remote.store(name, stored.path, stored.size, {CACHE_KEY: _header(key.shown)}, how)
                self._local.tag(stored, tag)
                return
            except StoreError as error:
                last = error
                if not error.is_passing:
                    break
        assert last is not None
        raise last

    def _is_up_to_date(self, stored: Stored, members: Sequence[Entry]) -> bool:
        """Whether the archive holds these files: those that it was made of, or those that came out of it.

        What was restored has times in whole seconds, which next to nothing else has. An archive of GitLab Runner carries no
        mark: its own time has to do.
        """
        if stored.mtime_ns < max(member.mtime_ns for member in members):
            return False
        mark = read_mark(stored.path)
        if not mark:
            return True
        exact, kept = fingerprint(members, self._slot)
        is_restored = all(member.mtime_ns % NS == 0 for member in members if member.path != ".")
        return mark[:DIGITS] == exact or (is_restored and mark[DIGITS:] == kept)

    def _place(self, key: CacheKey) -> str:
        return posixpath.join(self._plan.directories.cache, key.stored)

    def _relative(self, path: str) -> str:
        return posixpath.relpath(path, self._project)


def fingerprint(members: Sequence[Entry], slot: str) -> tuple[str, str]:
    """What tells one choice of files from another without reading them: names, kinds, modes, sizes, targets and times.

    With the exact times that they have in one ``slot``, and with those that an archive keeps: whole seconds. Jobs that run
    at once make files of the same time, to the tick of the clock, in different slots.
    """
    exact, kept = hashlib.sha256(slot.encode(errors="surrogateescape") + b"\0"), hashlib.sha256()
    for member in members:
        if member.path == ".":
            continue
        size = member.size if member.kind == "file" else 0
        mode = 0 if member.kind == "link" else member.mode & 0o777
        facts = f"{member.path}\0{member.kind}\0{mode}\0{size}\0{member.target}\0".encode(errors="surrogateescape")
        exact.update(facts + b"%d\0" % member.mtime_ns)
        kept.update(facts + b"%d\0" % (member.mtime_ns // NS))
    return exact.hexdigest()[:DIGITS], kept.hexdigest()[:DIGITS]


def _header(text: str) -> str:
    """A key as the value of a header: what is no printable ASCII is escaped."""
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]


def _reason(error: OSError) -> str:
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]
