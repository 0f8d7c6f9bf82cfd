"""A real registry on this machine, with and without accounts, and one in front of it that can misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shutil
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import docker.errors
from aiohttp import ClientSession, web

START_S = 60.0
UNIQUE_BYTES = 256 * 1024
USER, PASSWORD = "builder", "s3cret-of-builder"
# bcrypt of the password above, and of those of the recordings (pp, vp, fp): the registry takes nothing else.
HTPASSWD = f"""{USER}:$2y$05$wTlSlSTW9b.2aa1jXO0k7OMbaMPDACMUg5SW6u5NsoO1b/HNvnNyW
payload-user:$2y$04$wTlSlSTW9b.2aa1jXO0k7OS9ykA4PgUQiemfRwEt8C9wEJoZ5Eaa6
variable-user:$2y$04$wTlSlSTW9b.2aa1jXO0k7OGBDu71/xeDgESHlCDDBG2fdpt58u2eS
file-user:$2y$04$wTlSlSTW9b.2aa1jXO0k7O/aJrZBtCtoQat/DWoCD.1L.xiIGkKGq
"""
CONFIG = """version: 0.1
log: {{level: info}}
storage:
  filesystem: {{rootdirectory: {root}}}
http: {{addr: "127.0.0.1:0"}}
"""
AUTH = """auth:
  htpasswd: {{realm: pyrunner, path: {htpasswd}}}
"""


@contextlib.contextmanager
def serving(folder: Path, *, with_accounts: bool = False) -> Iterator[str]:
    """A registry of its own for a test: ``host:port``."""
    program = shutil.which("docker-registry")
    assert program is not None, "docker-registry is missing: apt-get install docker-registry"
    folder.mkdir()
    text = CONFIG.format(root=folder / "data")
    if with_accounts:
        (folder / "htpasswd").write_text(HTPASSWD)
        text += AUTH.format(htpasswd=folder / "htpasswd")
    (folder / "config.yml").write_text(text)
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen([program, "serve", str(folder / "config.yml")], stdout=output, stderr=output)
    try:
        yield f"127.0.0.1:{_port(process, folder / 'log')}"
    finally:
        process.kill()
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", log.read_text(errors="replace"))
        if found:
            return int(found.group(1))
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.05)
    raise AssertionError(f"the registry does not listen: {log.read_text(errors='replace')}")


def push(client: docker.APIClient, image: str, name: str, *, login: tuple[str, str] | None = None) -> str:
    """Put an image into a registry under ``host:port/path:tag`` without leaving that name in the engine; its digest."""
    repository, _, tag = name.rpartition(":")
    client.tag(image, repository, tag)
    try:
        auth = {"username": login[0], "password": login[1]} if login else None
        messages = list(client.push(repository, tag, stream=True, decode=True, auth_config=auth))
    finally:
        client.remove_image(name)
    assert not [one for one in messages if "errorDetail" in one], messages
    return str(next(one["aux"]["Digest"] for one in messages if "aux" in one))


def forget(client: docker.APIClient, prefix: str) -> None:
    """Remove every name of images that begins so."""
    for image in client.images():
        for name in [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]:
            if name.startswith(prefix):
                # With its last tag a repository loses its digests, too.
                with contextlib.suppress(docker.errors.NotFound):
                    client.remove_image(name)


class Misbehaving:
    """Stands in front of a registry. ``mode`` is ``hang``, ``reset``, ``truncate`` or empty; ``blobs`` counts layers that
    were asked for, ``hanging`` the requests that wait."""

    def __init__(self, behind: str) -> None:
        self.mode = ""
        self.blobs = 0
        self.requests = 0
        self.hanging = 0
        self._behind = behind
        self._release = asyncio.Event()

    def release(self) -> None:
        """Let what hangs go on."""
        self.mode = ""
        self._release.set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if self.mode == "reset":
            transport = request.transport
            assert transport is not None
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
            return web.Response()
        if self.mode == "hang":
            self.hanging += 1
            try:
                await self._release.wait()
            finally:
                self.hanging -= 1
        async with (
            ClientSession(auto_decompress=False) as session,
            session.request(request.method, f"http://{self._behind}{request.path_qs}", headers=_passed(request)) as response,
        ):
            body = await response.read()
            headers = {key: value for key, value in response.headers.items() if key.lower() in _PASSED}
            is_blob = request.method == "GET" and "/blobs/" in request.path
            self.blobs += is_blob
            if is_blob and self.mode == "truncate":
                body = body[: len(body) // 2]
            headers["Content-Length"] = str(len(body)) if request.method == "GET" else response.headers["Content-Length"]
            return web.Response(status=response.status, body=body if request.method == "GET" else None, headers=headers)


_PASSED = frozenset({"content-type", "docker-content-digest", "docker-distribution-api-version", "etag", "www-authenticate"})


def _passed(request: web.Request) -> dict[str, str]:
    return {key: value for key, value in request.headers.items() if key.lower() in ("accept", "authorization", "range")}


@contextlib.asynccontextmanager
async def misbehaving(behind: str) -> AsyncIterator[tuple[str, Misbehaving]]:
    """A registry that does as it is told: ``host:port`` and what steers it."""
    found = Misbehaving(behind)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    (host, port), *_ = runner.addresses
    try:
        yield f"{host}:{port}", found
    finally:
        found.release()
        await runner.cleanup()


def unique(client: docker.APIClient, image: str) -> str:
    """An image with a layer of random bytes on top of another one; gone with its first name."""
    container = client.create_container(image, ["true"])["Id"]
    try:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            member = tarfile.TarInfo("random")
            member.size = UNIQUE_BYTES
            archive.addfile(member, io.BytesIO(os.urandom(UNIQUE_BYTES)))
        client.put_archive(container, "/", stream.getvalue())
        return str(client.commit(container)["Id"])
    finally:
        client.remove_container(container)
