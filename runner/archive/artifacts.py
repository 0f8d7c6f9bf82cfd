"""Artifacts as files on their way: names, formats, and the bytes of an archive while it is being packed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from executors.workspace import Entry
from runner.archive.formats import Format
from runner.archive.pack import Packed, Sink
from runner.errors import ArchiveError

DEFAULT_NAME = "artifacts"
SUFFIXES = {"": ".zip", "zip": ".zip", "zipzstd": ".zip", "gzip": ".gz", "tarzstd": ".tar.zst", "raw": ""}
# So many pieces may wait for the network while the next ones are packed.
PIECES_AHEAD = 16


def file_name(name: str, artifact_format: str) -> str:
    """The name of the uploaded file: the last component of the expanded name, with the ending of its format.

    A format that nobody knows raises :class:`ArchiveError`.
    """
    if artifact_format not in SUFFIXES:
        raise ArchiveError(f'"{artifact_format}" format: unsupported archive format')
    base = name.rstrip("/").rpartition("/")[2]
    if not name or base == ".":
        base = "default"
    return base + SUFFIXES[artifact_format]


def format_of(artifact_format: str, members: Sequence[Entry]) -> Format:
    """How to pack, after a look at whether that can be done. Raises :class:`ArchiveError`."""
    found = Format(artifact_format or "zip")
    if found is Format.RAW and (len(members) != 1 or members[0].kind != "file"):
        raise ArchiveError("only one file can be sent as raw")
    if found is Format.GZIP:
        for member in members:
            if member.kind != "file":
                raise ArchiveError(f'the "{member.path}" is not a regular file')
    return found


class Content:
    """The bytes of an archive, packed anew for whoever asks for them from the first one on.

    ``make`` packs into the sink that it is given. ``error`` is why the last packing failed: it breaks the request off, and
    the error of the request says less. ``on_piece`` hears of every piece's size, ``size`` is that of the last packing.
    """

    def __init__(self, make: Callable[[Sink], Awaitable[Packed]], *, on_piece: Callable[[int], None]) -> None:
        self._make = make
        self._on_piece = on_piece
        self.error: Exception | None = None
        self.size = 0

    async def __call__(self) -> AsyncIterator[bytes]:
        """Pieces as they come; packing goes on a bounded number of pieces ahead."""
        self.error, self.size = None, 0
        pieces: asyncio.Queue[bytes | None] = asyncio.Queue(PIECES_AHEAD)

        async def run() -> None:
            try:
                await self._make(pieces.put)
            except Exception as error:  # noqa: BLE001 - whoever sends the archive raises it
                self.error = error
            await pieces.put(None)

        packing = asyncio.create_task(run(), name="pack")
        try:
            while (piece := await pieces.get()) is not None:
                self._on_piece(len(piece))
                self.size += len(piece)
                yield piece
            if self.error is not None:
                # Without its end the body is void: the server must not take half an archive.
                raise self.error
            await packing
        finally:
            packing.cancel()
