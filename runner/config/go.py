"""Reads ``[runners.go]``: the shared stores of the Go tool. The table turns them on, unless it says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.config.cache import Reader
from runner.config.model import GoConfig
from runner.config.schema import GO
from runner.config.size import parse_size

# What a key may say.
CHOICES: Mapping[str, tuple[str, ...]] = {
    "scope": ("project", "namespace", "runner"),
    "protected": ("separate", "shared"),
}


def go(reader: Reader, raw: Any, place: tuple[str | int, ...]) -> GoConfig:
    """The table. What cannot be used disables the runner: a store that is wider than meant is no small thing."""
    if raw is None:
        return GoConfig()
    place = (*place, "go")
    if not isinstance(raw, dict):
        reader.fail("wrong-type", '"go" must be a table: write [runners.go]', *place)
        return GoConfig()
    values = {"enabled": True, **reader.table(raw, GO, *place)}
    for name, choices in CHOICES.items():
        if name in values and values[name] not in choices:
            text = f'"{name}" is {values[name]!r}'
            reader.fail("bad-value", text, *place, name, hint=f"one of {', '.join(choices)}")
            return GoConfig()
    if "max_size" in values:
        try:
            values["max_size_bytes"] = parse_size(values.pop("max_size"))
        except ValueError as error:
            reader.fail("bad-size", f'"max_size": {error}', *place, "max_size", hint='for example "20GiB"')
            return GoConfig()
    return GoConfig(**values)
