"""The variables of a job: where they come from, which one counts, and what they expand to (``job-lifecycle.md`` 8)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from runner.coordinator.payload import JobVariable
from runner.job.expansion import expand

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
# The kernel refuses to start a program with a longer string in its environment.
MAX_EXPORT_BYTES = 128 * 1024 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One variable. ``internal`` ones are the runner's own."""

    key: str
    value: str
    public: bool = False
    masked: bool = False
    file: bool = False
    raw: bool = False
    internal: bool = False


def own(key: str, value: str) -> Variable:
    """A variable that the runner sets."""
    return Variable(key=key, value=value, public=True, internal=True)


def from_payload(variable: JobVariable) -> Variable:
    """A variable that the server sent."""
    return Variable(
        key=variable.key,
        value=variable.value,
        public=variable.public,
        masked=variable.masked,
        file=variable.file,
        raw=variable.raw,
    )


class Variables:
    """An ordered list in which the last of a name counts. ``tmp_dir`` is where file variables are written."""

    def __init__(self, variables: Iterable[Variable], tmp_dir: str) -> None:
        self._all: tuple[Variable, ...] = tuple(variables)
        self._last = {variable.key: variable for variable in self._all}
        self._tmp_dir = tmp_dir

    @property
    def all(self) -> Sequence[Variable]:
        """In their order, overridden ones too."""
        return self._all

    def get(self, key: str) -> str | None:
        """The value; of a file variable its content."""
        found = self._last.get(key)
        return found.value if found is not None else None

    def reference(self, key: str) -> str | None:
        """What ``$key`` stands for in another value: of a file variable its path."""
        found = self._last.get(key)
        if found is None:
            return None
        return self.path(key) if found.file else found.value

    def path(self, key: str) -> str:
        """Where a file variable is written."""
        return f"{self._tmp_dir}/{key}"

    def expand(self, text: str) -> str:
        """Expand a text of the job."""
        return expand(text, self.reference)

    def expanded(self) -> Variables:
        """Every value that is not raw, expanded once against the list as it is."""
        return Variables(
            [
                variable if variable.raw or "$" not in variable.value else replace(variable, value=self.expand(variable.value))
                for variable in self._all
            ],
            self._tmp_dir,
        )

    def with_status(self, status: str) -> Variables:
        """The same with another ``CI_JOB_STATUS`` of the runner's."""
        return Variables(
            [
                replace(variable, value=status) if variable.internal and variable.key == "CI_JOB_STATUS" else variable
                for variable in self._all
            ],
            self._tmp_dir,
        )

    def masks(self) -> tuple[str, ...]:
        """Values that must not be shown, those of overridden variables too."""
        return tuple(variable.value for variable in self._all if variable.masked and variable.value)

    def effective(self) -> list[Variable]:
        """The variables that count, each name once."""
        return list(self._last.values())

    def files(self) -> list[Variable]:
        """File variables that count and can be written."""
        return [variable for variable in self.effective() if variable.file and is_file_name(variable.key)]

    def problems(self) -> list[str]:
        """Why some variables do not reach the scripts."""
        found = []
        for variable in self.effective():
            if not _NAME.fullmatch(variable.key):
                found.append(f"{variable.key!r} is no name for a shell variable, scripts do not see it")
            elif not variable.file and not can_be_exported(variable.key, variable.value):
                found.append(f"{variable.key}: the value is too long for the environment of programs, scripts do not see it")
        return found


def can_be_exported(key: str, value: str) -> bool:
    """Whether programs can be started with this in their environment."""
    return len(value.encode(errors="surrogateescape")) + len(key) < MAX_EXPORT_BYTES


def exports(variables: Variables) -> list[tuple[str, str]]:
    """Name and value of everything that scripts get, in order; of file variables the path."""
    found = []
    for variable in variables.effective():
        if not _NAME.fullmatch(variable.key):
            continue
        value = variables.path(variable.key) if variable.file else variable.value
        if can_be_exported(variable.key, value):
            found.append((variable.key, value))
    return found


def is_file_name(key: str) -> bool:
    """Whether a file of this name can be made in the job's directory for files."""
    return bool(_NAME.fullmatch(key))
