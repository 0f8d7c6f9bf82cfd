"""Archives of any bytes: a clear error or a right result, bounded memory, nothing outside of the root.

The writer is the real end of a file channel, in a thread of this process.
"""

from __future__ import annotations

import io
import os
import socket
import stat
import tarfile
import tempfile
import threading
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from executors.errors import EntryRefused
from executors.file_channel import serve_channel
from executors.file_feed import Channel, FeedWriter
from executors.file_operations import Roots
from executors.workspace import Entry
from runner.archive.formats import Format
from runner.archive.members import Limits
from runner.archive.tar_header import BadHeader, make_header, parse_extension, parse_header
from runner.archive.unpack import Unpacker, open_archive
from runner.errors import ArchiveError
from tests.fuzz.mutation import mutated

LIMITS = Limits(entries=200, size_bytes=4 << 20, names_bytes=64 << 10)
MEMORY_BYTES = 24 << 20
SECRET = "precious"


@contextmanager
def scene() -> Iterator[tuple[Path, FeedWriter]]:
    """A project below which a writer makes entries, and a file beside it that must stay as it is."""
    with tempfile.TemporaryDirectory(dir=Path("/dev/shm") if Path("/dev/shm").is_dir() else None) as folder:
        root = Path(folder)
        (root / "p").mkdir()
        (root / SECRET).write_text(SECRET)
        (root / "p" / "out").symlink_to("..")
        channel = Channel(root)
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.connect(str(root / channel.name))

        def serve() -> None:
            with ours:
                try:
                    serve_channel(ours, Roots([str(root / "p")]), str(root / "p"))
                except OSError:
                    pass  # the other end has closed

        channel.accept()
        thread = threading.Thread(target=serve)
        thread.start()
        writer = FeedWriter(channel, str(root / "p"))
        try:
            yield root, writer
        finally:
            writer.close()
            writer.dispose()
            thread.join()
            assert (root / SECRET).read_text() == SECRET
            assert sorted(os.listdir(root)) == ["p", SECRET]
            for path in (root / "p").rglob("*"):
                assert not path.lstat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
                assert path.is_symlink() or path.is_dir() or path.is_file()
            for path in (root / "p").rglob("*"):
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o700)


def unpack(raw: bytes, kind: Format) -> dict[str, bytes] | None:
    """What came out, None for an error that was explained."""
    with scene() as (root, writer):
        # Open and without a name: nothing but what the archive makes may stand beside the project.
        with tempfile.TemporaryFile() as file:
            file.write(raw)
            file.flush()
            tracemalloc.start()
            try:
                source = open_archive(Path(f"/proc/self/fd/{file.fileno()}"), kind, LIMITS)
                try:
                    Unpacker(str(root / "p"), source, writer).run()
                finally:
                    writer.close()
                    writer.dispose()
                    source.close()
            except ArchiveError as error:
                problem = str(error)
            except EntryRefused as error:
                problem = str(error)
            else:
                problem = ""
            finally:
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
        assert peak < MEMORY_BYTES
        if problem:
            assert problem.isprintable()
            return None
        return {
            str(path.relative_to(root / "p")): path.read_bytes()
            for path in (root / "p").rglob("*")
            if path.is_file() and not path.is_symlink()
        }


FILES = {"a/b/c": b"compressible " * 400, "ü": b"x", "d/e": os.urandom(3000), "big": bytes(200_000) + b"end"}


def good_zip(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
        archive.writestr("d/", b"")
        link = zipfile.ZipInfo("l")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, b"../precious")
        archive.writestr("l2/../f", b"inside")
    return out.getvalue()


def good_tar(kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind, encoding="utf-8") as archive:
        for name, content in {**FILES, "n" * 150 + "/long": b"long"}.items():
            about = tarfile.TarInfo(name)
            about.size, about.mtime, about.mode = len(content), 1.5, 0o6755
            archive.addfile(about, io.BytesIO(content))
        about = tarfile.TarInfo("l")
        about.type, about.linkname = tarfile.SYMTYPE, "../precious"
        archive.addfile(about)
    return out.getvalue()


