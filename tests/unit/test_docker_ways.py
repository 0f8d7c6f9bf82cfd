"""Volumes within volumes: where a job could have left links on the way."""

from __future__ import annotations

import pytest

from executors.docker.volumes import Mount
from executors.docker.ways import Level, levels


def kept(path: str) -> Mount:
    return Mount(source=f"v{path}", destination=path, name=f"v{path}", reusable=True)


def temporary(path: str) -> Mount:
    return Mount(source=f"t{path}", destination=path, name=f"t{path}")


CACHE, DEEP, DEEPER = kept("/cache"), kept("/cache/a/b"), kept("/cache/a/b/c")
HOST = Mount(source="/srv", destination="/srv")


@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ([], []),
        ([CACHE, HOST, kept("/cachet"), temporary("/builds")], []),
        ([DEEP, CACHE, HOST], [Level(("v/cache:/cache", "/srv:/srv"), ("/cache/a", "/cache/a/b"))]),
        (
            [CACHE, DEEP, DEEPER],
            [
                Level(("v/cache:/cache",), ("/cache/a", "/cache/a/b")),
                Level(("v/cache:/cache", "v/cache/a/b:/cache/a/b"), ("/cache/a/b/c",)),
            ],
        ),
        ([kept("/builds/x"), temporary("/builds")], []),
        ([HOST, kept("/srv/x")], [Level(("/srv:/srv",), ("/srv/x",))]),
    ],
)
def test_levels(mounts: list[Mount], found: list[Level]) -> None:
    assert levels(mounts) == found
