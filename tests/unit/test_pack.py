"""Packing real files through a real supervisor: the bytes of archives, and trees that do not hold still."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import random
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest

from executors.errors import WorkspaceError
from executors.shell import ShellEnvironment
from executors.workspace import Entry
from runner.archive.artifacts import Content
from runner.archive.formats import Format, Level
from runner.archive.match import select
from runner.archive.pack import Packed, pack
from runner.archive.piece import deflater
from runner.archive.zip import DEFLATED, ZipWriter
from runner.errors import ArchiveError


async def members(place: ShellEnvironment, project: Path, *paths: str) -> tuple[Entry, ...]:
    return select(await place.files.list(str(project)), str(project), paths=paths or ("*",)).members


async def packed(
    place: ShellEnvironment,
    project: Path,
    found: tuple[Entry, ...],
    *,
    kind: Format = Format.ZIP,
    level: Level = Level.DEFAULT,
) -> tuple[bytes, Packed]:
    out = io.BytesIO()

    async def sink(data: bytes) -> None:
        out.write(data)

    result = await pack(place.files, str(project), found, sink, format=kind, level=level)
    return out.getvalue(), result


def fill(project: Path) -> None:
    noise = random.Random(1).randbytes(3_000_001)
    (project / "d" / "empty").mkdir(parents=True)
    (project / "noise").write_bytes(noise)
    (project / "text").write_bytes(b"".join(b"%d\n" % number for number in range(400_000)))
    (project / "mixed").write_bytes(noise[:1_500_000] + bytes(1_500_000))
    (project / "nothing").touch()
    (project / "d" / "é\n").write_text("x")
    (project / "d" / "run").write_text("#!/bin/sh\n")
    (project / "d" / "run").chmod(0o755)
    (project / "d" / "link").symlink_to("../text")
    os.utime(project / "text", (1_577_934_245, 1_577_934_245))


@pytest.mark.parametrize("level", list(Level))
async def test_a_zip_holds_the_tree(place: ShellEnvironment, tmp_path: Path, level: Level) -> None:
    project = tmp_path / "p"
    fill(project)
    found = await members(place, project)
    content, result = await packed(place, project, found, level=level)
    assert (result.entries, result.size_bytes, result.skipped) == (len(found), len(content), ())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.testzip() is None
        for member in found:
            name = f"{member.path}/" if member.kind == "dir" else member.path
            info = archive.getinfo(name)
            if member.kind == "file":
                assert archive.read(name) == (project / member.path).read_bytes()
                assert info.external_attr >> 16 == 0o100000 | member.mode
        assert archive.read("d/link") == b"../text"
        assert archive.getinfo("d/link").external_attr >> 16 == 0o120777
        assert archive.getinfo("text").date_time == (2020, 1, 2, 3, 4, 4)
    assert (await packed(place, project, found, level=level))[0] == content, "the same files give the same bytes"


async def test_other_programs_read_it(place: ShellEnvironment, tmp_path: Path) -> None:
    project = tmp_path / "p"
    fill(project)
    content, _ = await packed(place, project, await members(place, project))
    (tmp_path / "a.zip").write_bytes(content)
    script = "import shutil,sys; shutil.unpack_archive(sys.argv[1], sys.argv[2])"
    subprocess.run(["python3", "-c", script, tmp_path / "a.zip", tmp_path / "out"], check=True)
    assert (tmp_path / "out" / "mixed").read_bytes() == (project / "mixed").read_bytes()


async def test_gzip_members_follow_each_other(place: ShellEnvironment, tmp_path: Path) -> None:
    project = tmp_path / "p"
    (project / "a").write_text("1\n")
    (project / "é").write_text("2\n")
    (project / "z").touch()
    content, _ = await packed(place, project, await members(place, project), kind=Format.GZIP)
    assert gzip.decompress(content) == b"1\n2\n"
    assert b"\0e:%C3%A9\0" in content


async def test_raw_is_the_file_itself(place: ShellEnvironment, tmp_path: Path) -> None:
    (tmp_path / "p" / "a").write_bytes(bytes(range(256)) * 10_000)
    content, _ = await packed(place, tmp_path / "p", await members(place, tmp_path / "p"), kind=Format.RAW)
    assert content == bytes(range(256)) * 10_000


async def test_what_vanished_or_changed_its_kind_is_left_out(place: ShellEnvironment, tmp_path: Path) -> None:
    project = tmp_path / "p"
    for name in ("a", "gone", "now-link", "now-fifo", "z"):
        (project / name).write_text(name)
    found = await members(place, project)
    for name in ("gone", "now-link", "now-fifo"):
        (project / name).unlink()
    (project / "now-link").symlink_to("/etc/passwd")
    os.mkfifo(project / "now-fifo")
    content, result = await packed(place, project, found)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["a", "z"]
    assert [path for path, _ in result.skipped] == ["gone", "now-fifo", "now-link"]
    with pytest.raises(ArchiveError, match="gone: No such file"):
        await packed(place, project, tuple(one for one in found if one.path == "gone"), kind=Format.RAW)


async def test_many_files_pass_through_a_narrow_door(place: ShellEnvironment, tmp_path: Path) -> None:
    project = tmp_path / "p"
    for number in range(1000):
        (project / f"f{number}").write_text(str(number))
    before = len(os.listdir("/proc/self/fd"))
    content, result = await packed(place, project, await members(place, project))
    assert result.entries == 1000
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("f999") == b"999"
    assert len(os.listdir("/proc/self/fd")) == before
    assert not list((tmp_path / "record").glob("files-*"))


async def test_nothing_outside_of_the_job_is_opened(place: ShellEnvironment, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    outside = Entry(path="../secret", kind="file", mode=0o644, size=1, mtime_ns=0)
    content, result = await packed(place, tmp_path / "p", (outside,))
    assert result.skipped[0][0] == "../secret"
    assert b"secret" not in content


async def test_a_reader_that_leaves_stops_the_packing(place: ShellEnvironment, tmp_path: Path) -> None:
    project = tmp_path / "p"
    (project / "noise").write_bytes(os.urandom(40_000_000))
    found = await members(place, project)
    before = len(os.listdir("/proc/self/fd"))
    content = Content(
        lambda sink: pack(place.files, str(project), found, sink, format=Format.ZIP, level=Level.DEFAULT),
        on_piece=lambda _: None,
    )
    pieces = content()
    await anext(pieces)
    await pieces.aclose()  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)


async def test_a_packing_that_fails_ends_the_body_and_says_why() -> None:
    async def make(sink: object) -> Packed:
        raise WorkspaceError("no")

    content = Content(make, on_piece=lambda _: None)
    with pytest.raises(WorkspaceError, match="no"):
        async for _ in content():
            pass
    assert isinstance(content.error, WorkspaceError)


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 300_000, 1_048_576])
def test_pieces_put_together_are_one_stream(level: Level, size: int) -> None:
    deflate = deflater(level)
    for content in (os.urandom(size), bytes(size)):
        stream = b"".join([*deflate(content, is_last=False), *deflate(b"end", is_last=True)])
        unpacker = zlib.decompressobj(-15)
        assert unpacker.decompress(stream) + unpacker.flush() == content + b"end"
        assert unpacker.eof
        assert len(stream) <= size + size // 1000 + 100


def test_more_entries_than_an_old_zip_can_count() -> None:
    out = io.BytesIO()
    writer = ZipWriter(lambda *parts: out.writelines(parts))
    for number in range(70_000):
        writer.small(Entry(path=f"f{number}", kind="file", mode=0o600, size=0, mtime_ns=0))
    writer.finish()
    with zipfile.ZipFile(out) as archive:
        assert len(archive.namelist()) == 70_000


def test_sizes_beyond_four_gibibytes_are_written_wide() -> None:
    """The directory is what readers go by; the content is left out here."""
    head = io.BytesIO()
    writer = ZipWriter(lambda *parts: head.writelines(parts))
    entry = Entry(path="big", kind="file", mode=0o600, size=0, mtime_ns=0)
    writer.begin(entry, 5 << 32, DEFLATED)
    assert b"\1\0\x10\0" + bytes(16) in head.getvalue(), "a reader of the stream learns that sizes are wide"
    writer.end(7, 5 << 32, 3 << 32)
    start = len(head.getvalue()) + (3 << 32)
    writer.finish()
    directory = head.getvalue()[start - (3 << 32) :]
    assert directory[:4] == b"PK\1\2"
    assert (5 << 32).to_bytes(8, "little") + (3 << 32).to_bytes(8, "little") in directory
    assert start.to_bytes(8, "little") in directory, "where the directory begins"