ZIP, TAR, GNU_TAR = good_zip(), good_tar(), good_tar(tarfile.GNU_FORMAT)
ZIP_WORDS = [
    b"PK\1\2",
    b"PK\3\4",
    b"PK\5\6",
    b"PK\6\6",
    b"PK\6\7",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\0" * 4,
    b"../",
    b"/",
    b"\0",
    b"l/",
]
TAR_WORDS = [b"x", b"g", b"L", b"K", b"S", b"1", b"2", b"5", b"\xff" * 8, b"\x80", b"\0" * 512, b"../", b"/", b"77777777777\0"]


@pytest.mark.parametrize("kind", [Format.ZIP, Format.TARZSTD])
@given(raw=st.binary(max_size=2000))
def test_any_bytes(kind: Format, raw: bytes) -> None:
    assert unpack(raw, kind) is None


def test_what_is_right_comes_out() -> None:
    want = {**FILES, "f": b"inside"}
    assert unpack(ZIP, Format.ZIP) == want
    assert unpack(good_zip(zipfile.ZIP_STORED), Format.ZIP) == want
    assert unpack(b"before" + ZIP, Format.ZIP) == want, "something may stand before it"
    for tar in (TAR, GNU_TAR):
        assert unpack(zstandard.ZstdCompressor().compress(tar), Format.TARZSTD) == {**FILES, "n" * 150 + "/long": b"long"}


@given(mutated(ZIP, ZIP_WORDS))
def test_damaged_zip_files(raw: bytes) -> None:
    unpack(raw, Format.ZIP)


@given(mutated(good_zip(zipfile.ZIP_STORED), ZIP_WORDS))
def test_damaged_zip_files_without_compression(raw: bytes) -> None:
    unpack(raw, Format.ZIP)


@given(st.sampled_from([TAR, GNU_TAR]).flatmap(lambda tar: mutated(tar, TAR_WORDS)))
def test_damaged_tar_files(raw: bytes) -> None:
    unpack(zstandard.ZstdCompressor(level=1).compress(raw), Format.TARZSTD)


@given(mutated(zstandard.ZstdCompressor().compress(TAR), [b"\x28\xb5\x2f\xfd", b"\xff" * 4, b"\0" * 4]))
def test_damaged_frames(raw: bytes) -> None:
    unpack(raw, Format.TARZSTD)


@given(st.integers(0, len(TAR) - 1))
def test_a_tar_file_that_breaks_off_is_an_error(size: int) -> None:
    whole = TAR.rstrip(b"\0")
    if size < len(whole):
        assert unpack(zstandard.ZstdCompressor(level=1).compress(TAR[:size]), Format.TARZSTD) is None


