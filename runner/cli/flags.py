"""Flags of runner keys, made from the one schema of the configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import click

from executors.registry import KINDS
from runner.config.duration import format_duration, parse_duration
from runner.config.schema import INNER_TABLES, OPEN_TABLES, RUNNER, SUB_TABLES, Key, Type
from runner.config.tables import table_keys

_EXECUTORS = {kind.table: table_keys(kind) for kind in KINDS.values() if kind.table is not None}
# Keys of tables that have flags, behind the dotted name of the table; those of the entry itself behind "".
_TABLES = {"": RUNNER, **SUB_TABLES, **INNER_TABLES, **_EXECUTORS}


class Duration(click.ParamType[str]):
    """A duration in Go's notation, kept as it will stand in the file."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Normalise, or say what is wrong."""
        try:
            return format_duration(parse_duration(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Pairs(click.ParamType[dict[str, Any]]):
    """``NAME:value`` of a map flag, or a JSON object of several."""

    name = "NAME:value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """The pairs; anything else is refused."""
        if isinstance(value, dict):
            return value
        pairs = self._object(str(value)) if str(value).startswith("{") else self._pair(str(value))
        if not pairs or "" in pairs or None in pairs.values():
            self.fail(f"{value!r} is not {self.name} or a JSON object of such", param, ctx)
        return pairs

    def _pair(self, text: str) -> dict[str, Any]:
        key, colon, one = text.partition(":")
        return {key: self.read(one)} if colon else {}

    def _object(self, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        return {key: self.read(one) for key, one in found.items()}

    def read(self, value: Any) -> Any:
        """The value of a pair, None when it cannot be one."""
        return value if isinstance(value, str) else None


class Switches(Pairs):
    """``NAME:true``."""

    name = "NAME:true"

    def read(self, value: Any) -> Any:
        """Whether it is on."""
        if isinstance(value, bool):
            return value
        return {"true": True, "false": False}.get(value) if isinstance(value, str) else None


class Lists(Pairs):
    """``NAME:one,two``; what has a colon in its name needs a JSON object."""

    name = "NAME:one,two"

    def read(self, value: Any) -> Any:
        """The list."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return value
        return [item.strip() for item in value.split(",")] if isinstance(value, str) else None


PAIRS = {Type.BOOLEAN_MAP: Switches(), Type.STRING_MAP: Pairs(), Type.LIST_MAP: Lists()}


def runner_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for every runner key that has a flag."""
    for key in reversed([key for keys in _TABLES.values() for key in keys if key.flag]):
        command = _option(key)(command)
    return command


def _option(key: Key) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    names = [f"--{key.flag}", parameter(key)]
    if key.name in ("url", "token"):
        names.insert(0, f"-{key.name[0]}")
    if key.name == "name":
        names.insert(1, "--description")
    env = [key.env, key.env.upper()] if key.env and key.env != key.env.upper() else key.env or None
    settings: dict[str, Any] = {"help": key.help, "envvar": env, "default": None}
    match key.type:
        case Type.INTEGER | Type.SECONDS:
            settings["type"] = int
        case Type.BOOLEAN | Type.OPTIONAL_BOOLEAN:
            settings |= {"type": bool, "is_flag": False, "flag_value": "true"}
        case Type.DURATION:
            settings["type"] = Duration()
        case Type.LIST | Type.TEXT_OR_LIST:
            settings |= {"multiple": True}
        case Type.BOOLEAN_MAP | Type.STRING_MAP | Type.LIST_MAP:
            settings |= {"type": PAIRS[key.type], "multiple": True}
        case _:
            settings["type"] = str
    return click.option(*names, **settings)


def parameter(key: Key) -> str:
    """The parameter of a command function that carries a key."""
    return f"key_{key.flag.replace('-', '_')}"


def runner_values(parameters: dict[str, Any]) -> dict[str, Any]:
    """What was given, by the names of the file, in the order of the schema; tables hold tables."""
    values: dict[str, Any] = {}
    for table, keys in _TABLES.items():
        for key in keys:
            given = parameters.get(parameter(key)) if key.flag else None
            if given is not None and given != () and given != "":
                inner = values
                for name in table.split(".") if table else ():
                    inner = inner.setdefault(name, {})
                inner[key.name] = _value(key, given)
    return values


def spelled(values: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    """Values of a file by the names of the schema: a file may spell them in any case. Unknown names stay."""
    inside = f"{table}." if table else ""
    tables = [name.removeprefix(inside) for name in (*_TABLES, *OPEN_TABLES) if name.startswith(inside)]
    names = {name.lower(): name for name in (*tables, *(key.name for key in _TABLES.get(table, ())))}
    found: dict[str, Any] = {}
    for name, value in values.items():
        known = names.get(name.lower(), name)
        found[known] = spelled(value, f"{inside}{known}") if isinstance(value, dict) else value
    return found


def _value(key: Key, given: Any) -> Any:
    match key.type:
        case Type.BOOLEAN_MAP | Type.STRING_MAP | Type.LIST_MAP:
            return {name: one for found in given for name, one in found.items()}
        case Type.TEXT_OR_LIST:
            return [item.strip() for text in _list(key, given) for item in text.split(",") if item.strip()]
        case Type.LIST:
            return _list(key, given)
        case _:
            return given


def _list(key: Key, given: tuple[str, ...]) -> list[str]:
    """A list; the variable that gives one is a single element, blanks and all."""
    from_environment = os.environ.get(key.env) if key.env else None
    if from_environment is not None and tuple(from_environment.split()) == given:
        return [from_environment]
    return list(given)
