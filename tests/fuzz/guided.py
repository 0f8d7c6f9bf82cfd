"""The properties of these tests, led by coverage: ``python -m tests.fuzz.guided NAME -max_total_time=60``; needs ``atheris``.

NAME is a test function of this folder; without one all are named. What is found is printed as the arguments of the test, to be
kept as an ``@example`` of it. Other arguments are those of libFuzzer.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULES = [f"tests.fuzz.{path.stem}" for path in sorted(Path(__file__).parent.glob("test_*.py"))]


def targets() -> dict[str, Callable[[bytes], Any]]:
    """What takes bytes, by the names of the tests. Tests with parameters of pytest are left out: each has others."""
    found = {}
    for name in MODULES:
        for key, value in vars(importlib.import_module(name)).items():
            handle = getattr(value, "hypothesis", None)
            if handle is not None and not getattr(value, "pytestmark", None):
                found[key] = handle.fuzz_one_input
    return found


def main() -> None:
    """Run one property until something is found."""
    import atheris

    with atheris.instrument_imports(include=["runner", "executors"], enable_loader_override=False):
        known = targets()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit("one of:\n  " + "\n  ".join(sorted(known)))
    atheris.Setup([sys.argv[0], *sys.argv[2:]], known[sys.argv[1]])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
