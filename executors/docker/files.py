"""File operations in a job's volumes, carried out by the helper's shell.

The helper belongs to one job, its own root cannot be written to, and nothing is mounted in it but what the job has, too.
But it may do there what the job's user may not, so no link is followed that stands in the place of a directory between the
directory of builds and what is asked for: it is taken away where something is to be made, else there is nothing.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING

from executors.base import Output, Stream
from executors.docker.carried import SMALL_BYTES, Carrier, ReadBefore
from executors.docker.helper import INPUT, quote
from executors.docker.transfers import Exec, TarReader, TarWriter
from executors.errors import WorkspaceError
from executors.workspace import EntriesWriter, Entry, FilesReader

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.helper import Helper

# Words of one command; arguments of programs are limited.
BATCH = 500
ERROR_BYTES = 2000
LIST = "/tmp/pyrunner-paths"  # noqa: S108 - in the container
ERRORS = "/tmp/pyrunner-tar"  # noqa: S108 - the same
KINDS = {"f": "file", "d": "dir", "l": "link"}
NO_SUCH = 42
# GNU find says everything; others need help for it, a program for each link.
_LIST = """
{enter}if find / -maxdepth 0 -printf '' 2>/dev/null; then
exec find . -mindepth 1 {depth} -printf '%y %m %s %T@ %P\\0%l\\0' 2>/dev/null
fi
find . -mindepth 1 {depth} -exec sh -c '
for path; do
about=$(stat -c "%f %s %Y" "$path" 2>/dev/null) || continue
target=; if [ -L "$path" ]; then target=$(readlink "$path"; echo .); target=${{target%??}}; fi
printf "raw %s %s\\0%s\\0" "$about" "${{path#./}}" "$target"
done' sh {{}} + 2>/dev/null
exit 0
"""


class HelperFiles:
    """A :class:`executors.workspace.Workspace` in the volumes of a helper; ``top`` is the directory of builds."""

    def __init__(self, engine: Engine, helper: Helper, top: str) -> None:
        self._engine = engine
        self._helper = helper
        self._top = top.rstrip("/")

    async def _do(self, what: str, text: str) -> tuple[int, bytes]:
        """Run commands; their status and what they print. Raises :class:`WorkspaceError` for any other failure."""
        found: list[bytes] = []
        errors: list[bytes] = []

        def keep(piece: Output) -> None:
            (found if piece.stream is Stream.STDOUT else errors).append(piece.data)

        status = await self._helper.run(text, keep)
        if status not in (0, NO_SUCH):
            said = b"".join(errors)[:ERROR_BYTES].decode(errors="replace").strip()
            raise WorkspaceError(f"{what}: {said or f'exit code {status}'}")
        return status, b"".join(found)

    async def make_dir(self, path: str, *, parents: bool = True) -> None:
        """See :class:`executors.workspace.Workspace`."""
        await self._do(f"make dir {path}", f"{self._clear(f'{path}/')}mkdir -p {quote(path)}")

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See :class:`executors.workspace.Workspace`. The user of an image must be able to read and change it, whoever that
        is (``docker-executor.md`` 2.9)."""
        place = quote(path)
        text = f"{self._clear(path)}mkdir -p {quote(posixpath.dirname(path))} && rm -rf {place} && {_print(data)} >{place} && "
        await self._do(f"write {path}", text + f"chmod {mode | 0o666:o} {place}")

    async def read(self, path: str, *, limit: int = 16 * 1024 * 1024) -> bytes | None:
        """See :class:`executors.workspace.Workspace`."""
        place = quote(path)
        text = self._enter(posixpath.dirname(path), f"exit {NO_SUCH}")
        text += f"if [ -L {place} ] || [ ! -f {place} ]; then exit {NO_SUCH}; fi\nexec head -c {limit} {place}"
        status, data = await self._do(f"read {path}", text)
        return None if status == NO_SUCH else data

    async def read_files(self, root: str, paths: Sequence[str]) -> FilesReader:
        """See :class:`executors.workspace.Workspace`."""
        text = "".join(f"printf '%s\\0' {_words(batch)} >>{LIST}\n" for batch in _batches(paths))
        script = (
            f"{self._enter(root, 'exit 0')}if tar --version 2>/dev/null | grep -q GNU; then\n"
            f"exec tar -cf - --no-recursion --hard-dereference --ignore-failed-read --null --no-unquote -T {LIST} 2>/dev/null\n"
            f"fi\nexec xargs -0 tar -cf - <{LIST} 2>/dev/null"
        )
        _, data = await self._do("read files", f"rm -f {LIST}\n{text}(\n{script}\n) | head -c {SMALL_BYTES + 1}")
        if len(data) <= SMALL_BYTES:
            return TarReader(ReadBefore(data), paths)
        return TarReader(Exec(self._engine, self._helper.container, script), paths)

    async def write_entries(self, root: str) -> EntriesWriter:
        """See :class:`executors.workspace.Workspace`."""
        await self._helper.start()
        script = f"umask {self._helper.umask}\n{self._clear(f'{root}/')}mkdir -p {quote(root)} && cd {quote(root)} || exit\n"
        behind = f" 2>{ERRORS} || {{ status=$?; head -c 2000 {ERRORS} >&2; exit $status; }}"
        carrier = Carrier(self._helper, f"{script}tar -xpf {INPUT}{behind}")
        return TarWriter(Exec(self._engine, self._helper.container, f"{script}tar -xpf -{behind}"), root, carrier)

    async def remove(self, paths: Sequence[str]) -> None:
        """See :class:`executors.workspace.Workspace`."""
        if paths:
            text = self._clear(*paths)
            text += "".join(f"rm -rf -- {_words(batch)} || exit\n" for batch in _batches(paths))
            await self._do("remove", text)

    async def remove_matching(self, root: str, names: Sequence[str], *, suffixes: Sequence[str] = ()) -> None:
        """See :class:`executors.workspace.Workspace`."""
        tests = [f"-name {quote(_literal(name))}" for name in names]
        tests += [f"-type f -name {quote('*' + _literal(suffix))}" for suffix in suffixes]
        if tests:
            place = quote(root)
            chosen = " -o ".join(tests)
            text = self._enter(root, "exit 0")
            text += f"find {place} -mindepth 1 \\( {chosen} \\) -prune -exec rm -rf -- {{}} +"
            await self._do(f"remove in {root}", text)

    async def list(self, root: str, *, max_depth: int | None = None) -> list[Entry]:
        """See :class:`executors.workspace.Workspace`."""
        depth = "" if max_depth is None else f"-maxdepth {max_depth}"
        _, raw = await self._do(f"list {root}", _LIST.format(enter=self._enter(root, "exit 0"), depth=depth))
        fields = raw.decode(errors="surrogateescape").split("\0")
        found = [_entry(about, target) for about, target in zip(fields[::2], fields[1::2], strict=False)]
        return sorted(found, key=lambda entry: entry.path.split("/"))

    async def exists(self, path: str) -> bool:
        """See :class:`executors.workspace.Workspace`."""
        text = f"if [ -e {quote(path)} ] || [ -L {quote(path)} ]; then exit 0; fi\nexit {NO_SUCH}"
        status, _ = await self._do(f"look for {path}", text)
        return status == 0

    def _clear(self, *paths: str) -> str:
        """Commands that take away links in the place of directories above these paths; one that ends in a slash is a
        directory itself."""
        ways: dict[str, None] = {}
        for path in paths:
            if path.startswith(f"{self._top}/"):
                parts = path[len(self._top) + 1 :].split("/")[:-1]
                ways |= dict.fromkeys(f"{self._top}/{'/'.join(parts[:length])}" for length in range(1, len(parts) + 1))
        return "".join(f"if [ -L {quote(way)} ]; then rm -f -- {quote(way)} || exit; fi\n" for way in ways)

    def _enter(self, directory: str, otherwise: str) -> str:
        """Commands that go to a directory, or do something else where it is missing or a link leads there."""
        there = quote(directory)
        if directory != self._top and not directory.startswith(f"{self._top}/"):
            return f"cd {there} 2>/dev/null || {otherwise}\n"
        inside = quote(directory[len(self._top) :])
        return (
            f'top=$(cd {quote(self._top)} 2>/dev/null && pwd -P) && cd {there} 2>/dev/null && [ "$(pwd -P)" = "$top"{inside} ] '
            f"|| {otherwise}\n"
        )


