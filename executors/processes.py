"""Processes of a job, found and ended from above. Standard library only."""

from __future__ import annotations

import os
import signal

# A process that is stopped makes no others: so many looks find every one of a tree that grows while it is looked at.
FREEZE_ROUNDS = 100


def descendants(pid: int) -> list[int]:
    """All living processes below ``pid``, from the kernel's lists of children."""
    found = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop()
        children = []
        try:
            for task in os.listdir(f"/proc/{parent}/task"):
                with open(f"/proc/{parent}/task/{task}/children") as file:
                    children += [int(word) for word in file.read().split()]
        except OSError:
            continue
        found += children
        waiting += children
    return [child for child in found if process_name(child) is not None]


def process_name(pid: int) -> str | None:
    """The command name of a process, which may be empty; None for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    return None if rest.split()[:1] in (["Z"], ["X"], []) else name


def signal_all(pids: list[int], number: int) -> None:
    """Signal processes; those that are gone are fine."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:
            pass


def signal_group(leader: int, number: int) -> bool:
    """Signal a process group; whether it is there."""
    try:
        os.killpg(leader, number)
    except OSError:
        return False
    return True


def kill_below(pid: int, also: tuple[int, ...] = ()) -> None:
    """SIGKILL to everything below ``pid``, and to ``also``. What forks faster than it is killed is stopped first."""
    frozen: set[int] = set()
    for _ in range(FREEZE_ROUNDS):
        fresh = [child for child in (*also, *descendants(pid)) if child not in frozen]
        if not fresh:
            break
        signal_all(fresh, signal.SIGSTOP)
        frozen.update(fresh)
    signal_all(list(frozen), signal.SIGKILL)
