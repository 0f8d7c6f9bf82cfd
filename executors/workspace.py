"""The files of a job: read, written and listed without ever following what the job has planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

PIECE_BYTES = 1024 * 1024
ZEROS = bytes(PIECE_BYTES)


class Entry(NamedTuple):
    """A file below a workspace root, as :meth:`Workspace.list` gives it. ``path`` is relative, ``/``-separated.

    ``target`` is what a link contains. ``source`` is where the file lies below the root when ``path`` is another name for
    it (one that goes through a link); empty otherwise. ``owner`` are the numbers of user and group, None where they do not
    matter. A tuple, since trees have many: a frozen dataclass takes three times as long to make.
    """

    path: str
    kind: str  # "file", "dir", "link", "other"
    mode: int
    size: int
    mtime_ns: int
    target: str = ""
    source: str = ""
    owner: tuple[int, int] | None = None


class FileContent(Protocol):
    """A regular file of a workspace whose turn has come. ``size`` is what it had then; ``error`` why it cannot be read."""

    path: str
    size: int
    error: str

    def pieces(self) -> Iterator[bytes]:
        """The content, once: pieces of :data:`PIECE_BYTES` and a shorter last one, at most ``size`` bytes, fewer where the
        file has shrunk. What lies in a hole may be :data:`ZEROS` itself."""
        ...


class FilesReader(Protocol):
    """Files in the order in which they were asked for; taken by any one thread, which it may block.

    A file is read, or not, before the next one is asked for. Raises :class:`WorkspaceError`.
    """

    def __iter__(self) -> Iterator[FileContent]:
        """Each file once."""
        ...

    def close(self) -> None:
        """End it, from any thread: whoever waits for a file gets a :class:`WorkspaceError`."""
        ...

    def dispose(self) -> None:
        """Give everything back, when no thread is in it any more."""
        ...


class EntriesWriter(Protocol):
    """Makes entries below a root, for any one thread, which it may block.

    Paths are clean and relative. Directories above an entry are made. A file, link or empty directory in the place of a file
    or link is removed first; no link is followed. Files and links get owner (where that is possible), time and mode at
    once, directories at the end. Raises :class:`EntryRefused`, not always at the call for the same entry.
    """

    def add_dir(self, entry: Entry) -> None:
        """A directory; one that is there will do. The root is called ``.``."""
        ...

    def add_file(self, entry: Entry, content: Callable[[], Iterator[bytes]], *, is_shared: bool) -> None:
        """A file of ``entry.size`` bytes. With ``is_shared`` the content may be asked for in another thread, and later."""
        ...

    def add_link(self, entry: Entry) -> None:
        """A symbolic link to ``entry.target``. No file is added after the first of them."""
        ...

    def finish(self) -> None:
        """Wait until all is there, and give directories what they shall have."""
        ...

    def close(self) -> None:
        """End it, from any thread: whoever waits gets a :class:`WorkspaceError`."""
        ...

    def dispose(self) -> None:
        """Give everything back, when no thread is in it any more."""
        ...


class Workspace(Protocol):
    """Files of a job, touched with the job user's rights and never through a symbolic link that the job planted.

    Paths are absolute and must lie below ``project_dir`` or ``tmp_dir`` of the spec (or be one of them); every component
    below that root is opened without following links. Errors: :class:`WorkspaceError`, which names operation and path.
    """

    async def make_dir(self, path: str, *, parents: bool = True) -> None:
        """Create a directory (and the ones above it, also above the root); an existing one is fine."""
        ...

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """Create or replace a regular file; a link or other thing in its place is removed first."""
        ...

    async def read(self, path: str, *, limit: int = 16 * 1024 * 1024) -> bytes | None:
        """The content of a regular file, at most ``limit`` bytes of it; None when there is none."""
        ...

    async def read_files(self, root: str, paths: Sequence[str]) -> FilesReader:
        """Regular files below ``root``, to be read one after the other; what is none is an error of its own."""
        ...

    async def write_entries(self, root: str) -> EntriesWriter:
        """Makes entries below ``root``, which is made, too."""
        ...

    async def remove(self, paths: Sequence[str]) -> None:
        """Remove files, links and whole trees (made writable first where needed); missing ones are fine."""
        ...

    async def remove_matching(self, root: str, names: Sequence[str], *, suffixes: Sequence[str] = ()) -> None:
        """Remove entries below ``root`` with one of these base names, or regular files with one of these suffixes."""
        ...

    async def list(self, root: str, *, max_depth: int | None = None) -> list[Entry]:
        """What lies below ``root``, links not followed; empty when it does not exist."""
        ...

    async def exists(self, path: str) -> bool:
        """Whether something is there (a dangling link too)."""
        ...


@runtime_checkable
class HasScratch(Protocol):
    """A workspace in which files of the runner's can be put where the job wants them."""

    async def scratch(self, root: str, directory: str) -> int:
        """A descriptor, for reading and writing, of a file without a name in a directory, with the job user's rights.

        A ``directory`` that is not absolute is one of ``root``. Raises :class:`WorkspaceError`.
        """
        ...
