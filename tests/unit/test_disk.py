"""The disk budget: what is chosen, how trees go, and that nothing waits for what hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from executors.disk import Item
from runner.config.model import DiskConfig
from runner.config.size import format_size, parse_size
from runner.disk import budget as budget_module
from runner.disk.budget import DiskBudget
from runner.disk.choice import for_room, over_budget
from runner.disk.directories import WORKER, Directories
from runner.disk.holds import Holds
from runner.disk.space import look
from runner.disk.trees import DIRECTORY, empty, measure
from runner.disk.worker import sweep, take
from tests.waiting import until

MIB = 1024 * 1024


def item(name: str, size: int, used: int, **changes: Any) -> Item:
    return Item(name=name, size_bytes=size, last_used_ns=used, **changes)


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("20GiB", 20 * 1024**3), ("1.5 MB", 1500000), ("2k", 2048), ("3TB", 3 * 10**12), (" 4 mib ", 4 * MIB)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1 2", "1e9", "5 bananas", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_sizes_for_people() -> None:
    assert [format_size(size) for size in (0, 1023, 1536, 5 * 1024**4)] == ["0 B", "1023 B", "1.5 KiB", "5.0 TiB"]


# Choice


def test_within_the_budget_nothing_goes() -> None:
    assert over_budget([item("a", 60, 1), item("b", 40, 2)], 100, lambda _: False) == []


def test_what_was_not_used_for_longest_goes_and_what_is_used_stays() -> None:
    items = [item("old", 50, 1), item("held", 50, 0), item("busy", 50, 0, in_use=True), item("new", 50, 9), item("mid", 50, 5)]
    gone = over_budget(items, 200, lambda one: one.name == "held")
    assert [one.name for one in gone] == ["old", "mid"], "down to nine tenths"


def test_all_that_may_go_goes_when_it_is_not_enough() -> None:
    items = [item("a", 10, 1), item("b", 10, 2), item("c", 500, 3, in_use=True)]
    assert [one.name for one in over_budget(items, 100, lambda _: False)] == ["a", "b"]


def test_room_is_made_on_the_file_system_that_needs_it_across_kinds() -> None:
    kinds = {
        "caches": [item("c1", 10, 5, device=1), item("c2", 10, 1, device=2)],
        "workspaces": [item("w1", 10, 3, device=1), item("w2", 10, 9, device=1)],
        "volumes": [item("v", 10, 4)],
    }
    chosen = for_room(kinds, {1: 25}, lambda _: False)
    assert {kind: [one.name for one in items] for kind, items in chosen.items()} == {
        "workspaces": ["w1"],
        "volumes": ["v"],
        "caches": ["c1"],
    }


# Trees


def deep(root: Path, levels: int) -> Path:
    """A chain of directories far longer than any path may be; its top."""
    root.mkdir()
    fd = os.open(root, DIRECTORY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    with os.fdopen(os.open("end", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(b"x" * MIB)
    os.close(fd)
    return root


def test_a_deep_tree_is_measured_and_goes(tmp_path: Path) -> None:
    trash = tmp_path / "trash"
    trash.mkdir()
    deep(trash / "top", 2500)
    fd = os.open(trash, DIRECTORY)
    assert measure(fd, "top") >= MIB
    assert empty(fd) == []
    os.close(fd)
    assert list(trash.iterdir()) == []


def test_links_are_not_followed_and_names_count_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"x" * 4 * MIB)
    trash = tmp_path / "trash"
    (trash / "tree" / "inner").mkdir(parents=True)
    (trash / "tree" / "one").write_bytes(b"x" * MIB)
    os.link(trash / "tree" / "one", trash / "tree" / "inner" / "two")
    (trash / "tree" / "inner" / "out").symlink_to(outside)
    (trash / "out").symlink_to(outside)
    os.mkfifo(trash / "tree" / "pipe")
    fd = os.open(trash, DIRECTORY)
    assert MIB <= measure(fd, "tree") < 2 * MIB
    assert measure(fd, "out") < MIB
    assert empty(fd) == []
    os.close(fd)
    assert (outside / "file").stat().st_size == 4 * MIB


@pytest.mark.skipif(os.geteuid() != 0, reason="changes users and mounts")
def test_another_file_system_inside_is_left_alone(tmp_path: Path) -> None:
    inside = tmp_path / "trash" / "tree" / "mounted"
    inside.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", inside], check=True)
    try:
        (inside / "kept").write_bytes(b"x" * MIB)
        fd = os.open(tmp_path / "trash", DIRECTORY)
        assert measure(fd, "tree") < MIB
        assert empty(fd), "says what is left"
        os.close(fd)
        assert (inside / "kept").exists() or any(tmp_path.rglob("kept"))
    finally:
        place = next(path for path in (tmp_path / "trash").rglob("kept")).parent
        subprocess.run(["umount", place], check=True)


def worker(**request: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", WORKER], input=json.dumps(request).encode(), capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def as_nobody(work: Callable[[], Any]) -> Any:
    """Do it in a child that is no longer root, which need not be able to start an interpreter."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            os.write(write_fd, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as file:
        answer = file.read()
    os.waitpid(pid, 0)
    return json.loads(answer)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_user_without_permissions_on_his_own_tree_loses_it(open_place: Path) -> None:
    """What a job has closed is opened by its owner: the daemon needs no other rights than those of its jobs."""
    root = open_place / "builds"
    make_project(root / "0" / "group" / "app", MIB)
    closed = root / "0" / "group" / "app" / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, 65534, 65534)
    for path in (closed / "inner", closed, root / "0" / "group" / "app"):
        path.chmod(0)
    names = {str(root): [str(root / "0" / "group" / "app")]}
    assert as_nobody(lambda: take("workspaces", names)) == []
    assert not (root / "0" / "group" / "app").exists()
    assert as_nobody(lambda: sweep([str(root)])) == []
    assert [path.name for path in root.iterdir()] == ["0"]


