"""What a job cost, from its journal to the lines of its log."""

from __future__ import annotations

from runner.job.costs import Costs, StageTime, Tally, describe, stage_times
from runner.job.record import Fact, StepEnded, StepStarted
from runner.trace.log import LogState
from runner.trace.spool import SpoolState

S = 10**9
STATE = LogState(spool=SpoolState(size=0, crc=0, pending=b"", is_full=False), pending=b"", continues=False)


def started(step: str, at_s: float, within: str = "") -> Fact:
    return StepStarted(step=step, at_ns=int(at_s * S), log=STATE, within=within)


def ended(step: str, at_s: float) -> Fact:
    return StepEnded(step=step, at_ns=int(at_s * S), log=STATE)


def test_attempts_of_a_stage_count_together_and_parts_and_small_steps_not_at_all() -> None:
    facts = [
        started("header", 0),
        ended("header", 1),
        started("get_sources 1", 1),
        started("get_sources 1 pre_get_sources_script", 1.5, within="get_sources 1"),
        ended("get_sources 1 pre_get_sources_script", 2),
        ended("get_sources 1", 3),
        started("retry get_sources 1", 3),
        ended("retry get_sources 1", 3),
        started("get_sources 2", 8),
        ended("get_sources 2", 8.5),
        started("step_script 0", 9),
        ended("step_script 0", 19),
        started("after_script", 19),
    ]
    assert stage_times(facts) == (
        StageTime(name="get_sources", began_s=1, duration_s=2.5),
        StageTime(name="step_script", began_s=9, duration_s=10),
    )


def test_a_tally_is_taken_once() -> None:
    tally = Tally()
    tally.add("up", 5)
    tally.add("up", 7)
    tally.add("hit")
    assert tally.take() == {"up": 12, "hit": 1}
    assert tally.take() == {}


def test_what_is_not_known_is_not_said() -> None:
    costs = Costs(duration_s=2.5, stages=(StageTime(name="step_script", began_s=0, duration_s=1),), up_bytes=1536, down_bytes=0)
    assert describe(costs) == ["Time:    2.50 s (step_script 1.00 s)", "Moved:   1.5 KiB up, 0 B down"]
