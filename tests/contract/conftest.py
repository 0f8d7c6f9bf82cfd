"""Fixtures of the contract tests: a coordinator, and daemons that leave nothing behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon

CONFIG = """concurrent = 4
check_interval = 1
shutdown_timeout = 10

[[runners]]
  name = "lab"
  url = "{url}"
  token = "glrt-lab"
  executor = "shell"
  builds_dir = "{root}/builds"
  cache_dir = "{root}/cache"
"""


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator(tmp_path / "server", trace_interval=1) as coordinator:
        yield coordinator


@pytest.fixture
async def make_daemon(tmp_path: Path, fake: FakeCoordinator) -> AsyncIterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(*, extra: str = "", before: str = "") -> Daemon:
        root = tmp_path / f"runner-{len(made)}"
        config = before + CONFIG.format(url=fake.url, root=root) + extra
        daemon = Daemon(root, config)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        await daemon.stop()
