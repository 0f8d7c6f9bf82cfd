"""Hostile archives: nothing outside is touched, nothing stalls, and whatever is wrong is an :class:`ArchiveError`."""

from __future__ import annotations

import asyncio
import io
import os
import random
import stat
import struct
import time
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from executors.errors import WorkspaceError
from executors.shell import ShellEnvironment
from runner.archive.formats import Format
from runner.archive.unpack import Limits, unpack
from runner.errors import ArchiveError


def link(name: str, target: bytes) -> tuple[zipfile.ZipInfo, bytes]:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info, target


def archive(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


async def extract(place: ShellEnvironment, source: Path) -> None:
    root = str(source.parent / "p")
    await unpack(place.files, root, source, format=Format.ZIP, limits=Limits())


async def test_a_link_with_a_huge_target_is_refused_at_once(tmp_path: Path, place: ShellEnvironment) -> None:
    source = archive(tmp_path / "a.zip", link("l", b"x" * (64 << 20)))
    began = time.monotonic()
    with pytest.raises(ArchiveError, match="target of the link is too long"):
        await extract(place, source)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
async def test_methods_that_gitlab_does_not_write_are_refused(method: int, tmp_path: Path, place: ShellEnvironment) -> None:
    with pytest.raises(ArchiveError, match="unknown compression method"):
        await extract(place, archive(tmp_path / "a.zip", ("f", b"text"), method=method))


async def test_an_encrypted_entry_is_refused(tmp_path: Path, place: ShellEnvironment) -> None:
    source = archive(tmp_path / "a.zip", ("f", b"text"))
    raw = bytearray(source.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        raw[raw.index(signature) + offset] |= 1
    source.write_bytes(raw)
    with pytest.raises(ArchiveError, match="encrypted"):
        await extract(place, source)


async def test_overlapping_entries_are_refused(tmp_path: Path, place: ShellEnvironment) -> None:
    """Many entries that share one content: a bomb that needs no ratio."""
    source = archive(tmp_path / "a.zip", ("f", os.urandom(1 << 20)))
    raw = source.read_bytes()
    start = raw.index(b"PK\1\2")
    entry, end = raw[start : raw.index(b"PK\5\6")], bytearray(raw[raw.index(b"PK\5\6") :])
    end[8:12] = (50).to_bytes(2, "little") * 2
    end[12:16] = (50 * len(entry)).to_bytes(4, "little")
    source.write_bytes(raw[:start] + entry * 50 + bytes(end))
    with pytest.raises(ArchiveError, match="overlap"):
        await extract(place, source)


async def test_a_lie_about_the_size_is_found(tmp_path: Path, place: ShellEnvironment) -> None:
    source = archive(tmp_path / "a.zip", ("f", b"tiny"))
    raw = bytearray(source.read_bytes())
    place_of_size = raw.index(b"PK\1\2") + 24
    raw[place_of_size : place_of_size + 4] = (1 << 30).to_bytes(4, "little")
    source.write_bytes(raw)
    with pytest.raises(ArchiveError, match="bigger than its content can be"):
        await extract(place, source)


async def test_set_id_bits_and_owners_are_not_restored(tmp_path: Path, place: ShellEnvironment) -> None:
    info = zipfile.ZipInfo("tool")
    info.external_attr = (stat.S_IFREG | 0o6755) << 16
    await extract(place, archive(tmp_path / "a.zip", (info, b"#!/bin/sh\n")))
    assert stat.S_IMODE((tmp_path / "p" / "tool").stat().st_mode) == 0o755


async def test_a_device_is_not_made(tmp_path: Path, place: ShellEnvironment) -> None:
    info = zipfile.ZipInfo("null")
    info.external_attr = (stat.S_IFCHR | 0o666) << 16
    await extract(place, archive(tmp_path / "a.zip", (info, b""), ("f", b"there")))
    assert not (tmp_path / "p" / "null").exists()
    assert (tmp_path / "p" / "f").read_bytes() == b"there"


async def test_links_are_never_written_through(tmp_path: Path, place: ShellEnvironment) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "p" / "dir").symlink_to(outside)
    source = archive(tmp_path / "a.zip", ("dir/f", b"planted"))
    with pytest.raises((ArchiveError, WorkspaceError)):
        await extract(place, source)
    assert not list(outside.iterdir())


@pytest.mark.parametrize("seed", range(8))
async def test_damaged_archives_are_errors_and_nothing_else(seed: int, tmp_path: Path, place: ShellEnvironment) -> None:
    """Bytes changed, cut and doubled anywhere: it unpacks, or it is an ArchiveError; files outside stay as they were."""
    rng = random.Random(seed)
    outside = tmp_path / "precious"
    outside.write_text("precious")
    content = rng.randbytes(5000) + b"compressible " * 500
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in (("a/b/c", content), ("ü", b"x"), ("../precious", b"no"), ("d/", b"")):
            file.writestr(name, text)
        file.writestr(*link("l", b"../precious"))
    good = whole.getvalue()
    for number in range(60):
        raw = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            at = rng.randrange(len(raw))
            match rng.randrange(4):
                case 0:
                    raw[at] = rng.randrange(256)
                case 1:
                    del raw[at : at + rng.randrange(1, 40)]
                case 2:
                    raw[at:at] = raw[at : at + rng.randrange(1, 40)]
                case _:
                    raw[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"PK\1\2", b"PK\3\4"))
        source = tmp_path / f"{number}.zip"
        source.write_bytes(raw)
        try:
            async with asyncio.timeout(10):
                await extract(place, source)
        except ArchiveError:
            pass
        source.unlink()
        assert outside.read_text() == "precious"


@pytest.mark.parametrize(
    ("day", "clock", "when"),
    [
        (0, 0, "1979-11-30 00:00:00"),
        (20 << 9 | 13 << 5 | 5, 0, "2001-01-05 00:00:00"),
        (20 << 9 | 15 << 5 | 31, 31 << 11 | 63 << 5 | 31, "2001-04-01 08:04:02"),
        (20 << 9 | 2 << 5 | 30, 12 << 11 | 30 << 5 | 4, "2000-03-01 12:30:08"),
    ],
)
async def test_days_that_no_calendar_has_are_counted_on(
    day: int, clock: int, when: str, tmp_path: Path, place: ShellEnvironment
) -> None:
    source = archive(tmp_path / "a.zip", ("f", b"x"))
    raw = bytearray(source.read_bytes())
    struct.pack_into("<HH", raw, raw.index(b"PK\1\2") + 12, clock, day)
    source.write_bytes(raw)
    await extract(place, source)
    found = datetime.fromtimestamp((tmp_path / "p" / "f").stat().st_mtime, UTC)
    assert found == datetime.fromisoformat(f"{when}+00:00")
