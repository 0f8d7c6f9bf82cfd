"""Processor time and memory of containers, as their cgroups count them.

A cgroup is gone when its container has ended. So the shell of a script says itself, as the last thing it does, what its
container has used; that stands in the container's log like all output, for whoever reads it and whenever, and is cut out.
Of containers that run the helper's shell or the engine is asked.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from executors.base import Stream, Usage
from executors.docker.errors import EngineError, EngineUnreachable

if TYPE_CHECKING:
    from executors.docker.client import Engine

log = structlog.get_logger()

STATS_S = 5.0
NS_PER_S = 1e9
# Longer than what any kernel says of a container.
FIGURES_BYTES = 4096
_ENTRY = re.compile(r"([a-z_/.]+(?: [a-z_]+)?) (\d{1,19})")
# Where an engine may make no cgroups (rootless, version 1) the container is in the host's, which is not asked.
# A container sees its own cgroup there: of version 1 each controller, of version 2 the whole, below its path in the host's
# name space where it has none of its own.
_READ = """\
pyrunner_used=
pyrunner_path=
pyrunner_group=
while IFS=: read -r pyrunner_number pyrunner_names pyrunner_line; do
if [ "$pyrunner_number" = 0 ] && [ "$pyrunner_line" != / ]; then pyrunner_path=$pyrunner_line; fi
case ,$pyrunner_names, in *,cpuacct,*) pyrunner_group=$pyrunner_line ;; esac
done </proc/self/cgroup
for pyrunner_file in cpuacct/cpuacct.usage cpuacct/cpuacct.usage_user memory/memory.max_usage_in_bytes \
memory/memory.oom_control "$pyrunner_path/cpu.stat" "$pyrunner_path/memory.peak" "$pyrunner_path/memory.events"; do
case $pyrunner_group$pyrunner_file in /cpuacct*|/memory/*) continue ;; esac
if [ -r "/sys/fs/cgroup/$pyrunner_file" ]; then
while read -r pyrunner_line; do
pyrunner_used="$pyrunner_used${pyrunner_file#"$pyrunner_path/"} $pyrunner_line;"
done <"/sys/fs/cgroup/$pyrunner_file"
fi
done
"""
READ = f'{_READ}printf %s "$pyrunner_used"\n'


def say_at_end(nonce: str) -> str:
    """Commands for a shell that make it say, when it ends, what its container has used."""
    # In two parts: the script's own text must not look like what it says.
    text = f"set +ex\n{_READ}printf '%s%s=%s\\n' {nonce[:16]} {nonce[16:]} \"$pyrunner_used\"\n"
    quoted = text.replace("'", "'\\''")
    return f"trap '{quoted}' EXIT\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What one container has used since it was started. ``peak_bytes`` is the most memory at one time, with what the kernel
    keeps of files for it; None where nobody counted. ``oom_kills`` are processes that the kernel has ended for want of memory,
    as far as it was asked."""

    cpu_user_s: float
    cpu_system_s: float
    peak_bytes: int | None
    oom_kills: int = 0

    def as_json(self) -> dict[str, Any]:
        """For a journal."""
        return {
            "cpu_user_s": self.cpu_user_s,
            "cpu_system_s": self.cpu_system_s,
            "peak_bytes": self.peak_bytes,
            "oom_kills": self.oom_kills,
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Used:
        """From a journal."""
        return cls(
            cpu_user_s=found["cpu_user_s"],
            cpu_system_s=found["cpu_system_s"],
            peak_bytes=found["peak_bytes"],
            oom_kills=found.get("oom_kills", 0),
        )


def parse(text: str) -> Used | None:
    """What :data:`READ` has printed; None where the processor's time is not in it."""
    found = {match[1]: match[2] for entry in text.split(";") if (match := _ENTRY.fullmatch(entry))}
    peak = found.get("memory/memory.max_usage_in_bytes") or found.get("memory.peak")
    if "cpuacct/cpuacct.usage" in found:
        total_s = int(found["cpuacct/cpuacct.usage"]) / NS_PER_S
        user_s = min(int(found.get("cpuacct/cpuacct.usage_user", 0)) / NS_PER_S, total_s)
    elif "cpu.stat usage_usec" in found:
        total_s = int(found["cpu.stat usage_usec"]) / 1e6
        user_s = min(int(found.get("cpu.stat user_usec", 0)) / 1e6, total_s)
    else:
        return None
    kills = found.get("memory/memory.oom_control oom_kill") or found.get("memory.events oom_kill") or 0
    return Used(
        cpu_user_s=user_s,
        cpu_system_s=total_s - user_s,
        peak_bytes=int(peak) if peak is not None else None,
        oom_kills=int(kills),
    )


async def stats_of(engine: Engine, container: str) -> Used | None:
    """What an engine says of a container that runs; None of one that does not, or where it does not say."""
    params = {"stream": "false", "one-shot": "true"}
    try:
        async with asyncio.timeout(STATS_S), engine.stream("GET", f"/containers/{container}/stats", params=params) as response:
            return from_stats(await response.json(content_type=None))
    except (EngineError, EngineUnreachable, TimeoutError, ValueError, KeyError, TypeError) as error:
        log.debug("an engine does not say what a container has used", container=container, error=str(error))
        return None


def from_stats(answer: Any) -> Used | None:
    """The same from an engine's answer. Of version 2 of cgroups an engine knows no peak: then it is what the container has at
    the moment."""
    cpu, memory = answer["cpu_stats"]["cpu_usage"], answer.get("memory_stats") or {}
    total_s = cpu["total_usage"] / NS_PER_S
    if not total_s:
        return None
    user_s = min(cpu.get("usage_in_usermode", 0) / NS_PER_S, total_s)
    peak = memory.get("max_usage") or memory.get("usage")
    return Used(cpu_user_s=user_s, cpu_system_s=total_s - user_s, peak_bytes=peak)


def sum_up(containers: Iterable[Used]) -> Usage | None:
    """What containers have used together; of memory the largest one."""
    known = list(containers)
    if not known:
        return None
    peaks = [one.peak_bytes for one in known if one.peak_bytes is not None]
    return Usage(
        cpu_user_s=sum(one.cpu_user_s for one in known),
        cpu_system_s=sum(one.cpu_system_s for one in known),
        max_rss_bytes=max(peaks, default=None),
        peak_of="container",
    )


class FiguresCut:
    """Takes out of a script's output what its shell says of the container at its end.

    The engine divides lines that are very long, so that may come in two parts: what could be the beginning of it is held
    back until more comes, or :meth:`rest` is asked for.
    """

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self._mark = f"{nonce}=".encode()
        self._held = b""
        self.used: Used | None = None

    def concern(self, data: bytes) -> bool:
        """Whether a piece has to go through :meth:`feed`: few have."""
        return bool(self._held) or not data.endswith(b"\n") or self._mark in data

    def feed(self, stream: int, data: bytes) -> bytes:
        """The output in the next piece of a stream."""
        if stream != Stream.STDOUT:
            return data
        data, self._held = self._held + data, b""
        begin = data.find(self._mark)
        if begin < 0:
            return self._hold(data, len(data) - self._beginning(data))
        end = data.find(b"\n", begin)
        if end < 0:
            return self._hold(data, begin) if len(data) - begin <= FIGURES_BYTES else data
        self.used = parse(data[begin + len(self._mark) : end].decode(errors="replace")) or self.used
        return data[:begin] + data[end + 1 :]

    def rest(self) -> bytes:
        """What was held back and is output after all: nothing more comes."""
        data, self._held = self._held, b""
        return data

    def _hold(self, data: bytes, at: int) -> bytes:
        self._held = data[at:]
        return data[:at]

    def _beginning(self, data: bytes) -> int:
        """How many bytes at the end could be the first ones of the mark."""
        longest = min(len(data), len(self._mark) - 1)
        return next((size for size in range(longest, 0, -1) if data.endswith(self._mark[:size])), 0)
