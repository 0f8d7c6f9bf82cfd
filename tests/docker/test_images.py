"""Every pull policy on a real engine, with the lines that the reference shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from executors.docker.client import Engine
from executors.docker.config import DockerConfig
from executors.docker.connection import Connection
from executors.docker.errors import EngineUnreachable
from executors.docker.images import JobImages, Pulls, find_image
from executors.docker.lines import KeptLines, Level
from executors.errors import ImagePullError, InvalidSpec, PrepareError
from tests.docker import registry

pytestmark = pytest.mark.docker


@pytest.fixture
def opened(client: docker.APIClient, busybox: str, tmp_path: Path) -> Iterator[str]:
    """A registry without accounts, with ``gold/app`` in two versions; one of them is ``latest``."""
    with registry.serving(tmp_path / "registry") as host:
        for tag in ("latest", "1"):
            layered = registry.unique(client, busybox)
            registry.push(client, layered, f"{host}/gold/app:{tag}")
        yield host
        registry.forget(client, host)


def job(engine: Engine, home: Path, *policies: str, allowed: tuple[str, ...] = ()) -> JobImages:
    config = DockerConfig(pull_policy=policies, allowed_pull_policies=allowed)
    return JobImages(engine, Pulls(), config, home=home)


async def test_always_pulls_once_a_job(engine: Engine, opened: str, tmp_path: Path) -> None:
    images, name = job(engine, tmp_path), f"{opened}/gold/app:1"
    lines = KeptLines()
    image = await images.get(name, lines=lines)
    effective = (Level.PLAIN, f"Using effective pull policy of [always] for container {name}")
    using = (Level.PLAIN, f"Using docker image {image.id} for {name} with digest {image.digest} ...")
    assert lines.kept == [effective, (Level.PLAIN, f"Pulling docker image {name} ..."), using]
    assert image.digest.startswith(f"{opened}/gold/app@sha256:")
    assert image.reference == image.id
    again = KeptLines()
    assert await images.get(name, lines=again) == image
    assert again.kept == [effective, using]
    other = KeptLines()
    await job(engine, tmp_path).get(name, lines=other)
    assert other.kept == lines.kept, "another job asks the registry"


async def test_if_not_present_asks_no_registry_for_what_is_there(engine: Engine, opened: str, tmp_path: Path) -> None:
    name = f"{opened}/gold/app:1"
    first, second = KeptLines(), KeptLines()
    image = await job(engine, tmp_path, "if-not-present").get(name, lines=first)
    assert (Level.PLAIN, f"Pulling docker image {name} ...") in first.kept
    await job(engine, tmp_path, "if-not-present").get(name, lines=second)
    assert second.kept == [
        (Level.PLAIN, f"Using effective pull policy of [if-not-present] for container {name}"),
        (Level.PLAIN, 'Using locally found image version due to "if-not-present" pull policy'),
        (Level.PLAIN, f"Using docker image {image.id} for {name} with digest {image.digest} ..."),
    ]


async def test_never_takes_what_is_there(engine: Engine, busybox: str, tmp_path: Path) -> None:
    lines = KeptLines()
    image = await job(engine, tmp_path, "never").get(busybox, lines=lines)
    assert lines.kept[0] == (Level.PLAIN, f"Using effective pull policy of [never] for container {busybox}")
    assert lines.kept[1][1].startswith(f"Using docker image {image.id} for {busybox}")
    assert len(lines.kept) == 2
    assert image.command == ("sh",)
    assert any(entry.startswith("PATH=") for entry in image.environment)


async def test_never_and_absent_is_the_engines_own_answer(engine: Engine, tmp_path: Path) -> None:
    lines = KeptLines()
    why = "Error response from daemon: no such image: no-such:1: No such image: no-such:1"
    with pytest.raises(PrepareError) as caught:
        await job(engine, tmp_path, "never").get("no-such:1", lines=lines)
    assert str(caught.value) == f'failed to pull image "no-such:1" with specified policies [never]: {why}'
    assert lines.kept == [
        (Level.PLAIN, "Using effective pull policy of [never] for container no-such:1"),
        (Level.WARNING, f'Failed to pull image with policy "never": {why}'),
    ]


async def test_the_next_policy_is_tried_when_one_fails(engine: Engine, busybox: str, tmp_path: Path) -> None:
    lines = KeptLines()
    images = job(engine, tmp_path, "if-not-present", allowed=("if-not-present", "never"))
    with pytest.raises(PrepareError):
        await images.get("UPPER", policies=["always", "if-not-present", "never"], lines=lines)
    assert [text for level, text in lines.kept if level is Level.INFO] == ['Attempt #2: Trying "never" pull policy']
    lines = KeptLines()
    image = await images.get(busybox, policies=["never", "always", "if-not-present"], lines=lines)
    assert lines.kept[0][1] == f"Using effective pull policy of [never if-not-present] for container {busybox}"
    assert image.name == busybox


async def test_a_registry_that_is_down_does_not_matter_when_the_image_is_there(
    engine: Engine, opened: str, client: docker.APIClient, busybox: str, tmp_path: Path
) -> None:
    name = f"{opened}/gold/none:1"
    client.tag(busybox, f"{opened}/gold/none", "1")
    lines = KeptLines()
    image = await job(engine, tmp_path, "always", "if-not-present").get(name, lines=lines)
    assert image.name == name
    assert [level for level, _ in lines.kept] == [Level.PLAIN, Level.PLAIN, Level.WARNING, Level.INFO, Level.PLAIN, Level.PLAIN]
    assert lines.kept[3] == (Level.INFO, 'Attempt #2: Trying "if-not-present" pull policy')


async def test_an_image_named_by_its_id_is_never_pulled(engine: Engine, busybox: str, tmp_path: Path) -> None:
    found = await find_image(engine, busybox)
    assert found is not None
    lines = KeptLines()
    image = await job(engine, tmp_path, "always").get(found.id, lines=lines)
    assert image.id == found.id
    assert lines.kept == [(Level.PLAIN, f"Using effective pull policy of [always] for container {found.id}")]


async def test_a_name_without_a_tag_is_latest_and_only_that(
    engine: Engine, client: docker.APIClient, opened: str, tmp_path: Path
) -> None:
    lines = KeptLines()
    await job(engine, tmp_path).get(f"{opened}/gold/app", lines=lines)
    assert lines.kept[1] == (Level.PLAIN, f"Pulling docker image {opened}/gold/app ...")
    assert [image["RepoTags"] for image in client.images(f"{opened}/gold/app")] == [[f"{opened}/gold/app:latest"]]


async def test_an_image_is_pulled_by_digest(engine: Engine, opened: str, tmp_path: Path) -> None:
    images = job(engine, tmp_path)
    digest = (await images.get(f"{opened}/gold/app:1", lines=KeptLines())).digest
    image = await job(engine, tmp_path).get(digest, lines=KeptLines())
    assert image.digest == digest


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("UPPER:x y", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("a b", "invalid reference format"),
        ("../containers/json?x=", "invalid reference format"),
    ],
)
async def test_a_name_that_is_none_never_reaches_the_engine(name: str, why: str, tmp_path: Path) -> None:
    engine = Engine(Connection(host="unix:///nonexistent/docker.sock"))
    try:
        lines = KeptLines()
        with pytest.raises(ImagePullError) as caught:
            await job(engine, tmp_path, "if-not-present").get(name, lines=lines)
    finally:
        await engine.close()
    assert str(caught.value) == f'failed to pull image "{name}" with specified policies [if-not-present]: {why}'
    assert lines.kept[1:] == [
        (Level.PLAIN, f"Pulling docker image {name} ..."),
        (Level.WARNING, f'Failed to pull image with policy "if-not-present": {why}'),
    ]


async def test_platforms(engine: Engine, client: docker.APIClient, opened: str, tmp_path: Path) -> None:
    name, own = f"{opened}/gold/app:1", f"linux/{client.version()['Arch']}"
    lines = KeptLines()
    image = await job(engine, tmp_path).get(name, platform=own, lines=lines)
    assert lines.kept[1] == (Level.PLAIN, f"Pulling docker image {name} for platform {own} ...")
    assert image.platform == own
    assert image.reference == image.digest, "two platforms may share the name"
    lines = KeptLines()
    why = '"a/b/c/d": cannot parse platform specifier: invalid argument'
    with pytest.raises(InvalidSpec) as caught:
        await job(engine, tmp_path, "if-not-present").get(name, platform="a/b/c/d", lines=lines)
    assert str(caught.value) == f'failed to pull image "{name}" with specified policies [if-not-present]: {why}'


async def test_without_an_engine_no_policy_is_to_blame(tmp_path: Path) -> None:
    engine = Engine(Connection(host="unix:///nonexistent/docker.sock"))
    try:
        with pytest.raises(EngineUnreachable):
            await job(engine, tmp_path, "always", "never").get("busybox", lines=KeptLines())
    finally:
        await engine.close()
