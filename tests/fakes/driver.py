"""The example driver of the custom executor as tests use it."""

from __future__ import annotations

import shutil
from pathlib import Path

DRIVER = Path(__file__).resolve().parents[2] / "examples" / "custom-driver" / "driver.sh"
TABLE = """
  [runners.custom]
    config_exec = "{driver}"
    config_args = ["config"]
    prepare_exec = "{driver}"
    prepare_args = ["prepare"]
    run_exec = "{driver}"
    run_args = ["run"]
    cleanup_exec = "{driver}"
    cleanup_args = ["cleanup"]
    graceful_kill_timeout = 5
"""
# Every call leaves a line in $DRIVER_LOG: which step, which stage.
LOGGING = """#!/bin/bash
echo "$1 ${3-}" >>"$DRIVER_LOG"
exec "$DRIVER" "$@"
"""


def custom_table(driver: Path | str = DRIVER, more: str = "") -> str:
    """``[runners.custom]`` with one program for all steps."""
    return TABLE.format(driver=driver) + more


def write_program(path: Path, text: str) -> Path:
    """A program of the test's own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def sandbox_environment(root: Path, tool: str = "unshare") -> dict[str, str]:
    """What the example driver goes by; it writes below ``root`` only. Tests lie in /tmp, which is the sandbox's own."""
    assert shutil.which(tool), f"the tests of the custom executor need {tool} (util-linux, bubblewrap)"
    return {
        "DRIVER": str(DRIVER),
        "DRIVER_ROOT": str(root / "places"),
        "DRIVER_LOG": str(root / "driver.log"),
        "DRIVER_TOOL": tool,
        "DRIVER_HIDE": "",
    }
