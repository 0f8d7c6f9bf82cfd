"""Archives of caches in a bucket: S3, Google Cloud Storage or Azure (``job-lifecycle.md`` 12.6), through obstore.

The daemon itself moves the bytes wherever it reaches the files of a job: neither credentials nor signed addresses get
near it. Only a place that takes nothing but scripts gets addresses that are good for one object and a while.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from executors.file_operations import write_all
from runner.errors import ArchiveError

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ObjectStore as Bucket

CONTENT_TYPE = "application/octet-stream"
CACHE_KEY = "cachekey"
PART_BYTES = 16 * 1024 * 1024
# So many parts are in memory at once.
PARTS_AHEAD = 4
SIGN_TIMEOUT_S = 30.0
_ANSWERED = re.compile(r"Server returned non-2xx status code: (\d{3}[^:]*):?(.*)", re.DOTALL)
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")


class StoreError(ArchiveError):
    """A store refused or could not be reached. ``is_missing``: there is no such object; ``is_passing``: try again."""

    def __init__(self, text: str, *, is_missing: bool = False, is_passing: bool = False) -> None:
        super().__init__(text)
        self.is_missing = is_missing
        self.is_passing = is_passing


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """An object. ``is_new`` tells whether it is another version than the one that was named, or newer than the time."""

    is_new: bool
    size: int = 0
    modified_ns: int = 0
    tag: str = ""
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """How bytes are moved. ``streams`` > 1 fetches parts of ``part_bytes`` side by side; ``on_piece`` hears of sizes."""

    timeout_s: float
    part_bytes: int = PART_BYTES
    streams: int = 1
    on_piece: Callable[[int], None] = lambda _: None


class ObjectStore:
    """A bucket. ``base`` is the address of its objects, for the log, unless ``is_secret`` is set. Every error
    is a :class:`StoreError`."""

    def __init__(self, bucket: Bucket, base: str) -> None:
        self.is_secret = False
        self._bucket = bucket
        self._base = base.rstrip("/")

    def url(self, name: str) -> str:
        """The address of an object, as the log has it."""
        if self.is_secret:
            return "remote storage"
        from urllib.parse import quote

        return f"{self._base}/{quote(name)}"

    async def signed(self, name: str, method: Literal["GET", "PUT"], *, seconds: float) -> str:
        """An address by which whoever has it may fetch or store this object for a while: it is a secret."""
        import obstore

        try:
            async with _translated(SIGN_TIMEOUT_S):
                return await obstore.sign_async(self._bucket, method, name, timedelta(seconds=seconds))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise StoreError(f"the store cannot sign addresses: {error}") from error

    async def exists(self, name: str, *, timeout_s: float) -> bool:
        """Whether an object is there."""
        import obstore

        try:
            async with _translated(timeout_s):
                await obstore.head_async(self._bucket, name)
        except StoreError as error:
            if error.is_missing:
                return False
            raise
        return True

    async def fetch(self, name: str, fd: int, how: Transfer, *, tag: str, since_ns: int, on_begin: Callable[[], None]) -> Fetched:
        """Bring an object into a file, unless it is the version ``tag`` or no newer than ``since_ns`` (0: whatever there is).

        One request asks and answers; ``on_begin`` is called when bytes are about to come.
        """
        import obstore
        from obstore.exceptions import NotModifiedError

        options: dict[str, Any] = {}
        if tag:
            options["if_none_match"] = tag
        if since_ns:
            # Servers that know both look at the tag alone.
            options["if_modified_since"] = datetime.fromtimestamp(since_ns // 10**9, UTC)
        async with _translated(how.timeout_s):
            try:
                found = await obstore.get_async(self._bucket, name, options=options)  # type: ignore[arg-type]
            except NotModifiedError:
                return Fetched(is_new=False)
            about = found.meta
            modified_ns = int(about["last_modified"].timestamp()) * 10**9
            own_tag = about["e_tag"] or ""
            is_same = tag == own_tag if tag and own_tag else 0 < modified_ns <= since_ns
            if is_same:
                return Fetched(is_new=False)
            on_begin()
            if how.streams > 1 and about["size"] > how.part_bytes:
                await self._fetch_parts(name, fd, about["size"], own_tag, how)
            else:
                await self._fetch_whole(found, fd, how)
            metadata = {str(key).lower(): str(value) for key, value in found.attributes.items()}
            return Fetched(
                is_new=True,
                size=about["size"],
                modified_ns=modified_ns,
                tag=own_tag,
                metadata={key: value for key, value in metadata.items() if not key.startswith("content-")},
            )

    async def _fetch_whole(self, found: GetResult, fd: int, how: Transfer) -> None:
        left = found.meta["size"]
        async for piece in found.stream(min_chunk_size=1024 * 1024):
            await asyncio.to_thread(write_all, fd, bytes(piece))
            how.on_piece(len(piece))
            left -= len(piece)
        if left:
            raise StoreError(f"the archive is {left} bytes short", is_passing=True)

    async def _fetch_parts(self, name: str, fd: int, size: int, tag: str, how: Transfer) -> None:
        """Parts side by side, all of one version."""
        import obstore

        starts = iter(range(0, size, how.part_bytes))

        async def work() -> None:
            for start in starts:
                end = min(start + how.part_bytes, size)
                options: dict[str, Any] = {"range": (start, end)}
                if tag:
                    options["if_match"] = tag
                part = await obstore.get_async(self._bucket, name, options=options)  # type: ignore[arg-type]
                content = bytes(await part.bytes_async())
                if len(content) != end - start:
                    raise StoreError(f"received {len(content)} bytes instead of {end - start}", is_passing=True)
                await asyncio.to_thread(_write_at, fd, content, start)
                how.on_piece(len(content))

        async with asyncio.TaskGroup() as group:
            for _ in range(min(how.streams, -(-size // how.part_bytes))):
                group.create_task(work())

    async def store(self, name: str, source: Path, size: int, metadata: dict[str, str], how: Transfer) -> str:
        """Store a file under a name; the tag of the new version. A big one goes up in parts."""
        import obstore

        attributes: dict[str, str] = {"Content-Type": CONTENT_TYPE, **metadata}
        async with _translated(how.timeout_s):
            found = await obstore.put_async(
                self._bucket,
                name,
                source,
                attributes=attributes,
                use_multipart=size > how.part_bytes,
                chunk_size=how.part_bytes,
                max_concurrency=PARTS_AHEAD,
            )
            how.on_piece(size)
            return found["e_tag"] or ""


def _write_at(fd: int, content: bytes, start: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, start)
        view, start = view[written:], start + written


@asynccontextmanager
async def _translated(timeout_s: float) -> AsyncIterator[None]:
    """Errors of the library as ours: what the server said, and nothing of what was asked for."""
    from obstore.exceptions import BaseError

    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise StoreError(f"no answer within {timeout_s:g} s", is_passing=True) from error
    except ExceptionGroup as group:
        first = next((one for one in group.exceptions if isinstance(one, StoreError | BaseError | OSError)), None)
        if first is None:
            raise
        raise (first if isinstance(first, StoreError) else _translate(first)) from None
    except (BaseError, OSError) as error:
        raise _translate(error) from None


def _translate(error: Exception) -> StoreError:
    if isinstance(error, OSError) and error.errno is not None:
        return StoreError(f"cache.zip: {os.strerror(error.errno)}")  # of this host: the library's errors have no number
    text = str(error).partition("\n\nDebug source")[0]
    answered = _ANSWERED.search(text)
    if answered is None:
        if isinstance(error, FileNotFoundError):
            return StoreError("file does not exist", is_missing=True)
        cause = text.rpartition(" - ")[2].partition("\n")[0]
        return StoreError(_without_query(cause or type(error).__name__), is_passing=True)
    status, body = answered[1].strip(), answered[2]
    code, message = _CODE.search(body), _MESSAGE.search(body)
    if status.startswith("404") and not (code and code[1] == "NoSuchBucket"):
        return StoreError("file does not exist", is_missing=True)
    details = f". Request failed with code: {code[1]}, message: {message[1]}" if code and message else ""
    is_passing = status.startswith(("5", "408", "429"))
    return StoreError(f"received: {status}{details}", is_passing=is_passing)


def _without_query(text: str) -> str:
    return re.sub(r"\?\S*", "", text)


# Times that the library keeps; how long a whole transfer may take is ours.
CLIENT_OPTIONS: dict[str, Any] = {"connect_timeout": timedelta(seconds=30), "timeout": timedelta(hours=24)}
# Tries are ours, since each has its lines in the job's log.
NO_RETRIES: dict[str, Any] = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
