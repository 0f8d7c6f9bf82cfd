"""Trees that are odd: names that differ in case alone, duplicates, owners, files that change while they are packed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from executors.shell import ShellEnvironment
from executors.workspace import Entry
from runner.archive.formats import Format, Level, sniff
from runner.archive.match import select
from runner.archive.pack import Packed, pack
from runner.archive.unpack import Limits, unpack
from runner.errors import ArchiveError

KINDS = [Format.ZIP, Format.ZIPZSTD, Format.TARZSTD]
BIG = 24 << 20


async def members(place: ShellEnvironment, root: Path) -> tuple[Entry, ...]:
    return select(await place.files.list(str(root)), str(root), paths=["*"]).members


async def archive(place: ShellEnvironment, root: Path, found: tuple[Entry, ...], kind: Format) -> tuple[Path, Packed]:
    target = root.parent / "archive"
    with target.open("wb") as file:

        async def sink(data: bytes) -> None:
            file.write(data)

        packed = await pack(place.files, str(root), found, sink, format=kind, level=Level.DEFAULT)
    return target, packed


def write(source: Path, entries: Iterable[tuple[str, str]]) -> None:
    with zipfile.ZipFile(source, "w") as file:
        for name, content in entries:
            file.writestr(name, content)


async def extract(place: ShellEnvironment, source: Path, root: Path) -> None:
    await unpack(place.files, str(root), source, format=sniff(source), limits=Limits())


@pytest.mark.parametrize("kind", KINDS)
async def test_owners_come_back_for_root(place: ShellEnvironment, tmp_path: Path, kind: Format) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    root = tmp_path / "p"
    (root / "d").mkdir()
    (root / "d" / "f").write_text("x")
    (root / "d" / "big").write_bytes(os.urandom(100_000))
    (root / "l").symlink_to("d/f")
    for path in (root / "d" / "f", root / "d" / "big", root / "d", root / "l"):
        os.chown(path, 4321, 8765, follow_symlinks=False)
    source, _ = await archive(place, root, await members(place, root), kind)
    shutil.rmtree(root / "d")
    (root / "l").unlink()
    await extract(place, source, root)
    for path in (root / "d" / "f", root / "d" / "big", root / "d", root / "l"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (4321, 8765), path
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["bsdtar", "-xpf", source], cwd=other, check=True)
    assert (other / "d" / "f").stat().st_uid == 4321, "other programs read them, too"


@pytest.mark.parametrize(
    "command",
    [
        "zip -qry {target}.zip . && mv {target}.zip {target}",
        "zip -qr -y - . > {target}",
        "zip -q0ry {target}.zip . && mv {target}.zip {target}",
        "bsdtar --format zip -cf - . > {target}",
        "bsdtar --format zip --options zip:zip64 -cf {target} .",
        "tar --format gnu --zstd -cf {target} .",
        "tar --format posix --zstd -cf {target} .",
        "tar --format v7 -cf - . | zstd -q -19 > {target}",
        "bsdtar --format pax --zstd -cf {target} .",
    ],
)
async def test_what_other_programs_write_is_read(place: ShellEnvironment, tmp_path: Path, command: str) -> None:
    root, out = tmp_path / "in", tmp_path / "p"
    (root / "d" / "empty").mkdir(parents=True)
    (root / "d" / "run").write_text("#!/bin/sh\n")
    (root / "d" / "run").chmod(0o750)
    (root / "ü").write_text("u")
    (root / "nothing").touch()
    (root / "link").symlink_to("d/run")
    (root / "big").write_bytes(os.urandom(300_000) + bytes(2_000_000))
    os.utime(root / "big", (1_577_934_246, 1_577_934_246))
    target = tmp_path / "archive"
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(["sh", "-ec", command.format(target=target)], cwd=root, check=True, env=environment)
    await extract(place, target, out)
    for path in root.rglob("*"):
        found = out / path.relative_to(root)
        if path.is_symlink():
            assert found.readlink() == path.readlink()
            continue
        assert oct(found.stat().st_mode) == oct(path.stat().st_mode), path
        if path.is_file():
            assert found.read_bytes() == path.read_bytes()
    assert int((out / "big").stat().st_mtime) == 1_577_934_246


@pytest.mark.parametrize("kind", KINDS)
async def test_names_that_are_no_utf_8_come_back(place: ShellEnvironment, tmp_path: Path, kind: Format) -> None:
    root = tmp_path / "p"
    names = [b"\xff\xfe", "ü".encode(), "ü".encode("latin-1"), b"a\nb", b"back\\slash", b" blank ", b"-rf"]
    for name in names:
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(name)
    source, _ = await archive(place, root, await members(place, root), kind)
    shutil.rmtree(root)
    await extract(place, source, root)
    assert {name: (root / os.fsdecode(name)).read_bytes() for name in os.listdir(os.fsencode(root))} == {
        name: name for name in names
    }


async def test_of_equal_names_the_last_stays_and_case_counts(place: ShellEnvironment, tmp_path: Path) -> None:
    """As ``unzip -o`` leaves them."""
    source = tmp_path / "a.zip"
    entries = (("a", "1"), ("A", "2"), ("a", "3"), ("d/x", "4"), ("D/x", "5"), ("d/x", "6" * 200_000))
    with pytest.warns(UserWarning, match="Duplicate"):
        write(source, entries)
    root, other = tmp_path / "p", tmp_path / "other"
    await extract(place, source, root)
    subprocess.run(["unzip", "-qo", source, "-d", other], check=True)
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == {str(path.relative_to(other)): path.read_bytes() for path in other.rglob("*") if path.is_file()}
    assert found["a"] == b"3"


@pytest.mark.parametrize("change", ["grow", "shrink", "empty", "delete", "replace"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_file_that_changes_while_it_is_packed_breaks_nothing(
    place: ShellEnvironment, tmp_path: Path, kind: Format, change: str
) -> None:
    """``first`` is being read, ``later`` is not even opened when both change."""
    root = tmp_path / "p"
    for name in ("first", "later"):
        (root / name).write_bytes(os.urandom(BIG))
    (root / "small").write_text("small")
    found = await members(place, root)
    out = io.BytesIO()

    def disturb(path: Path) -> None:
        if change == "grow":
            with path.open("ab") as file:
                file.write(bytes(BIG))
        elif change in ("shrink", "empty"):
            os.truncate(path, BIG // 4 * 3 if change == "shrink" else 0)
        else:
            path.unlink()
            if change == "replace":
                path.mkdir()

    async def sink(data: bytes) -> None:
        if not out.tell():
            disturb(root / "first")
            disturb(root / "later")
        out.write(data)

    packed = await pack(place.files, str(root), found, sink, format=kind, level=Level.FASTEST)
    sizes: dict[str, int] = {}
    if kind is Format.TARZSTD:
        with tarfile.open(fileobj=zstandard.ZstdDecompressor().stream_reader(out.getvalue()), mode="r|") as tar:
            sizes = {one.name: one.size for one in tar}
    else:
        source = tmp_path / "archive"
        source.write_bytes(out.getvalue())
        await extract(place, source, tmp_path / "p" / "out")
        sizes = {path.name: path.stat().st_size for path in (root / "out").iterdir()}
    assert sizes["small"] == 5
    if change in ("delete", "replace"):
        assert {path for path, _ in packed.skipped} == {"later"} - set(sizes)
    if change == "grow":
        assert sizes["first"] == BIG, "what it had when it was opened"
    if change in ("shrink", "empty") and kind is Format.TARZSTD:
        assert ("first", f"the file became shorter than {BIG} bytes") in packed.skipped


async def test_a_long_name_is_refused_and_not_made(place: ShellEnvironment, tmp_path: Path) -> None:
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("/".join(["d" * 200] * 25), "x")
    with pytest.raises(ArchiveError, match="no file can have this name"):
        await extract(place, source, tmp_path / "p")
    assert not list((tmp_path / "p").iterdir())


async def test_a_tree_deeper_than_descriptors_go(place: ShellEnvironment, tmp_path: Path) -> None:
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("d/" * 300 + "f", "deep")
        file.writestr("d/" * 300 + "g", "deep")
    await extract(place, source, tmp_path / "p")
    fd = os.open(tmp_path / "p", os.O_RDONLY)
    for _ in range(300):
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    assert sorted(os.listdir(fd)) == ["f", "g"]
    os.close(fd)
    shutil.rmtree(tmp_path / "p" / "d")


async def test_a_full_disk_is_named(place: ShellEnvironment, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    source = tmp_path / "a.zip"
    for size, count in ((4 << 20, 1), (60_000, 40)):
        with zipfile.ZipFile(source, "w") as file:
            for number in range(count):
                file.writestr(f"small/f{number}", os.urandom(size))
        (tmp_path / "p" / "small").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path / "p" / "small"], check=True)
        try:
            with pytest.raises(ArchiveError, match=r"small/f.* cannot be extracted: No space left on device"):
                await extract(place, source, tmp_path / "p")
        finally:
            subprocess.run(["umount", "-l", tmp_path / "p" / "small"], check=True)
