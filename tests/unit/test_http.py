"""The HTTP client of a runner entry: what it sends where, and what it makes of answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from aiohttp import web

from runner.coordinator.http import HttpClient, _may_have_tokens
from runner.coordinator.response import NO_ANSWER


class Server:
    """Redirects as told, and remembers what came."""

    def __init__(self) -> None:
        self.url = ""
        self.location = ""
        self.status = 307
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.seen.append((f"{request.method} {request.path}", dict(request.headers), await request.read()))
        if self.location:
            return web.Response(status=self.status, headers={"Location": self.location})
        return web.json_response({"ok": True})


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    found = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


async def test_a_redirected_body_with_a_token_does_not_go_to_another_host() -> None:
    async with server() as ours, server() as other:
        ours.location = f"{other.url}/api/v4/jobs/request"
        client = HttpClient(ours.url)
        response = await client.request("POST", "jobs/request", headers={"RUNNER-TOKEN": "glrt-x"}, body=b'{"token":"glrt-x"}')
        await client.close()
    assert response.status == NO_ANSWER
    assert "refused" in response.reason
    assert "glrt-x" not in response.reason
    assert other.seen == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirected_download_goes_to_another_host_without_tokens(status: int) -> None:
    async with server() as ours, server() as other:
        ours.location, ours.status = f"{other.url}/file", status
        client = HttpClient(ours.url)
        response = await client.request("GET", "jobs/1/artifacts", headers={"JOB-TOKEN": "secret"})
        await client.close()
    assert response.status == 200
    ((line, headers, _),) = other.seen
    assert line == "GET /file"
    assert "secret" not in str(headers)


async def test_a_redirect_on_the_same_host_keeps_the_request() -> None:
    async with server() as ours:
        client = HttpClient(f"{ours.url}/old")
        ours.location = f"{ours.url}/new"
        response = await client.request("POST", "jobs/request", headers={"RUNNER-TOKEN": "t"}, body=b"{}")
        await client.close()
    assert "stopped after 10 redirects" in response.reason
    assert ours.seen[1][0] == "POST /new"
    assert ours.seen[1][1]["RUNNER-TOKEN"] == "t"
    assert ours.seen[1][2] == b"{}"


@pytest.mark.parametrize(
    ("origin", "target", "may"),
    [
        ("https://a/x", "https://a/y", True),
        ("https://a/x", "https://A:443/y", True),
        ("http://a/x", "https://a/y", True),
        ("https://a/x", "http://a/y", False),
        ("http://a:8080/x", "https://a/y", False),
        ("https://a/x", "https://a:8443/y", False),
        ("https://a/x", "https://b/y", False),
        ("https://a/x", "https://a.evil/y", False),
    ],
)
def test_where_tokens_may_go(origin: str, target: str, may: bool) -> None:
    assert _may_have_tokens(urlsplit(origin), urlsplit(target)) is may
