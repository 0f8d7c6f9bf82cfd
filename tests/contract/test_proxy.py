"""Proxies of the environment serve every call to a coordinator, but never one to this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests.contract.conftest import CONFIG
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon


async def test_a_proxy_is_asked_for_other_hosts(tmp_path: Path) -> None:
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readline()).decode()
        if not heard.done():
            heard.set_result(line)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = CONFIG.format(url="http://gitlab.example.invalid", root=tmp_path)
    daemon = Daemon(tmp_path / "r", config, environment={"http_proxy": f"http://127.0.0.1:{port}"})
    daemon.start()
    line = await asyncio.wait_for(heard, 10)
    await daemon.stop()
    server.close()
    assert line.startswith("POST http://gitlab.example.invalid/api/v4/jobs/request HTTP/1.1")


async def test_this_machine_is_reached_without_a_proxy(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.environment |= {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    daemon.start()
    await asyncio.wait_for(fake.polled.wait(), 10)
