"""Restoring the caches of a job (``job-lifecycle.md`` 12.3)."""

from __future__ import annotations

import asyncio

from executors.base import Environment
from executors.errors import WorkspaceError
from runner.archive.cache_key import CacheKey
from runner.archive.formats import sniff
from runner.archive.local_store import LocalStore, Stored
from runner.archive.match import ROOT
from runner.archive.members import Limits
from runner.archive.object_store import ObjectStore, StoreError
from runner.archive.unpack import unpack
from runner.coordinator.payload import Cache
from runner.errors import ArchiveError
from runner.job.cache_keys import PROJECT_STAYS, fallbacks
from runner.job.cache_transfer import CacheTransfer
from runner.job.costs import HIT, MISS
from runner.job.lines import Lines, Move
from runner.job.plan import JobPlan
from runner.job.selection import Selector

NO_URL = (
    "No URL provided, cache will not be downloaded from shared cache server. Instead a local version of cache will be extracted."
)
NOT_THERE = "Cache file does not exist"


class Restorer:
    """Restores for one stage. Nothing that goes wrong fails the job."""

    def __init__(self, plan: JobPlan, environment: Environment, lines: Lines, remote: ObjectStore | None) -> None:
        self._plan = plan
        self._environment = environment
        self._lines = lines
        self._local = LocalStore(plan.directories.cache_root, plan.directories.cache)
        self._remote = remote
        self._transfer = CacheTransfer(plan, lines)

    async def restore(self, cache: Cache, *, pulls: bool) -> None:
        """One entry: the first of its keys that works."""
        key = self._plan.cache_key(cache.key)
        if key.complaint:
            self._lines.odd(key.complaint)
        if not key.stored:
            self._lines.notice("Skipping cache extraction due to empty cache key")
            return
        if not pulls:
            self._lines.notice(f"Not downloading cache {key.shown} due to policy")
            return
        others, complaints = fallbacks(self._plan, cache)
        for complaint in complaints:
            self._lines.odd(complaint)
        for candidate in [key, *others]:
            self._lines.notice(f"Checking cache for {candidate.shown}...")
            if await self._try(candidate):
                self._lines.notice("Successfully extracted cache")
                self._lines.tally.add(HIT)
                return
            self._lines.odd("Failed to extract cache")
            if self._plan.flags["FF_CLEAN_UP_FAILED_CACHE_EXTRACT"]:
                await self._clear(cache)
        self._lines.tally.add(MISS)

    async def _try(self, key: CacheKey) -> bool:
        try:
            if self._remote is None:
                self._lines.info(NO_URL)
            elif not await self._download(self._remote, key):
                return False
            with self._local.opened(key.stored) as stored:
                if stored is None:
                    self._lines.warning(NOT_THERE)
                    return False
                await self._extract(stored)
        except (ArchiveError, WorkspaceError) as error:
            self._lines.fatal(str(error))
            return False
        except OSError as error:
            self._lines.warning(NOT_THERE, error=error.strerror)
            return False
        return True

    async def _extract(self, stored: Stored) -> None:
        project = self._plan.directories.project
        await unpack(self._environment.files, project, stored.path, format=sniff(stored.path), limits=Limits())

    async def _download(self, remote: ObjectStore, key: CacheKey) -> bool:
        """Bring the archive here unless it is here already; whether there is one."""
        last: StoreError | None = None
        for _ in self._transfer.tries():
            if last is not None:
                self._lines.warning("Retrying...", error=last)
                await asyncio.sleep(self._transfer.PAUSE_S)
            try:
                await self._download_once(remote, key)
                return True
            except StoreError as error:
                last = error
                if not error.is_passing:
                    break
        self._lines.warning(str(last))
        return False

    async def _download_once(self, remote: ObjectStore, key: CacheKey) -> None:
        self._lines.info("Using presigned URL for cache download")
        try:
            await self._fetch(remote, key, self._transfer.object_name(key))
        except StoreError as error:
            other = key.other
            if not error.is_missing or not other.stored:
                raise
            name = self._transfer.object_name(other)
            if not await remote.exists(name, timeout_s=self._plan.settings.cache_request_timeout_s):
                raise
            self._lines.info("Selecting alternate cache URL: primary not available", alternate_url=remote.url(name))
            await self._fetch(remote, key, name)

    async def _fetch(self, remote: ObjectStore, key: CacheKey, name: str) -> None:
        with self._local.opened(key.stored) as stored, self._local.draft(key.stored, self._transfer.writer) as draft:
            async with self._transfer.how(Move.DOWNLOAD_CACHE, self._plan.variables.get) as how:
                found = await remote.fetch(
                    name,
                    draft.fd,
                    how,
                    tag=stored.tag if stored is not None else "",
                    since_ns=stored.mtime_ns if stored is not None else 0,
                    on_begin=lambda: self._lines.info(f"Downloading cache from {remote.url(name)}"),
                )
            if not found.is_new:
                self._lines.info("cache.zip is up to date")
                return
            await asyncio.to_thread(draft.keep, found.metadata or {}, mtime_ns=found.modified_ns, tag=found.tag)

    async def _clear(self, cache: Cache) -> None:
        """Take away what a broken archive may have left of its paths."""
        selector = Selector(self._plan, self._environment, self._lines)
        await selector.look_around("running")
        project = self._plan.directories.project
        for path in cache.paths:
            self._lines.raw(b"\x1b[0;mRemoving " + path.encode(errors="surrogateescape") + b"\n")
            chosen = await selector.select([path], untracked=False, silently=True)
            if any(entry.path == ROOT for entry in chosen.members):
                self._lines.warning(PROJECT_STAYS)
                continue
            try:
                await self._environment.files.remove([f"{project}/{entry.path}" for entry in chosen.members])
            except WorkspaceError as error:
                self._lines.warning(str(error))
