"""Imports go one way: executors <- job <- daemon, pipeline <- cli."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEVER = {
    "executors": ("runner",),
    "runner.config": ("runner.job", "runner.daemon", "runner.cli"),
    "runner.coordinator": ("runner.job", "runner.daemon", "runner.cli"),
    "runner.trace": ("runner.job", "runner.daemon", "runner.cli"),
    "runner.archive": ("runner.job", "runner.daemon", "runner.cli"),
    "runner.secrets": ("runner.job", "runner.daemon", "runner.cli", "runner.config"),
    "runner.mirrors": ("runner.job", "runner.daemon", "runner.cli"),
    "runner.disk": ("runner.job", "runner.daemon", "runner.cli"),
    "runner.gocache": ("runner.job", "runner.daemon", "runner.cli"),
    "runner.ops": ("runner.cli",),
    "runner.job": ("runner.daemon", "runner.cli", "runner.pipeline"),
    "runner.daemon": ("runner.cli", "runner.pipeline"),
}


def modules() -> list[tuple[str, Path]]:
    found = []
    for top in ("runner", "executors"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found.append((name, path))
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("package", NEVER)
def test_imports_follow_the_direction_of_the_design(package: str) -> None:
    offenders = [
        f"{name} imports {other}"
        for name, path in modules()
        if below(name, package)
        for other in imported(path)
        if any(below(other, forbidden) for forbidden in NEVER[package])
    ]
    assert offenders == []


SUPERVISOR = (
    "supervisor",
    "daemon_link",
    "run_process",
    "processes",
    "file_operations",
    "file_channel",
    "open_directories",
    "frames",
    "namespaces",
    "usage",
)


@pytest.mark.parametrize("module", ["warm_parent", *SUPERVISOR])
def test_the_supervisor_needs_the_standard_library_only(module: str) -> None:
    own = {f"executors.{name}" for name in SUPERVISOR}
    found = {name.partition(".")[0] for name in imported(ROOT / "executors" / f"{module}.py") if not name.startswith(tuple(own))}
    assert found <= sys.stdlib_module_names
