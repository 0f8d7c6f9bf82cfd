"""Reading tar files in zstandard: once to learn what is in them, once more for the contents."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import zstandard

from executors.base import Entry
from runner.archive.members import PATH_MAX, Limits, Member
from runner.errors import ArchiveError

PIECE_BYTES = 1024 * 1024
INVALID = "tar: not a valid tar.zst file"
KINDS = {tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "link"}
# zstd --ultra --long=31 is for those who can spend the memory: nobody writes caches with it.
WINDOW_BYTES = 128 * 1024 * 1024
_WRONG = (tarfile.TarError, zstandard.ZstdError, EOFError, ValueError, OverflowError)


class TarSource:
    """See :class:`runner.archive.members.Source`."""

    is_in_order = True

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self._members: list[Member] = []
        self._targets: dict[int, str] = {}
        self._reader: Generator[tuple[int, Iterator[bytes]], None, None] | None = None
        size = 0
        try:
            with _opened(path) as archive:
                for number, about in enumerate(archive):
                    size += about.size
                    if number >= limits.entries or size > limits.size_bytes:
                        raise ArchiveError(f"the archive is too big: more than {number} entries, {size} bytes")
                    self._members.append(Member(number, about.name, _entry(about)))
                    if about.issym():
                        self._targets[number] = about.linkname
                    archive.members = []  # type: ignore[attr-defined]  # they would all be kept
        except _WRONG as error:
            raise ArchiveError(INVALID) from error

    @property
    def members(self) -> Sequence[Member]:
        """See :class:`runner.archive.members.Source`."""
        return self._members

    def target(self, member: Member) -> str:
        """See :class:`runner.archive.members.Source`."""
        target = self._targets[member.number]
        if len(target) > PATH_MAX:
            raise ArchiveError(f"{member.name} cannot be extracted: the target of the link is too long")
        return target

    def content(self, member: Member) -> Iterator[bytes]:
        """See :class:`runner.archive.members.Source`."""
        if self._reader is None:
            self._reader = self._contents()
        for number, content in self._reader:
            if number == member.number:
                yield from content
                return
        raise ArchiveError(INVALID)

    def close(self) -> None:
        """See :class:`runner.archive.members.Source`."""
        if self._reader is not None:
            self._reader.close()

    def _contents(self) -> Generator[tuple[int, Iterator[bytes]], None, None]:
        try:
            with _opened(self._path) as archive:
                for number, about in enumerate(archive):
                    yield number, _pieces(archive, about)
                    archive.members = []  # type: ignore[attr-defined]
        except _WRONG as error:
            raise ArchiveError(INVALID) from error


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
    with (
        path.open("rb") as file,
        decompressor.stream_reader(file, read_across_frames=True, closefd=False) as reader,
        tarfile.open(fileobj=reader, mode="r|", bufsize=PIECE_BYTES, errors="surrogateescape") as archive,
    ):
        yield archive


def _pieces(archive: tarfile.TarFile, about: tarfile.TarInfo) -> Iterator[bytes]:
    content = archive.extractfile(about) if about.isreg() else None
    if content is None:
        return
    left = about.size
    while left:
        piece = content.read(min(PIECE_BYTES, left))
        if not piece:
            raise ArchiveError(INVALID)
        left -= len(piece)
        yield piece


def _entry(about: tarfile.TarInfo) -> Entry:
    """Set-uid, set-gid and sticky are dropped; devices, FIFOs and hard links are "other"."""
    kind = KINDS.get(about.type, "other")
    if about.isreg() and kind == "other":
        kind = "file"  # sparse
    return Entry(path="", kind=kind, mode=about.mode & 0o777, size=about.size, mtime_ns=int(about.mtime) * 10**9)
