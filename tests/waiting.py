"""Waiting for what a process does, and looking for processes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path


async def until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Wait until ``condition()`` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


def files_below(root: Path, name: str = "") -> list[Path]:
    """Files, or what else is called ``name``, below ``root``, where others may be removing directories meanwhile."""
    found = [Path(at, entry) for at, directories, files in os.walk(root) for entry in (*directories, *files)]
    return [path for path in found if (path.name == name if name else path.is_file() and not path.is_symlink())]


def processes_below(root: Path) -> list[str]:
    """Commands of processes whose working directory lies below ``root``."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if os.readlink(entry / "cwd").startswith(str(root)):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found
