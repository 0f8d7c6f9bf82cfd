"""``pyrunner`` that dies by SIGKILL at a chosen fact of its journal: started in its place by the tests.

``KILL_AT`` is ``<moment> <fact>``: ``before`` the fact is written, in the middle of its line (``torn``), or ``after``.
``FACTS`` is a file that gets the names of the facts, one a line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter

write = os.pwrite
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
    name = name_of(data)
    if facts:
        with open(facts, "a") as file:
            file.write(name + "\n")
    if name == wanted and moment == "torn":
        write(fd, data[: len(data) // 2], offset)
    elif name == wanted and moment == "after":
        write(fd, data, offset)
    if name == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(fd, data, offset)


if __name__ == "__main__":
    os.pwrite = pwrite  # type: ignore[assignment]
    from runner.cli.main import main

    sys.argv[0] = "pyrunner"
    main()
