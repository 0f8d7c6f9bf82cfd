"""The helper image that is made of this host, and what its tools can do in a container."""

from __future__ import annotations

import asyncio
import io
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.connection import Connection
from executors.docker.helper_image import LABEL, REPOSITORY, HelperImages, outdated
from executors.docker.host_root import HostIncomplete, HostRoot, host_root
from executors.docker.images import JobImages, Pulls
from executors.docker.lines import KeptLines, Level
from executors.errors import PrepareError
from tests.docker.conftest import HOST
from tests.fakes import git_server

pytestmark = pytest.mark.docker
# What the helper container of a job is allowed (DX-12.4).
HARDENED = {
    "cap_drop": ["ALL"],
    "cap_add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL"],
    "security_opt": ["no-new-privileges"],
    "read_only": True,
    "tmpfs": {"/tmp": "", "/root": "", "/run": ""},
    "network_mode": "host",
}
Container = Callable[..., str]


@pytest.fixture
async def helper(engine: Engine) -> str:
    return (await HelperImages(engine).own()).id


def run(client: docker.APIClient, container: Container, image: str, script: str) -> tuple[int, str]:
    """Exit code and output of a script in a helper."""
    config = client.create_host_config(**HARDENED)  # type: ignore[arg-type]
    made = container(image, ["sh", "-ec", script], host_config=config, working_dir="/")
    client.start(made)
    code = client.wait(made, timeout=60)["StatusCode"]
    return int(code), client.logs(made).decode()


async def test_its_tools_run_in_a_hardened_container(client: docker.APIClient, container: Container, helper: str) -> None:
    script = """
    cd /tmp && mkdir -p a/b && printf 'x\\n' >a/b/file && tar -cf - a | (mkdir c && cd c && tar -xf -)
    test "$(find c -type f)" = c/a/b/file && stat -c %U c/a/b/file && id -un && sha256sum c/a/b/file | cut -c1-8
    sort /etc/passwd | head -1 | sed s/nobody/somebody/ | tr a-z A-Z && git --version && uname
    git init -q r && cd r && git config user.name n && git config user.email e && git commit -qm m --allow-empty
    git submodule status && git -C /tmp clone -q /tmp/r copy && git -C /tmp/copy log --format=%s
    """
    code, output = run(client, container, helper, script)
    version = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    assert (code, output.splitlines()) == (
        0,
        ["root", "root", "73cb3858", "SOMEBODY:X:65534:65534:NOBODY:/:/BIN/FALSE", version, "Linux", "m"],
    ), output


async def test_it_fetches_over_http(client: docker.APIClient, container: Container, helper: str, tmp_path: Path) -> None:
    git_server.make_repository(tmp_path, "group/project", {"README": "hello\n"})

    async def serve(request: web.Request) -> web.StreamResponse:
        return await git_server.serve(request, tmp_path)

    app = web.Application()
    app.router.add_route("*", "/git/{path:.*}", serve)
    async with TestServer(app) as server:
        script = f"git clone -q {server.make_url('/git/group/project.git')} /tmp/p && cat /tmp/p/README"
        assert await asyncio.to_thread(run, client, container, helper, script) == (0, "hello\n")


async def test_it_knows_certificates_and_names(client: docker.APIClient, container: Container, helper: str) -> None:
    code, output = run(client, container, helper, "git ls-remote https://localhost:9/x 2>&1 || true; ls /etc/ssl/certs")
    assert code == 0
    assert "Failed to connect" in output or "Could not connect" in output or "onnection refused" in output, output
    assert "ca-certificates.crt" in output


@pytest.mark.skipif(shutil.which("git-lfs") is None, reason="this machine has no git-lfs")
async def test_it_has_git_lfs_where_the_host_has(client: docker.APIClient, container: Container, helper: str) -> None:
    code, output = run(client, container, helper, "git lfs version")
    assert code == 0
    assert output.startswith("git-lfs/")


