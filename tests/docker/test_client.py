"""The connection to an engine: calls, streams, refusals, and no engine at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from executors.docker.client import Engine
from executors.docker.connection import Connection
from executors.docker.errors import EngineError, EngineUnreachable, NotFound
from executors.docker.streams import Demultiplexer
from executors.errors import PrepareError
from tests.waiting import until

Make = Callable[..., str]


async def test_calls_run_beside_each_other(engine: Engine) -> None:
    versions = await asyncio.gather(*(engine.call(lambda client: client.version()) for _ in range(40)))
    assert len({found["Version"] for found in versions}) == 1
    assert await engine.api_version() >= (1, 41)


async def test_a_refusal_keeps_the_words_of_the_engine(engine: Engine) -> None:
    with pytest.raises(NotFound, match="Error response from daemon: No such container: pyrunner-no-such") as caught:
        await engine.call(lambda client: client.inspect_container("pyrunner-no-such"))
    assert caught.value.status == 404
    with pytest.raises(EngineError, match="No such container"):
        async with engine.stream("GET", "/containers/pyrunner-no-such/logs", params={"stdout": "1"}):
            pass
    with pytest.raises(EngineError, match="No such container"):
        await engine.hijack("/containers/pyrunner-no-such/attach", params={"stream": "1"})


async def test_input_and_output_of_an_attached_container(engine: Engine, busybox: str, container: Make) -> None:
    name = container(busybox, ["sh", "-c", "cat; echo end >&2"], stdin_open=True)
    attached = await engine.hijack(
        f"/containers/{name}/attach", params={"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
    )
    await engine.call(lambda client: client.start(name))
    await attached.send(b"one\n" * 100_000)
    assert attached.end_input()
    found: dict[int, bytes] = {1: b"", 2: b""}
    async for kind, data in attached.frames():
        found[kind] += data
    attached.close()
    assert found == {1: b"one\n" * 100_000, 2: b"end\n"}


async def test_a_log_is_followed_to_its_end(engine: Engine, busybox: str, container: Make) -> None:
    name = container(busybox, ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.1; done"])
    await engine.call(lambda client: client.start(name))
    parts, found = Demultiplexer(), b""
    async with engine.stream("GET", f"/containers/{name}/logs", params={"stdout": "1", "follow": "1"}) as response:
        async for data in response.content.iter_any():
            found += b"".join(payload for _, payload in parts.feed(data))
    assert found == b"1\n2\n3\n"


async def test_no_engine_is_named_with_its_address(tmp_path: Path) -> None:
    engine = Engine(Connection(host=f"unix://{tmp_path}/none.sock"))
    with pytest.raises(EngineUnreachable) as caught:
        await engine.call(lambda client: client.version())
    assert str(caught.value) == (
        f"failed to connect to the docker API at unix://{tmp_path}/none.sock; check if the path is correct and if the daemon is "
        f"running: dial unix {tmp_path}/none.sock: connect: no such file or directory"
    )
    await engine.close()


async def test_an_address_that_nothing_speaks_is_refused() -> None:
    engine = Engine(Connection(host="ssh://nobody@127.0.0.1"))
    with pytest.raises(PrepareError, match=r"ssh://nobody@127\.0\.0\.1: only unix://"):
        await engine.call(lambda client: client.version())
    await engine.close()


def test_the_environment_decides_when_no_host_is_configured(tmp_path: Path) -> None:
    environ = {"DOCKER_HOST": "tcp://build:2376", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    found = Connection.resolve("", tls_verify=False, tls_cert_path="/other", environ=environ)
    assert (found.host, found.certificates, found.base_url) == ("tcp://build:2376", tmp_path, "https://build:2376")
    found = Connection.resolve("unix:///run/own.sock", tls_verify=False, tls_cert_path="", environ=environ)
    assert (found.socket_path, found.certificates) == ("/run/own.sock", None)
    assert Connection.resolve("", tls_verify=False, tls_cert_path="", environ={}).host == "unix:///var/run/docker.sock"


def test_frames_are_found_wherever_a_stream_is_cut() -> None:
    stream = b"\1\0\0\0\0\0\0\3abc" + b"\2\0\0\0\0\0\0\0" + b"\1\0\0\0\0\0\1\0" + b"x" * 256
    for size in range(1, 40):
        parts = Demultiplexer()
        found = [frame for at in range(0, len(stream), size) for frame in parts.feed(stream[at : at + size])]
        assert found == [(1, b"abc"), (2, b""), (1, b"x" * 256)]


async def test_cancelled_caller_waits_for_the_call_that_it_began(engine: Engine) -> None:
    """What a call makes is there when its caller cleans up."""
    began, may_end = threading.Event(), threading.Event()
    made: list[str] = []

    def work(_: object) -> None:
        began.set()
        may_end.wait(60)
        made.append("container")

    calling = asyncio.create_task(engine.call(work))
    await until(began.is_set, 60)
    calling.cancel()
    asyncio.get_running_loop().call_later(0.2, may_end.set)
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert made == ["container"]
