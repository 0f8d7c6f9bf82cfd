"""Pulls from a real registry: with and without accounts, and when it does not behave."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from executors.docker import images
from executors.docker.auth import Login, RegistryLogins
from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.images import JobImages, Pulls
from executors.docker.lines import KeptLines, Level
from executors.errors import ExternalFailure, ImagePullError, InvalidSpec
from tests.docker import registry
from tests.docker.registry import PASSWORD, USER, Misbehaving
from tests.waiting import until

pytestmark = pytest.mark.docker
WAIT_S = 60.0
ALWAYS = DockerConfig(pull_policy=("always",))
SECRETS = (PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode())


@pytest.fixture
def private(client: docker.APIClient, busybox: str, tmp_path: Path) -> Iterator[str]:
    """A registry that wants an account, with ``ns/app:1`` in it."""
    with registry.serving(tmp_path / "registry", with_accounts=True) as host:
        registry.push(client, busybox, f"{host}/ns/app:1", login=(USER, PASSWORD))
        yield host
        registry.forget(client, host)


@pytest.fixture
async def unruly(client: docker.APIClient, busybox: str, tmp_path: Path) -> AsyncIterator[tuple[str, Misbehaving]]:
    """A registry that can be told to misbehave, with ``app:1`` in it, whose layer no other image has."""
    with registry.serving(tmp_path / "registry") as host:
        layered = registry.unique(client, busybox)
        registry.push(client, layered, f"{host}/app:1")
        async with registry.misbehaving(host) as (front, steered):
            yield front, steered
            registry.forget(client, front)


def job(
    engine: Engine, home: Path, *, config: DockerConfig = ALWAYS, pulls: Pulls | None = None, **settings: object
) -> JobImages:
    return JobImages(engine, pulls or Pulls(), config, home=home, **settings)  # type: ignore[arg-type]


def payload(host: str, password: str = PASSWORD) -> RegistryLogins:
    return RegistryLogins(payload=(Login(username=USER, password=password, server=host),))


def config_json(host: str, password: str = PASSWORD) -> str:
    return json.dumps({"auths": {host: {"auth": base64.b64encode(f"{USER}:{password}".encode()).decode()}}})


async def test_the_servers_credentials_are_used_and_said(engine: Engine, private: str, tmp_path: Path) -> None:
    lines = KeptLines()
    name = f"{private}/ns/app:1"
    image = await job(engine, tmp_path, logins=payload(private)).get(name, lines=lines)
    assert lines.kept == [
        (Level.PLAIN, f"Using effective pull policy of [always] for container {name}"),
        (Level.PLAIN, "Authenticating with credentials from job payload (GitLab Registry)"),
        (Level.PLAIN, f"Pulling docker image {name} ..."),
        (Level.PLAIN, f"Using docker image {image.id} for {name} with digest {image.digest} ..."),
    ]
    assert not any(secret in str(lines.kept) for secret in SECRETS)


@pytest.mark.parametrize("source", ["variable", "file", "program"])
async def test_other_sources_of_credentials(
    source: str, engine: Engine, private: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins = RegistryLogins()
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    shown = f"{home}/.docker/config.json"
    if source == "variable":
        logins, shown = RegistryLogins(variable=config_json(private)), "$DOCKER_AUTH_CONFIG"
    elif source == "file":
        (home / ".docker" / "config.json").write_text(config_json(private))
    else:
        program = tmp_path / "docker-credential-test"
        answer = json.dumps({"ServerURL": private, "Username": USER, "Secret": PASSWORD})
        program.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        (home / ".docker" / "config.json").write_text(json.dumps({"credHelpers": {private: "test"}}))
    lines = KeptLines()
    image = await job(engine, home, logins=logins).get(f"{private}/ns/app:1", lines=lines)
    assert image.id
    assert (Level.PLAIN, f"Authenticating with credentials from {shown}") in lines.kept


@pytest.mark.parametrize(
    ("password", "said"),
    [
        pytest.param(None, 'Head "http://{host}/v2/ns/app/manifests/1": no basic auth credentials', id="none"),
        pytest.param("wrong-one", "unauthorized: authentication required", id="wrong"),
    ],
)
async def test_without_the_right_credentials_the_configuration_is_to_blame(
    password: str | None, said: str, engine: Engine, private: str, tmp_path: Path
) -> None:
    lines = KeptLines()
    name = f"{private}/ns/app:1"
    logins = RegistryLogins() if password is None else payload(private, password)
    with pytest.raises(InvalidSpec) as caught:
        await job(engine, tmp_path, logins=logins).get(name, lines=lines)
    why = f"Error response from daemon: {said.format(host=private)}"
    assert str(caught.value) == f'failed to pull image "{name}" with specified policies [always]: {why}'
    assert lines.kept[-1] == (Level.WARNING, f'Failed to pull image with policy "always": {why}')
    assert "wrong-one" not in str(lines.kept)


async def test_a_tag_that_is_not_there(engine: Engine, private: str, tmp_path: Path) -> None:
    name = f"{private}/ns/app:none"
    with pytest.raises(InvalidSpec) as caught:
        await job(engine, tmp_path, logins=payload(private)).get(name, lines=KeptLines())
    assert str(caught.value) == (
        f'failed to pull image "{name}" with specified policies [always]: '
        f"Error response from daemon: manifest for {name} not found: manifest unknown: manifest unknown"
    )


async def test_a_registry_that_refuses_connections_is_tried_three_times(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PAUSE_MIN_S", 0.01)
    lines = KeptLines()
    with pytest.raises(ExternalFailure) as caught:
        await job(engine, tmp_path).get("127.0.0.1:9/gold/app:1", lines=lines)
    why = 'Error response from daemon: Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused'
    assert str(caught.value) == f'failed to pull image "127.0.0.1:9/gold/app:1" with specified policies [always]: {why}'
    assert lines.kept[1:] == [
        (Level.PLAIN, "Pulling docker image 127.0.0.1:9/gold/app:1 ..."),
        (Level.WARNING, f'Failed to pull image "127.0.0.1:9/gold/app:1" (attempt #1), retrying: {why}'),
        (Level.WARNING, f'Failed to pull image "127.0.0.1:9/gold/app:1" (attempt #2), retrying: {why}'),
        (Level.WARNING, f'Failed to pull image with policy "always": {why}'),
    ]


async def test_a_registry_that_hangs_is_given_up_and_is_an_external_failure(
    engine: Engine, unruly: tuple[str, Misbehaving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PAUSE_MIN_S", 0.01)
    host, steered = unruly
    steered.mode = "hang"
    lines = KeptLines()
    with pytest.raises(ExternalFailure, match="the registry sent nothing for 1 s: i/o timeout"):
        await job(engine, tmp_path, stall_s=1.0).get(f"{host}/app:1", lines=lines)
    assert len([text for _, text in lines.kept if "retrying" in text]) == 2


async def test_a_registry_that_comes_back_is_pulled_from(
    engine: Engine, unruly: tuple[str, Misbehaving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PAUSE_MIN_S", 0.01)
    host, steered = unruly
    steered.mode = "hang"
    lines = KeptLines()
    task = asyncio.create_task(job(engine, tmp_path, stall_s=2.0).get(f"{host}/app:1", lines=lines))
    await until(lambda: steered.hanging > 0, WAIT_S)
    await until(lambda: "attempt #1" in str(lines.kept), WAIT_S)
    steered.release()
    assert (await task).digest.startswith(f"{host}/app@sha256:")


async def test_a_registry_that_resets_connections(
    engine: Engine, unruly: tuple[str, Misbehaving], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "PAUSE_MIN_S", 0.01)
    host, steered = unruly
    steered.mode = "reset"
    with pytest.raises((ExternalFailure, ImagePullError)) as caught:
        await job(engine, tmp_path).get(f"{host}/app:1", lines=KeptLines())
    assert f'failed to pull image "{host}/app:1"' in str(caught.value)
    assert "connection reset" in str(caught.value) or "EOF" in str(caught.value)


async def test_a_layer_that_is_cut_short_never_becomes_an_image(
    engine: Engine, client: docker.APIClient, unruly: tuple[str, Misbehaving], tmp_path: Path
) -> None:
    host, steered = unruly
    steered.mode = "truncate"
    with pytest.raises(ImagePullError, match=r"verification failed|unexpected EOF|size"):
        await job(engine, tmp_path).get(f"{host}/app:1", lines=KeptLines())
    assert steered.blobs > 0
    assert not client.images(f"{host}/app")


async def test_jobs_that_want_one_image_pull_it_once(engine: Engine, unruly: tuple[str, Misbehaving], tmp_path: Path) -> None:
    host, steered = unruly
    steered.mode = "hang"
    pulls = Pulls()
    kept = [KeptLines() for _ in range(4)]
    tasks = [asyncio.create_task(job(engine, tmp_path, pulls=pulls).get(f"{host}/app:1", lines=lines)) for lines in kept]
    await until(lambda: all("Pulling docker image" in str(lines.kept) for lines in kept), WAIT_S)
    await until(lambda: steered.hanging > 0, WAIT_S)
    before = steered.requests
    steered.release()
    found = await asyncio.gather(*tasks)
    assert len({image.id for image in found}) == 1
    assert before == 1, "one request was under way for all of them"


async def test_a_cancelled_job_lets_go_of_its_pull_and_the_next_one_has_it(
    engine: Engine, unruly: tuple[str, Misbehaving], tmp_path: Path
) -> None:
    host, steered = unruly
    steered.mode = "hang"
    pulls = Pulls()
    task = asyncio.create_task(job(engine, tmp_path, pulls=pulls).get(f"{host}/app:1", lines=KeptLines()))
    await until(lambda: steered.hanging > 0, WAIT_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    steered.release()
    image = await job(engine, tmp_path, pulls=pulls).get(f"{host}/app:1", lines=KeptLines())
    assert image.digest.startswith(f"{host}/app@sha256:")
