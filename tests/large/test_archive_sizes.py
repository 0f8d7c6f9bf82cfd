"""What is large: a sparse file of 10 GiB and 100,000 small ones, in bounded memory, read by other programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from executors.shell import ShellEnvironment
from runner.archive.formats import Format, Level, sniff
from runner.archive.match import select
from runner.archive.pack import pack
from runner.archive.unpack import Limits, unpack

MIB = 1 << 20
GIB = 1 << 30
slow = [pytest.mark.slow, pytest.mark.timeout(1200)]


@contextmanager
def bounded(size_bytes: int) -> Iterator[None]:
    """The block takes at most so much memory more than there was before."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    yield
    assert _peak() - before <= size_bytes


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def save(place: ShellEnvironment, root: Path, kind: Format) -> Path:
    target = root.parent / "archive"
    found = select(await place.files.list(str(root)), str(root), paths=["*"]).members
    with target.open("wb") as file:

        async def sink(data: bytes) -> None:
            file.write(data)

        await pack(place.files, str(root), found, sink, format=kind, level=Level.DEFAULT)
    return target


def sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.write(b"begin")
        file.seek(size // 2)
        file.write(b"middle")
        file.truncate(size)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow) for kind in (Format.ZIP, Format.ZIPZSTD, Format.TARZSTD)])
async def test_a_sparse_file_of_ten_gibibytes(place: ShellEnvironment, tmp_path: Path, kind: Format) -> None:
    root = tmp_path / "p"
    sparse(root / "big", 10 * GIB)
    (root / "small").write_text("small")
    with bounded(160 * MIB):
        source = await save(place, root, kind)
        assert source.stat().st_size < 20 * MIB
        shutil.rmtree(root)
        await unpack(place.files, str(root), source, format=sniff(source), limits=Limits())
    about = (root / "big").stat()
    assert about.st_size == 10 * GIB
    assert about.st_blocks * 512 < 64 * MIB, "holes stay holes"
    with (root / "big").open("rb") as file:
        assert file.read(8) == b"begin\0\0\0"
        file.seek(5 * GIB)
        assert file.read(8) == b"middle\0\0"
    assert (root / "small").read_text() == "small"


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_other_programs_read_entries_above_four_gibibytes(place: ShellEnvironment, tmp_path: Path) -> None:
    """From the directory at the end (``unzip``) and from the headers before each entry (``bsdtar`` from a pipe)."""
    root = tmp_path / "p"
    sparse(root / "big", 4 * GIB + 5)
    (root / "later").write_text("later")
    source = await save(place, root, Format.ZIP)
    subprocess.run(["unzip", "-tqq", source], check=True)
    with source.open("rb") as file:
        listed = subprocess.run(["bsdtar", "-tvf", "-"], stdin=file, check=True, capture_output=True, text=True)
    assert f" {4 * GIB + 5} " in listed.stdout
    assert listed.stdout.rstrip().endswith("later")


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=slow) for kind in (Format.ZIP, Format.TARZSTD)])
async def test_a_hundred_thousand_small_files(place: ShellEnvironment, tmp_path: Path, kind: Format) -> None:
    root = tmp_path / "p"
    for number in range(100_000):
        if number % 250 == 0:
            (root / f"{number // 250}").mkdir()
        (root / f"{number // 250}" / f"f{number}").write_text(f"{number}")
    with bounded(400 * MIB):
        source = await save(place, root, kind)
        shutil.rmtree(root)
        await unpack(place.files, str(root), source, format=sniff(source), limits=Limits())
    assert sum(len(names) for _, _, names in os.walk(root)) == 100_000
    assert (root / "399" / "f99999").read_text() == "99999"
    command = ["unzip", "-tqq"] if kind is Format.ZIP else ["tar", "--zstd", "-tf"]
    subprocess.run([*command, source], check=True, stdout=subprocess.DEVNULL)