def _entry(about: str, target: str) -> Entry:
    """An entry as GNU find or the loop describes it."""
    if about.startswith("raw "):
        _, mode, size, seconds, path = about.split(" ", 4)
        bits = int(mode, 16)
        kind = {0o100000: "file", 0o040000: "dir", 0o120000: "link"}.get(bits & 0o170000, "other")
        return _made(path, kind, bits & 0o7777, size, int(seconds) * 10**9, target)
    letter, mode, size, moment, path = about.split(" ", 4)
    whole, _, fraction = moment.partition(".")
    time_ns = int(whole) * 10**9 + int(fraction[:9].ljust(9, "0"))
    return _made(path, KINDS.get(letter, "other"), int(mode, 8), size, time_ns, target)


def _made(path: str, kind: str, mode: int, size: str, mtime_ns: int, target: str) -> Entry:
    return Entry(path=path, kind=kind, mode=mode, size=int(size), mtime_ns=mtime_ns, target=target)


def _batches(words: Sequence[str]) -> list[Sequence[str]]:
    return [words[at : at + BATCH] for at in range(0, len(words), BATCH)]


def _words(words: Sequence[str]) -> str:
    return " ".join(map(quote, words))


def _literal(name: str) -> str:
    """A name as a pattern that means nothing else."""
    return "".join(f"\\{letter}" if letter in "\\*?[]" else letter for letter in name)


def _print(data: bytes) -> str:
    """A command that prints bytes, whatever they are."""
    if b"\0" in data:
        escaped = "".join(chr(byte) if 48 <= byte < 123 and byte != 92 else f"\\{byte:03o}" for byte in data)
        return f"printf {quote(escaped)}"
    return f"printf %s {quote(data.decode(errors='surrogateescape'))}"
