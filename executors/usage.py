"""Processor time and memory of everything that a job has run, added up as it ends. Standard library only."""

from __future__ import annotations

import json
import os

from executors.file_operations import write_all

# Type names only: importing ``typing`` would cost a third of the memory of a supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from resource import struct_rusage
    from typing import Any

    Message = dict[str, Any]

FILE = "usage"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Spent:
    """``user_s`` and ``system_s`` are sums, ``max_rss_bytes`` is the largest of any process, as ``time -v`` counts."""

    def __init__(self, user_s: float = 0.0, system_s: float = 0.0, max_rss_bytes: int = 0) -> None:
        self.user_s = user_s
        self.system_s = system_s
        self.max_rss_bytes = max_rss_bytes

    def add(self, usage: struct_rusage) -> None:
        """A process that has ended, with those that it has waited for."""
        self.user_s += usage.ru_utime
        self.system_s += usage.ru_stime
        self.max_rss_bytes = max(self.max_rss_bytes, usage.ru_maxrss * 1024)

    def with_living(self, pids: list[int]) -> Spent:
        """The same with processes that still run, and those that they have waited for."""
        total = Spent(self.user_s, self.system_s, self.max_rss_bytes)
        for pid in pids:
            try:
                fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
                peak = [line for line in _read(f"/proc/{pid}/status").splitlines() if line.startswith("VmHWM:")]
            except OSError:
                continue
            user, system, waited_user, waited_system = (int(field) for field in fields[11:15])
            total.user_s += (user + waited_user) / TICKS_PER_S
            total.system_s += (system + waited_system) / TICKS_PER_S
            if peak:
                total.max_rss_bytes = max(total.max_rss_bytes, int(peak[0].split()[1]) * 1024)
        return total

    def as_message(self) -> Message:
        """For the file and the daemon."""
        return {"user_s": self.user_s, "system_s": self.system_s, "max_rss_bytes": self.max_rss_bytes}


def load(dir_fd: int) -> Spent:
    """What an earlier process of the same job has added up."""
    try:
        fd = os.open(FILE, os.O_RDONLY, dir_fd=dir_fd)
    except OSError:
        return Spent()
    try:
        return Spent(**json.loads(os.read(fd, 4096)))
    except (OSError, ValueError, TypeError):
        return Spent()
    finally:
        os.close(fd)


def save(spent: Spent, dir_fd: int) -> None:
    """Leave it for the next one, whole or not at all; without room for it the figures are what is lost."""
    try:
        fd = os.open(f"{FILE}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=dir_fd)
        try:
            write_all(fd, json.dumps(spent.as_message()).encode())
        finally:
            os.close(fd)
        os.rename(f"{FILE}.new", FILE, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        pass


def _read(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()
