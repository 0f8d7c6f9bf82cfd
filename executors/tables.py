"""What an executor says of its table in the configuration: the keys, what they mean, and what is wrong with them.

A table is a frozen :class:`Table`; each of its fields carries an :class:`Option`. Reading the file, the flags of
``register`` and the questions that it asks all come from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A key for those who write it. ``flag`` is its spelling behind ``--<table>-`` where it is not the name with hyphens,
    ``env`` its variable where that is not the flag in capitals; ``-`` is none. ``ask`` is the question of ``register``
    for a key that must have a value. ``split`` tells that a text stands for a list, divided at commas."""

    help: str
    flag: str = ""
    env: str = ""
    ask: str = ""
    split: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with a table: ``place`` is the path of keys and indexes below it. A ``fatal`` one takes the runner
    out of use, the others are warnings."""

    place: tuple[str | int, ...]
    text: str
    fatal: bool = False


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """The table of an executor. Values are of the right type; what they say is looked at by ``problems``."""

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Self:
        """From a table as a runner entry keeps it."""
        return msgspec.convert(values, cls)

    def problems(self) -> Iterable[Problem]:
        """Everything that will not work, or not as it looks."""
        return ()

    @classmethod
    def completed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """What ``register`` writes when this was given."""
        return dict(values)
