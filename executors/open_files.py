"""How many files may be open: as many as the host allows for the daemon, what it began with for everything it starts."""

from __future__ import annotations

import os
import resource

# What the daemon began with; it outlives a re-execution.
BEGAN_WITH = "PYRUNNER_OPEN_FILES"


def raise_limit() -> None:
    """A daemon holds a connection for each runner, and some files for each job; the usual 1024 are for programs that use
    ``select``, which it does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard or soft == resource.RLIM_INFINITY:
        return
    os.environ.setdefault(BEGAN_WITH, str(soft))
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def restore_limit(pid: int) -> None:
    """Give a child what the daemon began with."""
    soft = os.environ.get(BEGAN_WITH, "")
    if soft.isdigit():
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (int(soft), hard))
