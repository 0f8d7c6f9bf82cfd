"""Steps of a job's path that are taken once, whichever process takes them.

The path of a job is written as if nothing could go wrong. Each step of it is journalled before its first byte of log and
after its last one. A process that adopts the job walks the same path: steps that have ended are passed over with their
recorded result; the one that was cut off is taken again, the log cut back to where it began. For a script that means to
read its output again from the first byte, with the recorded times, through fresh filters: the same bytes come out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runner.job.costs import Tally
from runner.job.outcome import Outcome
from runner.job.record import SETTLED, JobRecord, Note, StepEnded, StepStarted
from runner.trace.log import JobLog

RESTART_NOTICE = "The runner was restarted, this stage is run again from its beginning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that is being taken. ``at_ns`` is when it began, also for whoever takes it again; ``run`` is the name of
    its script, if it has one."""

    name: str
    at_ns: int
    run: str = ""


class Steps:
    """The journal of a job seen as steps; keeps the log in line with it."""

    def __init__(self, record: JobRecord, job_log: JobLog, clock_ns: Callable[[], int]) -> None:
        self._record = record
        self._log = job_log
        self._clock_ns = clock_ns
        self._ended = {fact.step: fact for fact in record.journal.facts if isinstance(fact, StepEnded)}
        self._notes = {fact.name: fact.value for fact in record.journal.facts if isinstance(fact, Note)}
        self._settled = False
        self.tally = Tally()
        self._open = self._find_open()
        self._runs = sum(1 for fact in record.journal.facts if isinstance(fact, StepStarted) and fact.run)

    def _find_open(self) -> StepStarted | None:
        """The step that was cut off: the outermost one, since its parts are taken again with it."""
        facts = self._record.journal.facts
        if self._record.outcome is not None:
            return None
        started: StepStarted | None = None
        ended: StepEnded | None = None
        for fact in facts:
            if isinstance(fact, StepStarted) and not fact.within:
                started = fact
            elif isinstance(fact, StepEnded) and (started is None or fact.step == started.step):
                started, ended = None, fact
        if started is None and ended is not None:
            self._log.restore(ended.log)
        return started

    def ended(self, name: str) -> StepEnded | None:
        """How an earlier process saw the step end."""
        return self._ended.get(name)

    def begin(self, name: str, *, replayable: bool, script: bool = False, within: str = "") -> Step:
        """Take a step. ``replayable``: taken again it writes the same bytes. ``within`` names the step it is a part of."""
        self.settle()
        if self._open is not None and self._open.step == name:
            return self._begin_again(self._open, replayable=replayable)
        if self._open is not None:
            # The path went another way than before (stopped meanwhile): what the open step wrote stays.
            self._log.reopen()
            self._open = None
        run = ""
        if script:
            self._runs += 1
            run = str(self._runs)
        step = Step(name=name, at_ns=self._clock_ns(), run=run)
        self._record.journal.append(StepStarted(step=name, at_ns=step.at_ns, log=self._log.state(), run=run, within=within))
        return step

    def settle(self) -> None:
        """Taking the job over did not break this process."""
        if self._record.adopted and not self._settled:
            self._settled = True
            self._record.journal.append(Note(name=SETTLED, value=str(self._clock_ns())))

    def _begin_again(self, fact: StepStarted, *, replayable: bool) -> Step:
        self._open = None
        # Filters of another version give other bytes: what was sent already would not be the same again.
        replayable = replayable and fact.log.is_current
        if not replayable:
            self._forget_ends(fact.step)
        if replayable or self._record.highest_sent <= fact.log.size:
            self._log.restore(fact.log)
            at_ns = fact.at_ns if replayable else self._clock_ns()
            return Step(name=fact.step, at_ns=at_ns, run=fact.run)
        self._log.reopen()
        at_ns = self._clock_ns()
        self._log.warning(RESTART_NOTICE, time_ns=at_ns)
        return Step(name=fact.step, at_ns=at_ns, run=fact.run)

    def _forget_ends(self, name: str) -> None:
        """A step that is taken anew, and its parts, end anew."""
        for note in [note for note in self._notes if note.startswith(f"end {name}")]:
            del self._notes[note]

    def end(self, step: Step, failure: Outcome | None = None) -> None:
        """The step is over and its last byte of log is written."""
        fact = StepEnded(step=step.name, at_ns=self._clock_ns(), log=self._log.state(), failure=failure, counts=self.tally.take())
        self._record.journal.append(fact)
        self._ended[step.name] = fact

    def moment(self, name: str) -> int:
        """The time of something inside a step (Unix nanoseconds): the same one for whoever asks again."""
        return int(self.note(name, lambda: str(self._clock_ns())))

    def note(self, name: str, find: Callable[[], str]) -> str:
        """What ``find`` said when it was first asked under this name."""
        if name not in self._notes:
            value = find()
            self._record.journal.append(Note(name=name, value=value))
            self._notes[name] = value
        return self._notes[name]

    def known(self, name: str) -> str | None:
        """What was noted under this name, if anything."""
        return self._notes.get(name)
