"""Archives in zstandard: other programs read ours, we read theirs, and damaged ones are plain errors."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
import zstandard

from executors.shell import ShellEnvironment
from executors.workspace import Entry
from runner.archive.formats import Format, Level, read_mark, sniff
from runner.archive.match import select
from runner.archive.pack import Packed, pack
from runner.archive.unpack import Limits, unpack
from runner.errors import ArchiveError
from tests.unit.test_pack import fill

FORMATS = [Format.TARZSTD, Format.ZIPZSTD, Format.ZIP]


def need(program: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is missing: see .ci/run"
    return found


async def archive_of(place: ShellEnvironment, root: Path, kind: Format, **how: object) -> tuple[Path, Packed]:
    found = select(await place.files.list(str(root)), str(root), paths=["*"]).members
    target = root.parent / "archive"
    with target.open("wb") as file:

        async def sink(data: bytes) -> None:
            file.write(data)

        packed = await pack(place.files, str(root), found, sink, format=kind, **{"level": Level.DEFAULT, **how})  # type: ignore[arg-type]
    return target, packed


def tree(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in root.rglob("*"):
        about = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found[str(path.relative_to(root))] = (oct(about.st_mode), int(about.st_mtime), content)
    return found


@pytest.mark.parametrize("level", list(Level))
@pytest.mark.parametrize("kind", FORMATS)
async def test_what_is_packed_comes_back(place: ShellEnvironment, tmp_path: Path, kind: Format, level: Level) -> None:
    fill(tmp_path / "p")
    before = tree(tmp_path / "p")
    target, _ = await archive_of(place, tmp_path / "p", kind, level=level, mark="0af1")
    assert sniff(target) is (Format.TARZSTD if kind is Format.TARZSTD else Format.ZIP)
    assert read_mark(target) == "0af1"
    shutil.rmtree(tmp_path / "p")
    (tmp_path / "p").mkdir()
    await unpack(place.files, str(tmp_path / "p"), target, format=sniff(target), limits=Limits())
    assert tree(tmp_path / "p") == before


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        (Format.TARZSTD, ["tar", "--zstd", "-xf"]),
        (Format.TARZSTD, ["bsdtar", "-xf"]),
        (Format.ZIPZSTD, ["bsdtar", "-xf"]),
        (Format.ZIP, ["unzip", "-q"]),
    ],
)
async def test_other_programs_read_ours(place: ShellEnvironment, tmp_path: Path, kind: Format, command: list[str]) -> None:
    need(command[0])
    fill(tmp_path / "p")
    if command[0] == "unzip":
        shutil.rmtree(tmp_path / "p" / "d")  # with a name that it does not print
    target, _ = await archive_of(place, tmp_path / "p", kind, mark="0af1")
    (tmp_path / "out").mkdir()
    subprocess.run([*command, target], cwd=tmp_path / "out", check=True, env={**os.environ, "LANG": "C.UTF-8"})
    assert tree(tmp_path / "out") == tree(tmp_path / "p")


async def test_a_tar_file_of_another_program_is_read(place: ShellEnvironment, tmp_path: Path) -> None:
    fill(tmp_path / "in")
    long = tmp_path / "in" / ("d" * 120) / ("e" * 120)
    long.parent.mkdir()
    long.write_text("long name")
    subprocess.run([need("tar"), "--zstd", "-cf", tmp_path / "a", "-C", tmp_path / "in", "."], check=True)
    await unpack(place.files, str(tmp_path / "p"), tmp_path / "a", format=sniff(tmp_path / "a"), limits=Limits())
    assert tree(tmp_path / "p") == tree(tmp_path / "in")


def zip_of_one(name: bytes, content: bytes, *, crc: int | None = None) -> bytes:
    """A zip file with one entry in zstandard, written by hand."""
    packed = zstandard.ZstdCompressor(level=3).compress(content)
    real = zlib.crc32(content) if crc is None else crc
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 63, 0, 93, 0, 33, real, len(packed), len(content), len(name), 0)
    head = struct.pack("<IHHHHHHIIIHH", 0x02014B50, 63, 63, 0, 93, 0, 33, real, len(packed), len(content), len(name), 0)
    central = head + struct.pack("<HHHII", 0, 0, 0, 0o100644 << 16, 0) + name
    start = len(local) + len(name) + len(packed)
    return local + name + packed + central + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(central), start, 0)


async def test_a_zip_entry_of_another_writer_is_read(place: ShellEnvironment, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(zip_of_one(b"f", b"text" * 100_000))
    await unpack(place.files, str(tmp_path / "p"), tmp_path / "a", format=Format.ZIP, limits=Limits())
    assert (tmp_path / "p" / "f").read_bytes() == b"text" * 100_000


async def refused(place: ShellEnvironment, source: Path, match: str, limits: Limits | None = None) -> None:
    with pytest.raises(ArchiveError, match=match):
        await unpack(place.files, str(source.parent / "p"), source, format=sniff(source), limits=limits or Limits())


async def test_a_wrong_checksum_is_an_error(place: ShellEnvironment, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(zip_of_one(b"f", b"text", crc=1))
    await refused(place, tmp_path / "a", "checksum error in f")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
@pytest.mark.parametrize("kind", [Format.TARZSTD, Format.ZIPZSTD])
async def test_damage_is_an_error(place: ShellEnvironment, tmp_path: Path, kind: Format, damage: str) -> None:
    fill(tmp_path / "p")
    target, _ = await archive_of(place, tmp_path / "p", kind)
    raw = bytearray(target.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 0xFF
    target.write_bytes({"cut": raw[: len(raw) // 2], "flip": raw, "empty": raw[:4]}[damage])
    with pytest.raises(ArchiveError):
        await unpack(place.files, str(tmp_path / "p"), target, format=kind, limits=Limits())


def tar_of(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for about, content in entries:
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return zstandard.ZstdCompressor().compress(out.getvalue())


def about(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname, found.mode = kind, target, 0o6755
    return found


async def test_names_and_links_of_a_tar_file_do_not_lead_out(place: ShellEnvironment, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tar_of((about("../out"), b"x")))
    await refused(place, tmp_path / "a", "cannot be extracted outside of chroot")
    (tmp_path / "a").write_bytes(tar_of((about("l", tarfile.SYMTYPE, str(tmp_path)), b""), (about("l/out"), b"x")))
    await refused(place, tmp_path / "a", "directory not empty")
    assert not (tmp_path / "out").exists()


async def test_an_absolute_name_is_taken_below_and_special_files_are_not_made(place: ShellEnvironment, tmp_path: Path) -> None:
    special = [about("dev", tarfile.CHRTYPE), about("fifo", tarfile.FIFOTYPE), about("hard", tarfile.LNKTYPE, "/etc/passwd")]
    (tmp_path / "a").write_bytes(tar_of((about("/abs/f"), b"x"), *((one, b"") for one in special)))
    await unpack(place.files, str(tmp_path / "p"), tmp_path / "a", format=Format.TARZSTD, limits=Limits())
    assert sorted(tree(tmp_path / "p")) == ["abs", "abs/f"]
    assert (tmp_path / "p" / "abs" / "f").stat().st_mode & 0o7777 == 0o755


async def test_bombs_are_refused_before_anything_is_written(place: ShellEnvironment, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(tar_of((about("zeros"), bytes(64 << 20))))
    assert (tmp_path / "a").stat().st_size < 10_000
    await refused(place, tmp_path / "a", "the archive is too big", Limits(size_bytes=32 << 20))
    (tmp_path / "a").write_bytes(tar_of(*((about(f"f{number}"), b"") for number in range(20))))
    await refused(place, tmp_path / "a", "the archive is too big", Limits(entries=10))
    assert not any((tmp_path / "p").iterdir())


async def test_zeros_take_no_room(place: ShellEnvironment, tmp_path: Path) -> None:
    with (tmp_path / "p" / "sparse").open("wb") as file:
        file.truncate(256 << 20)
        file.write(b"begin")
    target, _ = await archive_of(place, tmp_path / "p", Format.TARZSTD)
    (tmp_path / "p" / "sparse").unlink()
    await unpack(place.files, str(tmp_path / "p"), target, format=Format.TARZSTD, limits=Limits())
    found = (tmp_path / "p" / "sparse").stat()
    assert found.st_size == 256 << 20
    assert found.st_blocks * 512 < 8 << 20


async def test_a_file_that_shrank_is_filled_and_named(place: ShellEnvironment, tmp_path: Path) -> None:
    """Its size stands in the archive before its content is read."""
    root = tmp_path / "p"
    (root / "big").write_bytes(bytes(range(256)) * 40_000)
    found = select(await place.files.list(str(root)), str(root), paths=["*"]).members
    out = io.BytesIO()
    (root / "other").write_bytes(os.urandom(48 << 20))
    found = (Entry(path="other", kind="file", mode=0o644, size=48 << 20, mtime_ns=0), *found)

    async def sink(data: bytes) -> None:
        if not out.tell():
            os.truncate(root / "other", 40 << 20)
        out.write(data)

    packed = await pack(place.files, str(root), found, sink, format=Format.TARZSTD, level=Level.FASTEST)
    assert [path for path, _ in packed.skipped] == ["other"]
    with tarfile.open(fileobj=zstandard.ZstdDecompressor().stream_reader(out.getvalue()), mode="r|") as archive:
        assert [one.size for one in archive] == [48 << 20, 256 * 40_000]
