"""Thresholds of the time in the queue: read, refused, and by the clock of their zone."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from executors.registry import KINDS
from runner.config.load import Loaded, parse
from runner.config.model import QueuingLimit
from runner.config.queuing import is_exceeded

HEAD = """[[runners]]
  name = "a"
  url = "https://example.com"
  token = "glrt-a"
  executor = "shell"
"""
# A Monday; 17:30 in Berlin.
NOW = datetime.fromisoformat("2026-11-30T16:30:05+00:00")


def loaded(entry: str) -> Loaded:
    text = f"{HEAD}  [[runners.monitoring.job_queuing_durations]]\n{entry}\n"
    return parse(text.encode(), Path("config.toml"), environ={}, executors=KINDS)


def limits(entry: str) -> tuple[QueuingLimit, ...]:
    found = loaded(entry)
    assert found.config is not None
    assert not found.diagnostics
    return found.config.runners[0].queuing_limits


def exceeds(found: tuple[QueuingLimit, ...], waited_s: float, project_jobs: str = "0") -> bool:
    return is_exceeded(found, waited_s=waited_s, project_jobs=project_jobs, now=NOW)


def test_a_threshold_is_what_a_job_may_wait() -> None:
    found = limits('periods = ["* * * * * * *"]\nthreshold = "10s"')
    assert [exceeds(found, waited) for waited in (4.5, 10, 10.5)] == [False, False, True]


@pytest.mark.parametrize(
    ("entry", "counts"),
    [
        ('periods = ["* * 17-18 * * mon-fri *"]\ntimezone = "Europe/Berlin"', True),
        ('periods = ["* * 17-18 * * mon-fri *"]\ntimezone = "UTC"', False),
        ('periods = ["* * * * * sat,sun *", "* 30 * * * * 2026"]\ntimezone = "UTC"', True),
        ('periods = ["* * * * * * 2027"]\ntimezone = "UTC"', False),
        ("periods = []", False),
        ('periods = ["30 16 * * *"]\ntimezone = "UTC"', False),  # at its second 0 alone
    ],
)
def test_it_counts_at_its_times(entry: str, counts: bool) -> None:
    assert exceeds(limits(entry + '\nthreshold = "1s"'), 5) is counts


def test_the_last_entry_whose_time_it_is_decides() -> None:
    always = 'periods = ["* * * * * * *"]\nthreshold = "1s"\n'
    later = '[[runners.monitoring.job_queuing_durations]]\nperiods = ["* * * * * * *"]\nthreshold = "1h"'
    never = '[[runners.monitoring.job_queuing_durations]]\nperiods = ["* * * * * * 2027"]\nthreshold = "1h"'
    assert not exceeds(limits(always + later), 5)
    assert exceeds(limits(always + never), 5)


def test_jobs_of_busy_projects_may_be_left_out() -> None:
    found = limits('periods = ["* * * * * * *"]\nthreshold = "1s"\njobs_running_for_project = "^[01]$"')
    assert exceeds(found, 5, "1")
    assert not exceeds(found, 5, "11")


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ('periods = ["x"]', "\"periods\": 'x' is no time (second minute hour"),
        ('periods = ["* * 25 * * * *"]', "\"periods\": '* * 25 * * * *' is no time"),
        ('timezone = "Mars/Olympus"', "there is no time zone 'Mars/Olympus'"),
        ('timezone = "../../etc/passwd"', "there is no time zone"),
        ('periods = ["* * * * * * *"]\njobs_running_for_project = "["', "'[' is no regular expression"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named_and_left_out(entry: str, text: str) -> None:
    found = loaded(entry)
    assert found.config is not None
    assert found.config.runners[0].disabled is None
    assert found.config.runners[0].queuing_limits == ()
    assert text in found.diagnostics[0].text
    assert found.diagnostics[0].line == 6 + len(entry.splitlines())
