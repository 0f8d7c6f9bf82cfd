"""Flags of runner keys, made from the one schema of the configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import click

from runner.config.duration import format_duration, parse_duration
from runner.config.schema import INNER_TABLES, RUNNER, SUB_TABLES, Key, Type

# Keys of tables that have flags, behind the dotted name of the table; those of the entry itself behind "".
_TABLES = {"": RUNNER, **SUB_TABLES, **INNER_TABLES}


class Duration(click.ParamType[str]):
    """A duration in Go's notation, kept as it will stand in the file."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Normalise, or say what is wrong."""
        try:
            return format_duration(parse_duration(str(value)))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Switches(click.ParamType[dict[str, bool]]):
    """``NAME:true`` of a map flag, or a JSON object of several."""

    name = "NAME:true"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, bool]:
        """The switches; anything else is refused."""
        if isinstance(value, dict):
            return value
        text = str(value)
        if text.startswith("{"):
            try:
                found = json.loads(text)
            except ValueError:
                found = None
            if isinstance(found, dict) and all(isinstance(on, bool) for on in found.values()):
                return found
        key, colon, on = text.partition(":")
        if not colon or on not in ("true", "false"):
            self.fail(f"{value!r} is not NAME:true, NAME:false or a JSON object of them", param, ctx)
        return {key: on == "true"}


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
        case Type.LIST:
            settings |= {"multiple": True}
        case Type.BOOLEAN_MAP:
            settings |= {"type": Switches(), "multiple": True}
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


def _value(key: Key, given: Any) -> Any:
    if key.type is Type.BOOLEAN_MAP:
        return {name: on for found in given for name, on in found.items()}
    return _list(key, given) if key.type is Type.LIST else given


def _list(key: Key, given: tuple[str, ...]) -> list[str]:
    """A list; the variable that gives one is a single element, blanks and all."""
    from_environment = os.environ.get(key.env) if key.env else None
    if from_environment is not None and tuple(from_environment.split()) == given:
        return [from_environment]
    return list(given)