@given(st.lists(st.tuples(st.sampled_from("xgLK"), st.integers(0, 3000)), max_size=300))
def test_chains_of_extensions_are_bounded(chain: list[tuple[str, int]]) -> None:
    out = io.BytesIO()
    for kind, size in chain:
        about = tarfile.TarInfo("ext")
        about.type, about.size = kind.encode(), size
        content = b"%d k=%s\n" % (size, b"v" * max(size - len(b"%d k=\n" % size), 0)) if kind in "xg" else b"n" * size
        out.write(about.tobuf(tarfile.USTAR_FORMAT) + content[:size].ljust(-(-size // 512) * 512, b"\0"))
    out.write(GNU_TAR)
    unpack(zstandard.ZstdCompressor(level=1).compress(out.getvalue()), Format.TARZSTD)


@pytest.mark.parametrize("kind", ["x", "L", "K", "g"])
def test_an_extension_of_gigabytes_is_refused(kind: str) -> None:
    about = tarfile.TarInfo("ext")
    about.type, about.size = kind.encode(), 7 << 30
    raw = zstandard.ZstdCompressor(level=1).compress(about.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 20))
    with pytest.raises(ArchiveError, match="too big"), tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        source = open_archive(Path(file.name), Format.TARZSTD, Limits())
        try:
            list(source.members)
        finally:
            source.close()


@given(st.binary(min_size=512, max_size=512), st.dictionaries(st.sampled_from([b"path", b"size", b"mtime", b"uid"]), st.binary()))
@example(tarfile.TarInfo("f").tobuf(), {b"size": b"9" * 19, b"mtime": b"-1.5"})
def test_headers_of_any_bytes(block: bytes, extensions: dict[bytes, bytes]) -> None:
    checksum = sum(block) - sum(block[148:156]) + 8 * 0x20
    for raw in (block, block[:148] + b"%06o\0 " % checksum + block[156:]):
        try:
            header = parse_header(raw, extensions)
        except BadHeader:
            continue
        assert header.size >= 0
        assert header.entry.mode <= 0o777


@given(st.dictionaries(st.text(min_size=1).filter(lambda key: "=" not in key), st.text()))
def test_records_of_posix_are_read_back(records: dict[str, str]) -> None:
    raw = tarfile.TarInfo._create_pax_generic_header(records, tarfile.XHDTYPE, "utf-8")  # type: ignore[attr-defined]
    size = int(raw[124:135], 8)
    assert parse_extension(b"x", raw[512 : 512 + size]) == {key.encode(): value.encode() for key, value in records.items()}


ENTRIES = st.builds(
    Entry,
    path=st.text(min_size=1, max_size=300).filter(lambda text: "\0" not in text and not text.endswith("/") and text != "."),
    kind=st.sampled_from(["file", "dir", "link"]),
    mode=st.integers(0, 0o777),
    size=st.just(0),
    mtime_ns=st.integers(-(10**9), 2**33 * 10**9),
    target=st.text(min_size=1, max_size=300).filter(lambda text: "\0" not in text),
    owner=st.none() | st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1)),
)


@given(ENTRIES, st.integers(0, 2**62))
def test_headers_are_read_back_and_the_standard_library_agrees(entry: Entry, size: int) -> None:
    size = size if entry.kind == "file" else 0
    entry = entry._replace(
        path=entry.path.encode("utf-8", "replace").decode(), target=entry.target.encode("utf-8", "replace").decode()
    )
    raw = make_header(entry, size)
    with tarfile.open(fileobj=io.BytesIO(raw + bytes(1024)), encoding="utf-8") as archive:
        about = archive.next()
    assert about is not None
    assert about.name == entry.path
    assert (about.mode, about.size) == (0o777 if entry.kind == "link" else entry.mode, size)
    assert (about.uid, about.gid) == (entry.owner or (0, 0))
    assert about.mtime == min(max(entry.mtime_ns // 10**9, 0), 8**11 - 1)
    assert about.linkname == (entry.target if entry.kind == "link" else "")
    extensions = parse_extension(b"x", raw[512 : 512 + int(raw[124:135], 8)]) if raw[156:157] == b"x" else {}
    header = parse_header(raw[-512:], extensions)
    assert header.name.decode() == entry.path + ("/" if entry.kind == "dir" else "")
    assert (header.size, header.owner) == (size, entry.owner or (0, 0))


NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "out", "A", "ü", "c"]), min_size=1, max_size=5).map("/".join)


@given(st.lists(st.tuples(NAMES.filter(bool), st.sampled_from(["file", "dir", "link"])), max_size=12))
def test_no_name_leads_out_and_the_last_of_equals_stays(entries: list[tuple[str, str]]) -> None:
    """Links in the way, names that climb, duplicates, files in the place of directories."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for number, (name, kind) in enumerate(entries):
            info = zipfile.ZipInfo(name.rstrip("/") + "/" if kind == "dir" else name.rstrip("/") or "x")
            if kind == "link":
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("warnings.warn", lambda *args, **how: None)  # of duplicates
                archive.writestr(info, "" if kind == "dir" else f"{number}" if kind == "file" else "..")
    found = unpack(out.getvalue(), Format.ZIP)
    files = {os.path.normpath("/" + name).lstrip("/"): number for number, (name, kind) in enumerate(entries) if kind == "file"}
    links = {os.path.normpath("/" + name).lstrip("/") for name, kind in entries if kind == "link"}
    for path, content in (found or {}).items():
        if path in files and path not in links:
            assert content == str(files[path]).encode()