def make_project(place: Path, size: int = 4096) -> Path:
    place.mkdir(parents=True)
    (place / "file").write_bytes(b"x" * size)
    place.with_name(place.name + ".tmp").mkdir()
    return place


def use(place: Path) -> None:
    """As a job does it: later than everything before, by the clock of the file system."""
    marker = place.with_name(place.name + ".tmp")
    before = max(path.stat().st_ctime_ns for path in marker.parent.glob("*.tmp"))
    while marker.stat().st_ctime_ns <= before:
        os.utime(marker)
        time.sleep(0.001)


async def test_workspaces_are_found_by_what_the_runner_puts_beside_them(tmp_path: Path) -> None:
    root = tmp_path / "builds"
    for name in ("0/group/app", "0/group/sub/tool", "1/group/app", "0/other-empty"):
        make_project(root / name, MIB)
    (root / "0" / "somebodys").mkdir()
    (root / "0" / "group" / "app" / "vendor.tmp").mkdir()
    kind = Directories("workspaces", "workspaces", lambda: [str(root)])
    found = await kind.items()
    assert sorted(one.name.removeprefix(f"{root}/") for one in found) == [
        "0/group/app",
        "0/group/sub/tool",
        "0/other-empty",
        "1/group/app",
    ]
    assert all(MIB <= one.size_bytes < 2 * MIB and one.device for one in found)
    await kind.take_away([one for one in found if "/0/group/" in one.name])
    assert not (root / "0" / "group" / "app").exists()
    assert not (root / "0" / "group" / "app.tmp").exists()
    await kind.sweep()
    assert sorted(path.name for path in root.iterdir()) == ["0", "1"]


async def test_a_workspace_is_measured_again_once_it_was_used(tmp_path: Path) -> None:
    app = make_project(tmp_path / "0" / "app")
    kind = Directories("workspaces", "workspaces", lambda: [str(tmp_path)])
    (before,) = await kind.items()
    (app / "more").write_bytes(b"x" * MIB)
    assert (await kind.items())[0].size_bytes == before.size_bytes, "nobody said that it was used"
    kind.used(str(app))
    assert (await kind.items())[0].size_bytes >= before.size_bytes + MIB


async def test_caches_go_without_the_drafts_beside_them(tmp_path: Path) -> None:
    place = tmp_path / "group" / "app" / "key"
    place.mkdir(parents=True)
    for name in ("cache.zip", "metadata.json", ".cache.zip.1"):
        (place / name).write_bytes(b"x" * 4096)
    kind = Directories("caches", "caches", lambda: [str(tmp_path), str(tmp_path / "absent")])
    found = await kind.items()
    assert [one.name for one in found] == [str(place)]
    await kind.take_away(found)
    await kind.sweep()
    assert [path.name for path in place.iterdir()] == [".cache.zip.1"]
    assert await kind.items() == []


