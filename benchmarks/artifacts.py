"""200 MB of artifacts, half of it incompressible: choose, pack and upload, without a daemon around it.

``python benchmarks/artifacts.py`` prints seconds of wall clock and of this process's CPU, a line for each repetition.
The receiving end is a socket that reads and counts, in a process of its own.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import tempfile
import time
from multiprocessing import Process, Queue
from pathlib import Path

from executors.base import JobSpec
from executors.registry import HostSettings
from executors.shell import ShellExecutor
from executors.workspace import Entry
from runner.archive.artifacts import Content
from runner.archive.formats import Format, Level
from runner.archive.listing import list_for
from runner.archive.match import select
from runner.archive.pack import Packed, Sink, pack
from runner.coordinator.artifacts import ArtifactCalls
from runner.coordinator.http import HttpClient
from runner.coordinator.port import ArtifactUpload, TransferSettings

NOISE_BYTES = 100_000_000
TEXT_BYTES = 25_000_000
TEXTS = 4
REPETITIONS = 5
END = b"0\r\n\r\n"


def receive(ports: Queue[int]) -> None:
    """A server that takes any upload."""
    server = socket.create_server(("127.0.0.1", 0))
    ports.put(server.getsockname()[1])
    buffer = bytearray(1 << 20)
    while True:
        connection, _ = server.accept()
        tail = b""
        while not tail.endswith(END) and (size := connection.recv_into(buffer)):
            tail = (tail + bytes(buffer[max(0, size - 16) : size]))[-16:]
        connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        connection.close()


def fill(project: Path) -> None:
    """The files."""
    (project / "d").mkdir(parents=True)
    (project / "d" / "noise").write_bytes(os.urandom(NOISE_BYTES))
    for number in range(TEXTS):
        lines = "\n".join(str(line * 7) for line in range(number, 4_000_000))
        (project / "d" / f"text-{number}").write_text(lines[:TEXT_BYTES])


async def measure(root: Path, port: int) -> None:
    """Upload again and again."""
    project, record = root / "p", root / "r"
    record.mkdir()
    fill(project)
    executor = ShellExecutor(HostSettings(state_dir=str(root)))
    spec = JobSpec(job_id=1, record_dir=record, project_dir=str(project), tmp_dir=str(root / "t"))
    place = executor.environment(spec)
    await place.prepare()
    http = HttpClient(f"http://127.0.0.1:{port}")
    calls = ArtifactCalls(http, 1, "token")
    for _ in range(REPETITIONS):
        started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        members = select(await list_for(place.files, str(project), ["d"]), str(project), paths=["d"]).members

        async def make(sink: Sink, chosen: tuple[Entry, ...] = members) -> Packed:
            return await pack(place.files, str(project), chosen, sink, format=Format.ZIP, level=Level.DEFAULT)

        upload = ArtifactUpload(file_name="a.zip", content=Content(make, on_piece=lambda _: None))
        answer = await calls.upload_artifacts(upload, TransferSettings(attempts=1, on_wait=lambda *_: None))
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        print(f"{answer.verdict.value}: {time.monotonic() - started:.3f} s, {cpu_s:.3f} s CPU")
    await http.close()
    await place.cleanup()
    await executor.close()


def main() -> None:
    """Measure in a directory of its own."""
    ports: Queue[int] = Queue()
    server = Process(target=receive, args=(ports,), daemon=True)
    server.start()
    with tempfile.TemporaryDirectory() as root:
        asyncio.run(measure(Path(root), ports.get()))
    server.terminate()


if __name__ == "__main__":
    main()
