"""Feature flags: code, documentation and reference know the same ones, and the documentation says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from executors.registry import KINDS
from runner.job.flags import DEFAULTS, resolve
from tests.contract.golden import ROOT as RECORDINGS

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `(FF_\w+)` \| (true|false) \| (.+?) \|")
REFERENCE = RECORDINGS.parent / "spec" / "job-lifecycle.md"


def table(path: Path) -> dict[str, tuple[bool, str]]:
    """The rows of a table of flags: default and what is said of it."""
    found = [ROW.match(line) for line in path.read_text().splitlines()]
    return {row[1]: (row[2] == "true", row[3]) for row in found if row}


DOCUMENTED = table(ROOT / "docs" / "feature-flags.md")


def mentions(name: str) -> list[str]:
    """Modules that look at a flag."""
    paths = [path for top in ("runner", "executors") for path in (ROOT / top).rglob("*.py")]
    code = f'"{name}"'
    return [str(path) for path in paths if path.name != "flags.py" and code in path.read_text()]


def test_the_documentation_has_every_flag_in_the_order_of_the_header() -> None:
    assert [(name, default) for name, (default, _) in DOCUMENTED.items()] == list(DEFAULTS.items())


@pytest.mark.skipif(not REFERENCE.is_file(), reason=f"the description of the reference is not at {REFERENCE}")
def test_the_flags_are_those_of_the_reference() -> None:
    assert [(name, default) for name, (default, _) in table(REFERENCE).items()] == list(DEFAULTS.items())


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_flag_is_looked_at_where_it_has_an_effect(name: str) -> None:
    effect = DOCUMENTED[name][1]
    if effect.startswith("Docker: ") and "docker" not in KINDS:
        return
    assert bool(mentions(name)) == (not effect.startswith("none: ")), effect


@pytest.mark.parametrize(
    ("config", "variable", "expected"),
    [
        pytest.param({}, None, False, id="default"),
        pytest.param({}, "true", True, id="variable"),
        pytest.param({}, "", False, id="empty"),
        pytest.param({"FF_TEST_FEATURE": False}, "true", False, id="table-wins"),
        pytest.param({"FF_TEST_FEATURE": True}, "false", True, id="table-wins-too"),
        pytest.param({}, "yes", False, id="unreadable"),
    ],
)
def test_who_decides(config: dict[str, bool], variable: str | None, expected: bool) -> None:
    flags = resolve(config, {"FF_TEST_FEATURE": variable}.get)
    assert flags["FF_TEST_FEATURE"] is expected
    assert bool(flags.warnings) == (variable == "yes")
    assert flags.header() == ("feature flags: FF_TEST_FEATURE:true" if expected else "")
