"""Fixtures of the unit tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from executors.base import JobSpec
from executors.registry import HostSettings
from executors.shell import ShellEnvironment, ShellExecutor


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[ShellEnvironment]:
    """A prepared job on this host; its project directory is ``p``."""
    settings = HostSettings(state_dir=str(tmp_path), environment={"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    executor = ShellExecutor(settings)
    for name in ("record", "p"):
        (tmp_path / name).mkdir()
    spec = JobSpec(job_id=1, record_dir=tmp_path / "record", project_dir=str(tmp_path / "p"), tmp_dir=str(tmp_path / "t"))
    found = ShellEnvironment(executor, spec)
    await found.prepare()
    yield found
    await found.cleanup()
    await executor.close()