def own_names(image: Mapping[str, Any]) -> list[str]:
    """Its names without those that others gave it."""
    return [name for name in image["RepoTags"] if name.startswith(f"{REPOSITORY}:")]


async def test_it_is_made_once_for_all_who_want_it(engine: Engine, client: docker.APIClient, helper: str) -> None:
    other = Engine(Connection(host=HOST))
    try:
        found = await asyncio.gather(*(HelperImages(one).own() for one in (engine, other, engine, other)))
    finally:
        await other.close()
    assert {image.id for image in found} == {helper}
    tagged = [image for image in client.images(filters={"label": LABEL}) if image["Id"] == helper]
    assert len(tagged) == 1
    assert own_names(tagged[0]) == [found[0].name]


async def test_it_is_made_again_when_it_is_gone(
    engine: Engine, client: docker.APIClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "marker").write_text(uuid.uuid4().hex)
    root = host_root()

    def with_marker() -> HostRoot:
        root.add_text("etc/marker", (tmp_path / "marker").read_text())
        return root

    monkeypatch.setattr("executors.docker.helper_image.host_root", with_marker)
    images = HelperImages(engine)
    try:
        first = await images.own()
        client.remove_image(first.name)
        second = await images.own()
        assert second.name == first.name
        assert list(next(one for one in client.images(second.name))["Labels"]) == [LABEL]
    finally:
        client.remove_image(first.name)


async def test_a_program_that_vanishes_meanwhile_is_said(engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    root = host_root()
    root.add_file(str(program))
    monkeypatch.setattr("executors.docker.helper_image.host_root", lambda: root)
    images = HelperImages(engine)
    await images._read_host()
    program.unlink()
    with pytest.raises(PrepareError, match=r"the helper image could not be made: .*program"):
        await images._make()


async def test_a_configured_image_is_had_as_the_policies_say(engine: Engine, busybox: str, tmp_path: Path) -> None:
    images = JobImages(engine, Pulls(), DockerConfig(pull_policy=("never",)), home=tmp_path)
    lines = KeptLines()
    image = await HelperImages(engine).get(busybox, images, lines)
    assert image.name == busybox
    assert lines.kept[:2] == [
        (Level.PLAIN, f"Using helper image:  {busybox}  (overridden, default would be  pyrunner-helper )"),
        (Level.PLAIN, f"Using effective pull policy of [never] for container {busybox}"),
    ]


async def test_images_of_the_past_are_removed_when_nobody_needs_them(client: docker.APIClient, helper: str) -> None:
    (image,) = [one for one in client.images(filters={"label": LABEL}) if one["Id"] == helper]
    (tag,) = own_names(image)
    made = datetime.fromtimestamp(image["Created"], tz=UTC)
    nameless = {**image, "RepoTags": None}
    assert outdated([image, nameless], "other:tag", made + timedelta(days=6)) == []
    assert outdated([image, nameless], "other:tag", made + timedelta(days=8)) == [tag, helper]
    assert outdated([image], tag, made + timedelta(days=8)) == []
    named = {**image, "RepoTags": ["of-somebody:else", tag]}
    assert outdated([named], "other:tag", made + timedelta(days=8)) == [tag]


def test_a_host_that_lacks_git_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("executors.docker.host_root.SEARCH_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostIncomplete, match=r"lacks sh, git, tar, .*: install them, or set \"helper_image\""):
        host_root()


def test_the_same_host_makes_the_same_archive() -> None:
    first, second = host_root(), host_root()
    assert first.digest() == second.digest()
    assert first.signature() == second.signature()
    written = []
    for root in (first, second):
        stream = io.BytesIO()
        root.write(stream)
        written.append(stream.getvalue())
    assert written[0] == written[1]
    with tarfile.open(fileobj=io.BytesIO(written[0])) as archive:
        members = archive.getmembers()
    assert {(member.uid, member.gid, member.mtime) for member in members} == {(0, 0, 0)}
    assert not [member.name for member in members if member.mode & 0o6022 and not member.issym() and not member.isdir()]
