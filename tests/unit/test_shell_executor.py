"""The shell executor with real processes: order, stops, files, adoption."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executors.base import JobSpec, Script
from executors.errors import EnvironmentLost, PrepareError, WorkspaceError
from executors.registry import HostSettings
from executors.shell import ShellEnvironment, ShellExecutor
from executors.supervision import SupervisorLink, is_supervised
from tests.waiting import until


@pytest.fixture
async def executor(tmp_path: Path) -> AsyncIterator[ShellExecutor]:
    found = ShellExecutor(HostSettings(state_dir=str(tmp_path), environment={"PATH": os.environ["PATH"], "HOME": str(tmp_path)}))
    yield found
    await found.close()


def spec(tmp_path: Path, **changes: object) -> JobSpec:
    record = tmp_path / "record"
    record.mkdir(exist_ok=True)
    known = {"job_id": 1, "record_dir": record, "project_dir": str(tmp_path / "p"), "tmp_dir": str(tmp_path / "p.tmp")}
    return JobSpec(**{**known, **changes})  # type: ignore[arg-type]


@pytest.fixture
async def place(executor: ShellExecutor, tmp_path: Path) -> AsyncIterator[ShellEnvironment]:
    found = ShellEnvironment(executor, spec(tmp_path))
    await found.prepare()
    yield found
    await found.cleanup()


async def output(place: ShellEnvironment, run: str) -> bytes:
    return b"".join([piece.data async for piece in place.follow(run)])


async def test_a_script_runs_and_leaves_its_status(place: ShellEnvironment) -> None:
    await place.start("1", Script(text=b"echo out; sleep 0.05; echo err >&2; exit 3\n", stage="x"))
    pieces = [(piece.stream.name, piece.data) async for piece in place.follow("1")]
    assert pieces == [("STDOUT", b"out\n"), ("STDERR", b"err\n")]
    assert (await place.wait("1")).exit_code == 3


async def test_a_run_is_started_once_whoever_asks(place: ShellEnvironment, tmp_path: Path) -> None:
    script = Script(text=f"echo x >> {tmp_path}/count\n".encode(), stage="x")
    await place.start("1", script)
    await place.wait("1")
    await place.start("1", script)
    await place.wait("1")
    assert (tmp_path / "count").read_text() == "x\n"


async def test_stop_kills_what_ignores_it_and_what_left_the_session(place: ShellEnvironment, tmp_path: Path) -> None:
    text = f"trap '' TERM; setsid sleep 300 & echo $! > {tmp_path}/pid; echo ready; while true; do sleep 0.1; done\n"
    await place.start("1", Script(text=text.encode(), stage="x"))
    async for piece in place.follow("1"):
        if b"ready" in piece.data:
            break
    await place.stop("1", grace_s=0.2)
    status = await place.wait("1")
    assert status.signal == 9
    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


async def test_leftovers_are_named_and_live_on(place: ShellEnvironment) -> None:
    await place.start("1", Script(text=b"sleep 30 >/dev/null 2>&1 &\n", stage="x"))
    status = await place.wait("1")
    assert [name.split()[1] for name in status.leftovers] == ["sleep"]
    os.kill(int(status.leftovers[0].split()[0]), 9)


async def test_output_beyond_the_bound_is_dropped(executor: ShellExecutor, tmp_path: Path) -> None:
    place = ShellEnvironment(executor, spec(tmp_path, output_limit_bytes=1000))
    await place.prepare()
    await place.start("1", Script(text=b"head -c 100000 /dev/zero\n", stage="x"))
    status = await place.wait("1")
    assert status.truncated
    assert len(await output(place, "1")) == 1000
    await place.cleanup()


async def test_much_that_waits_to_be_read_is_read_in_pieces(place: ShellEnvironment) -> None:
    await place.start("1", Script(text=b"head -c 33554432 /dev/zero\n", stage="x"))
    await place.wait("1")
    size = 0
    tracemalloc.start()
    async for piece in place.follow("1"):
        size += len(piece.data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 32 << 20
    assert peak_bytes < 8 << 20


async def test_another_process_finds_the_run_and_reads_the_same(
    executor: ShellExecutor, place: ShellEnvironment, tmp_path: Path
) -> None:
    await place.start("1", Script(text=b"echo a; sleep 0.4; echo b; exit 5\n", stage="x"))
    await place.detach()
    other = ShellEnvironment(executor, spec(tmp_path))
    await other.prepare()
    first = [piece async for piece in other.follow("1")]
    assert b"".join(piece.data for piece in first) == b"a\nb\n"
    assert (await other.wait("1")).exit_code == 5
    assert [piece async for piece in other.follow("1")] == first
    await other.cleanup()


async def test_a_run_whose_supervisor_died_is_lost(place: ShellEnvironment) -> None:
    await place.start("1", Script(text=b"kill -9 $PPID; sleep 60\n", stage="x"))
    with pytest.raises(EnvironmentLost):
        await asyncio.wait_for(place.wait("1"), 10)


async def test_a_dead_parent_is_started_again(executor: ShellExecutor, tmp_path: Path) -> None:
    executor.parent.start()
    process = executor.parent._process
    assert process is not None
    process.kill()
    process.wait()
    await asyncio.sleep(0.1)
    place = ShellEnvironment(executor, spec(tmp_path))
    await place.prepare()
    await place.cleanup()


async def test_an_unknown_shell_cannot_be_prepared(executor: ShellExecutor, tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="shell nosuch not found"):
        await ShellEnvironment(executor, spec(tmp_path, shell="nosuch")).prepare()


async def test_a_record_path_may_be_longer_than_a_socket_address(executor: ShellExecutor, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / "record"
    deep.mkdir(parents=True)
    place = ShellEnvironment(executor, spec(tmp_path, record_dir=deep))
    await place.prepare()
    await place.start("1", Script(text=b"true\n", stage="x"))
    assert (await place.wait("1")).exit_code == 0
    await place.cleanup()


async def test_cancelling_a_tool_ends_it(place: ShellEnvironment, tmp_path: Path) -> None:
    task = asyncio.create_task(place.tool(["sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 300"]))
    async with asyncio.timeout(10):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    pid = int((tmp_path / "pid").read_text())
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.02)
    await place.kill_tools()
    await place.start("1", Script(text=b"exit 4\n", stage="x"))
    assert (await place.wait("1")).exit_code == 4, "the supervisor lives on"


async def test_what_one_daemon_asked_is_not_answered_to_the_next(place: ShellEnvironment, tmp_path: Path) -> None:
    await place.start("1", Script(text=b"trap '' TERM; echo ready; while true; do sleep 0.05; done\n", stage="x"))
    async for piece in place.follow("1"):
        if b"ready" in piece.data:
            break
    stop = asyncio.create_task(place.stop("1", grace_s=1))
    await asyncio.sleep(0)
    await place.detach()
    stop.cancel()
    record = os.open(tmp_path / "record", os.O_RDONLY)
    reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{record}/control.sock")
    os.close(record)
    async with asyncio.timeout(20):
        while not (tmp_path / "record" / "run-1" / "status").exists():
            await asyncio.sleep(0.02)
        writer.write(b'{"command": "usage", "id": 99}\n')
        messages: list[dict[str, object]] = []
        while not messages or messages[-1].get("id") != 99:
            messages.append(json.loads(await reader.readline()))
    writer.close()
    assert [message["id"] for message in messages if "id" in message] == [99]


async def test_a_supervisor_that_nobody_needed_goes_with_the_job(executor: ShellExecutor, tmp_path: Path) -> None:
    job = spec(tmp_path)
    executor.expect(job.record_dir)
    await ShellEnvironment(executor, job).cleanup()
    await until(lambda: not is_supervised(job.record_dir))


async def test_a_supervisor_whose_daemon_died_at_once_hears_of_its_job_from_the_next(
    executor: ShellExecutor, tmp_path: Path
) -> None:
    job = spec(tmp_path)
    executor.expect(job.record_dir)
    while not is_supervised(job.record_dir):
        pass  # and nobody reads the answer meanwhile
    await executor.close()
    place = ShellEnvironment(executor, job)
    await place.prepare()
    await place.start("1", Script(text=b"exit 3\n", stage="x"))
    assert (await place.wait("1")).exit_code == 3
    await place.cleanup()


async def test_nothing_is_done_for_a_job_that_nobody_has_told_of(executor: ShellExecutor, tmp_path: Path) -> None:
    job = spec(tmp_path)
    executor.expect(job.record_dir)
    link = SupervisorLink(job.record_dir)
    await link.connect()
    operation = {"kind": "write", "path": str(tmp_path / "x"), "data": "", "mode": 0o600}
    assert (await link.call("files", operations=[operation]))["error"] == "the job has not begun"
    await link.call("close")
    link.close()
    assert not (tmp_path / "x").exists()


async def test_nothing_is_written_once_a_place_is_closed(executor: ShellExecutor, tmp_path: Path) -> None:
    """Its record is about to be removed. Often, since a supervisor that wrote would do it at about the same time."""
    for number in range(20):
        record = tmp_path / f"record-{number}"
        record.mkdir()
        place = ShellEnvironment(executor, spec(tmp_path, record_dir=record))
        await place.prepare()
        await place.cleanup()
        before = (record / "usage").stat()
        await until(lambda record=record: not is_supervised(record))  # type: ignore[misc]
        assert (record / "usage").stat() == before


async def test_a_script_hears_every_signal(executor: ShellExecutor, tmp_path: Path) -> None:
    """Also where whoever started the daemon did not, as ``nohup``."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        await executor.open()
    finally:
        signal.signal(signal.SIGHUP, former)
    place = ShellEnvironment(executor, spec(tmp_path))
    await place.prepare()
    await place.start("1", Script(text=b"grep -E 'Sig(Blk|Ign)' /proc/self/status\n", stage="x"))
    masks = [int(line.split()[1], 16) for line in (await output(place, "1")).splitlines()]
    private = 1 << 31 | 1 << 32  # the two of the C library
    assert [mask & ~private for mask in masks] == [0, 0]
    await place.cleanup()


