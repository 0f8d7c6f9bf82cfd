"""What a job cost: time by stage, processor, memory, bytes moved, caches found. In the log, the record and the metrics.

Times come from the journal, the rest from what whoever runs the job's processes has added up: so they are the same for a
process that adopts the job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec
import structlog

from executors.base import Environment, MeasuresUsage, ScriptedPlace
from executors.errors import ExecutorError
from executors.file_operations import write_private
from runner.config.size import format_size
from runner.job.outcome import Outcome
from runner.job.record import REPORT, Fact, JobRecord, StepEnded, StepStarted
from runner.job.stages import Stage
from runner.trace.log import JobLog

log = structlog.get_logger()

SECTION = "job_costs"
UP = "up"
DOWN = "down"
HIT = "hit"
MISS = "miss"
_STAGES = frozenset(Stage)


class Tally:
    """Counts inside a stage: bytes that are moved, caches that are found. The end of the stage takes them down."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, what: str, count: int = 1) -> None:
        """So many more of :data:`UP` or :data:`DOWN` (bytes), :data:`HIT` or :data:`MISS` (caches)."""
        self._counts[what] += count

    def take(self) -> dict[str, int]:
        """What was counted since the last time."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)


class StageTime(msgspec.Struct, frozen=True, kw_only=True):
    """A stage, all its attempts together: when it first began (Unix seconds), and what it took."""

    name: str
    began_s: float
    duration_s: float


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """What a job cost. Processor and memory are those of all its processes, tools of the runner's included: ``max_rss_bytes`` is
    the largest process, as ``time -v`` counts, or (``peak_of``) the largest container, as its cgroup counts; both None where
    the executor cannot tell. Bytes are those of artifacts and remote caches; they, and the caches found, are None where a
    place moves them itself.
    """

    duration_s: float
    stages: tuple[StageTime, ...]
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    max_rss_bytes: int | None = None
    peak_of: str = "process"
    up_bytes: int | None = None
    down_bytes: int | None = None
    log_bytes: int = 0
    cache_hits: int | None = None
    cache_misses: int | None = None


def stage_times(facts: Iterable[Fact]) -> tuple[StageTime, ...]:
    """The stages of a journal in their order; the runner's own small steps between them are none."""
    began: dict[str, int] = {}
    found: dict[str, StageTime] = {}
    for fact in facts:
        if isinstance(fact, StepStarted) and not fact.within:
            began[fact.step] = fact.at_ns
        elif isinstance(fact, StepEnded) and fact.step in began:
            name = fact.step.partition(" ")[0]
            if name in _STAGES or name.startswith("step_"):
                begin_ns = began[fact.step]
                so_far = found.get(name) or StageTime(name=name, began_s=begin_ns / 1e9, duration_s=0.0)
                spent_s = so_far.duration_s + (fact.at_ns - begin_ns) / 1e9
                found[name] = StageTime(name=name, began_s=so_far.began_s, duration_s=round(spent_s, 6))
    return tuple(found.values())


async def sum_up(record: JobRecord, environment: Environment, *, log_bytes: int, now_ns: int) -> Costs:
    """The costs up to now."""
    counts: Counter[str] = Counter()
    for fact in record.journal.facts:
        if isinstance(fact, StepEnded):
            counts.update(fact.counts)
    has_counts = not isinstance(environment, ScriptedPlace)
    usage = None
    if isinstance(environment, MeasuresUsage):
        try:
            usage = await environment.usage()
        except (ExecutorError, OSError) as error:
            log.warning("processor and memory of a job are unknown", error=str(error))
    return Costs(
        duration_s=round((now_ns - record.accepted.accepted_at_ns) / 1e9, 6),
        stages=stage_times(record.journal.facts),
        cpu_user_s=usage.cpu_user_s if usage is not None else None,
        cpu_system_s=usage.cpu_system_s if usage is not None else None,
        max_rss_bytes=usage.max_rss_bytes if usage is not None else None,
        peak_of=usage.peak_of if usage is not None else "process",
        up_bytes=counts[UP] if has_counts else None,
        down_bytes=counts[DOWN] if has_counts else None,
        log_bytes=log_bytes,
        cache_hits=counts[HIT] if has_counts else None,
        cache_misses=counts[MISS] if has_counts else None,
    )


def describe(costs: Costs) -> list[str]:
    """Lines for the log."""
    stages = ", ".join(f"{stage.name} {stage.duration_s:.2f} s" for stage in costs.stages)
    lines = [f"Time:    {costs.duration_s:.2f} s ({stages})"]
    if costs.cpu_user_s is not None and costs.cpu_system_s is not None:
        lines.append(f"CPU:     {costs.cpu_user_s:.2f} s user, {costs.cpu_system_s:.2f} s system")
    if costs.max_rss_bytes is not None:
        lines.append(f"Memory:  {format_size(costs.max_rss_bytes)} in the largest {costs.peak_of}")
    if costs.up_bytes is not None and costs.down_bytes is not None:
        lines.append(f"Moved:   {format_size(costs.up_bytes)} up, {format_size(costs.down_bytes)} down")
    if costs.cache_hits or costs.cache_misses:
        lines.append(f"Caches:  {costs.cache_hits} found, {costs.cache_misses} missed")
    return lines


def show(job_log: JobLog, costs: Costs, *, time_ns: int) -> None:
    """The section of the log."""
    job_log.section_start(SECTION, time_ns=time_ns, collapsed=True)
    job_log.header("Costs of this job", time_ns=time_ns)
    for line in describe(costs):
        job_log.plain(line, time_ns=time_ns)
    job_log.section_end(SECTION, time_ns=time_ns)


def write_report(record: JobRecord, costs: Costs | None, outcome: Outcome, *, project_id: int) -> None:
    """The same as JSON in the record."""
    accepted = record.accepted
    report = {
        "job": accepted.job_id,
        "project": project_id,
        "accepted_at_s": accepted.accepted_at_ns / 1e9,
        "state": "success" if outcome.succeeded else "failed",
        "failure_reason": outcome.reason,
        "exit_code": outcome.exit_code,
        "costs": costs,
    }
    try:
        write_private(str(record.directory / REPORT), msgspec.json.encode(report))
    except OSError as error:
        log.warning("the report of a job could not be written", error=error.strerror)


def decode_costs(text: str) -> Costs:
    """Costs as the journal has them. Raises :class:`msgspec.DecodeError`."""
    return msgspec.json.decode(text, type=Costs)


def encode_costs(costs: Costs) -> str:
    """Costs for the journal."""
    return msgspec.json.encode(costs).decode()
