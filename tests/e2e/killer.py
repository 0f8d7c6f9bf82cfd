"""``pyrunner`` that dies by SIGKILL at a chosen fact of its journals: started in its place by the tests.

``KILL_AT`` is ``<moment> <fact>``: ``before`` the fact is written, in the middle of its line (``torn``), or ``after``.
``FACTS`` is a file that gets the names of the facts, one a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable

write = os.pwrite
append = os.write
moment, _, wanted = os.environ.pop("KILL_AT", "").partition(" ")
facts = os.environ.pop("FACTS", "")
seen: Counter[str] = Counter()


def name_of(line: bytes) -> str:
    fact = json.loads(line)
    name = " ".join(str(fact[key]) for key in ("fact", "step", "name", "scope") if key in fact)
    seen[name] += 1
    return f"{name} {seen[name]}" if fact["fact"] == "patch" else name


def pwrite(fd: int, data: bytes, offset: int, /) -> int:
    if not os.readlink(f"/proc/self/fd/{fd}").endswith("journal.jsonl"):
        return write(fd, data, offset)
    return put(data, name_of(data), lambda part: write(fd, part, offset))


def write_line(fd: int, data: bytes, /) -> int:
    """The journal of a job's containers, whose facts are named ``docker <fact> <name>``."""
    if fd < 3 or not os.readlink(f"/proc/self/fd/{fd}").endswith("docker.jsonl"):
        return append(fd, data)
    fact = json.loads(data)
    # Containers have other names in every run.
    name = fact["name"] if len(fact["name"]) < 3 else ""
    return put(data, f"docker {fact['fact']} {name}".rstrip(), lambda part: append(fd, part))


def put(data: bytes, name: str, write_out: Callable[[bytes], int]) -> int:
    if facts:
        with open(facts, "a") as file:
            file.write(name + "\n")
    if name == wanted and moment == "torn":
        write_out(data[: len(data) // 2])
    elif name == wanted and moment == "after":
        write_out(data)
    if name == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_out(data)


if __name__ == "__main__":
    os.pwrite = pwrite  # type: ignore[assignment]
    os.write = write_line  # type: ignore[assignment]
    from runner.cli.main import main

    sys.argv[0] = "pyrunner"
    main()