async def test_a_program_that_cannot_be_started_says_why(place: ShellEnvironment, tmp_path: Path) -> None:
    pieces: list[bytes] = []
    status = await place.tool(["no-such-program"], output=lambda piece: pieces.append(piece.data))
    assert (status.exit_code, b"".join(pieces)) == (127, b"no-such-program: not found\n")
    pieces.clear()
    status = await place.tool(["true"], cwd=str(tmp_path / "gone"), output=lambda piece: pieces.append(piece.data))
    assert (status.exit_code, b"".join(pieces)) == (127, b"true: No such file or directory\n")
    plain = tmp_path / "plain"
    plain.write_text("not a program\n")
    pieces.clear()
    status = await place.tool([str(plain)], output=lambda piece: pieces.append(piece.data))
    assert (status.exit_code, b"".join(pieces)) == (126, f"{plain}: Permission denied\n".encode())


async def test_what_a_job_cost_includes_what_lives_on(place: ShellEnvironment) -> None:
    busy = "sh -c 'while [ $((i += 1)) -lt 300000 ]; do :; done; sleep 60' >/dev/null 2>&1 &"
    await place.start("1", Script(text=f"{busy}\n".encode(), stage="x"))
    assert (await place.wait("1")).leftovers
    async with asyncio.timeout(20):
        while (usage := await place.usage()) is None or usage.cpu_user_s < 0.1:
            await asyncio.sleep(0.05)


async def test_files_are_never_reached_through_planted_links(place: ShellEnvironment, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("kept")
    project = tmp_path / "p"
    project.mkdir()
    (project / "link").symlink_to(outside)
    with pytest.raises(WorkspaceError):
        await place.files.write(str(project / "link" / "new"), b"x")
    assert await place.files.read(str(project / "link" / "keep")) is None
    with pytest.raises(WorkspaceError, match="outside of the job's directories"):
        await place.files.write(str(outside / "new"), b"x")
    await place.files.remove([str(project)])
    assert (outside / "keep").read_text() == "kept"
    assert not project.exists()


async def test_files_can_be_written_listed_and_removed(place: ShellEnvironment, tmp_path: Path) -> None:
    path = str(tmp_path / "p" / "a" / "b")
    await place.files.write(path, b"content", mode=0o600)
    assert await place.files.read(path) == b"content"
    assert (tmp_path / "p" / "a" / "b").stat().st_mode & 0o777 == 0o600
    assert [entry.path for entry in await place.files.list(str(tmp_path / "p"))] == ["a", "a/b"]
    await place.files.remove_matching(str(tmp_path / "p"), ["b"])
    assert not await place.files.exists(path)
