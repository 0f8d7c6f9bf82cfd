"""Whom an image's user is, asked on a real engine."""

from __future__ import annotations

from collections.abc import Iterator

import docker
import docker.errors
import pytest

from executors.docker.client import Engine
from executors.docker.names import Names
from executors.docker.ownership import Owner, image_owner
from executors.errors import ExecutorError
from tests.docker import images
from tests.docker.made import LABEL, fresh_names, swept

pytestmark = pytest.mark.docker


@pytest.fixture
def names(client: docker.APIClient) -> Iterator[Names]:
    with swept(client, fresh_names()) as found:
        yield found


async def owner(engine: Engine, names: Names, image: str, user: str) -> Owner | None:
    return await image_owner(engine, image=image, user=user, names=names, labels={LABEL: names.attempt})


@pytest.mark.parametrize(
    ("user", "found"), [("1500", Owner(1500, 0)), ("1500:7", Owner(1500, 7)), ("worker", Owner(1000, 1000)), ("0", None)]
)
async def test_user_of_an_image_is_asked_for(
    engine: Engine, client: docker.APIClient, names: Names, user: str, found: Owner | None
) -> None:
    image = images.make(client, f"pyrunner-test-user:{user.replace(':', '-')}", images.busybox(), [f"USER {user}"])
    assert await owner(engine, names, image, user) == found
    with pytest.raises(docker.errors.NotFound):
        client.inspect_container(f"{names.build}-id")


@pytest.mark.parametrize("user", ["", "root"])
async def test_nothing_runs_for_images_of_root(engine: Engine, names: Names, user: str) -> None:
    assert await owner(engine, names, "nosuch:image", user) is None


async def test_image_that_cannot_tell_is_an_error(engine: Engine, client: docker.APIClient, names: Names) -> None:
    image = images.make(client, "pyrunner-test-user:none", images.empty(), ["USER 1000"])
    with pytest.raises(ExecutorError):
        await owner(engine, names, image, "1000")


def test_ownership_is_changed_without_following_links() -> None:
    assert Owner(1000, 0).command("/builds/a b") == ("chown", "-RP", "--", "1000:0", "/builds/a b")
    assert Owner(1000, 0).line("/builds/git/app") == 'Changing ownership of files at "/builds/git/app" to 1000:0'