@pytest.mark.parametrize("seed", range(1, 5))
def test_killed_anywhere_leaves_whole_things_or_none(seed: int, tmp_path: Path) -> None:
    """And what was out of sight is found by the next one."""
    root = tmp_path / "builds"
    names = [make_project(root / "0" / f"app{number}") for number in range(40)]
    for place in names:
        for number in range(20):
            (place / f"d{number}").mkdir()
            (place / f"d{number}" / "f").write_text("x")
    script = f"{WORKER.replace('main()', 'take(**r)')}; from runner.disk.worker import sweep; sweep([{str(root)!r}])"
    request = {"shape": "workspaces", "names": {str(root): [str(place) for place in names]}}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"r = {request!r}; {script.replace('import main', 'import take')}"],
        stderr=subprocess.PIPE,
    )
    started = time.monotonic()
    while process.poll() is None and len(list((root / "0").glob("app*[0-9]"))) > 40 - seed * 7:
        assert time.monotonic() - started < 60
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for place in names:
        if place.exists():
            assert len(list(place.iterdir())) == 21, "whole"
    assert worker(do="sweep", roots=[str(root)]) == []
    assert [path.name for path in root.iterdir()] == ["0"]


# Holds


async def test_a_job_waits_for_what_is_on_its_way_out_and_then_holds_it() -> None:
    holds = Holds()
    order = []

    async def job() -> None:
        async with holds.held(["/b/0/app"]):
            order.append("job")
            assert holds.is_held(item("/b/0/app", 1, 1))
            assert holds.is_held(item("/b/0/app/inner", 1, 1))
            assert not holds.is_held(item("/b/0/app2", 1, 1))

    with holds.going([item("/b/0/app", 1, 1), item("/b/0/x", 1, 1)]) as free:
        assert [one.name for one in free] == ["/b/0/app", "/b/0/x"]
        task = asyncio.ensure_future(job())
        await asyncio.sleep(0)
        order.append("gone")
    await task
    assert order == ["gone", "job"]
    assert not holds.is_held(item("/b/0/app", 1, 1))


async def test_what_is_held_does_not_go() -> None:
    holds = Holds()
    holds.hold(["/b/0/app"])
    with holds.going([item("/b/0/app", 1, 1), item("/b/0/x", 1, 1)]) as free:
        assert [one.name for one in free] == ["/b/0/x"]


# The service


class Things:
    """A kind in memory. ``hangs`` never returns from a removal."""

    def __init__(self, name: str, *items: Item, hangs: bool = False) -> None:
        self.name = name
        self.there = list(items)
        self.hangs = hangs
        self.swept = 0

    async def items(self) -> Sequence[Item]:
        return list(self.there)

    async def take_away(self, items: Sequence[Item]) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        self.there = [one for one in self.there if one not in items]

    async def sweep(self) -> None:
        self.swept += 1


async def test_a_kind_that_hangs_keeps_nothing_else_from_being_trimmed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(budget_module, "PATIENCE_S", 0.05)
    monkeypatch.setattr(budget_module, "PAUSE_S", 0.05)
    slow = Things("caches", item("a", 100, 1), hangs=True)
    quick = Things("workspaces", item("b", 100, 1), item("c", 100, 2))
    free = Things("images", item("d", 100, 1))
    settings = DiskConfig(budgets={"caches": 10, "workspaces": 150})
    disk = DiskBudget(lambda: settings, lambda: [str(tmp_path)])
    disk.add(slow, quick, free)
    service = asyncio.create_task(disk.run())
    await until(lambda: [one.name for one in quick.there] == ["c"])
    quick.there.append(item("e", 100, 3))
    disk.used([])
    await until(lambda: [one.name for one in quick.there] == ["e"])
    assert await disk.has_room()
    assert [one.name for one in free.there] == ["d"], "nobody bounds it"
    service.cancel()
    await asyncio.gather(service, return_exceptions=True)


async def test_room_is_made_before_a_job_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file system is real; the floor is just above what it has."""
    (space,) = look([str(tmp_path)])
    settings = DiskConfig(min_free_bytes=space.free_bytes + 10**12, budgets={"workspaces": 10**15})
    things = Things("workspaces", item("old", 10**13, 1, device=space.device), item("new", 10**13, 2, device=space.device))
    disk = DiskBudget(lambda: settings, lambda: [str(tmp_path)])
    disk.add(things)
    changes: list[bool] = []
    disk.on_change = lambda: changes.append(disk.is_low)
    service = asyncio.create_task(disk.run())
    await until(lambda: things.swept)
    assert not await disk.has_room(), "the disk is as full as before"
    assert [one.name for one in things.there] == ["new"], "but no more went than seemed needed"
    settings = DiskConfig(min_free_bytes=1)
    assert await disk.has_room()
    assert changes == [True, False]
    service.cancel()
    await asyncio.gather(service, return_exceptions=True)


def test_a_directory_that_is_not_there_yet_counts_where_it_would_be(tmp_path: Path) -> None:
    (space,) = look([str(tmp_path / "a" / "b"), str(tmp_path)])
    assert space.device == tmp_path.stat().st_dev
    assert space.free_bytes > 0
