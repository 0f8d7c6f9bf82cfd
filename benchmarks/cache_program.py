"""A shared directory against a program behind ``GOCACHEPROG``: ``python -m benchmarks.cache_program [BUILDS]``.

Builds and tests ``examples/go-service`` without a runner, once each way and then so many times in turn when everything is
there, and prints medians of the latter: seconds, and processor time of all processes (the program's included). The program is the
one beside this file. Needs Go 1.24; what it decided is in ``docs/decisions/0004``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
SERVICE = HERE.parent / "examples" / "go-service"
SCRIPT = "go vet ./... && go test ./... && go build -o {} ."


def adopt_orphans() -> None:
    """Be the parent of every process below whose own one is gone (``PR_SET_CHILD_SUBREAPER``)."""
    if ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def build(environment: Mapping[str, str], place: Path) -> tuple[float, float]:
    """Seconds, and seconds of the processor, of a build."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    script = SCRIPT.format(place / "greeter")
    subprocess.run(["sh", "-c", script], cwd=SERVICE, env=environment, check=True, stdout=subprocess.DEVNULL)
    took_s = time.monotonic() - began
    with contextlib.suppress(ChildProcessError):
        while True:  # the Go tool does not wait for the end of its program
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(place: Path, builds: int) -> None:
    """The builds, in turn."""
    program, entries = place / "cache-program", place / "entries"
    entries.mkdir()
    shared = {**os.environ, "GOCACHE": str(place / "shared"), "GOMODCACHE": str(place / "modules"), "GOFLAGS": "-modcacherw"}
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=HERE / "cache_program", env=shared, check=True)
    # The Go tool still wants a directory of its own beside the program.
    asked = {**shared, "GOCACHE": str(place / "unused"), "GOCACHEPROG": f"{program} {entries}"}
    ways = {"shared directory": shared, "program": asked}
    for name, environment in ways.items():
        took_s, cpu_s = build(environment, place)
        print(f"{name}: first build {took_s:.2f} s, {cpu_s:.2f} s of CPU")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(builds):
        for name, environment in ways.items():
            found[name].append(build(environment, place))
    for name, took in found.items():
        seconds, processor = (statistics.median(values) for values in zip(*took, strict=True))
        print(f"{name}: warm build {seconds:.2f} s, {processor:.2f} s of CPU")


def main() -> None:
    """Run it."""
    adopt_orphans()
    builds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    place = Path(tempfile.mkdtemp(prefix="benchmark-"))
    try:
        measure(place, builds)
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
