"""Reads the table of an executor by what its type says of the keys."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from executors.registry import Kind
from executors.tables import Option, Table
from runner.config.schema import Key, Type

_TYPES: Mapping[object, Type] = {
    str: Type.STRING,
    int: Type.INTEGER,
    bool: Type.BOOLEAN,
    bool | None: Type.OPTIONAL_BOOLEAN,
    tuple[str, ...]: Type.LIST,
    dict[str, str]: Type.STRING_MAP,
    dict[str, bool]: Type.BOOLEAN_MAP,
    dict[str, tuple[str, ...]]: Type.LIST_MAP,
}


class Reader(Protocol):
    """What the reader of the file lends to the reader of a table."""

    def table(self, raw: Mapping[str, Any], keys: tuple[Key, ...], *place: str | int) -> dict[str, Any]:
        """Typed values by their names in lower case."""
        ...

    def warn(self, code: str, text: str, *place: str | int, hint: str = "") -> None:
        """Say what is odd."""
        ...

    def fail(self, code: str, text: str, *place: str | int, hint: str = "") -> None:
        """Say what takes something out of use."""
        ...


def table_keys(kind: Kind) -> tuple[Key, ...]:
    """The keys of an executor's table; none where it has no table."""
    return _keys(kind.config(), kind.table or "") if kind.config is not None else ()


@functools.cache
def _keys(table: type, name: str) -> tuple[Key, ...]:
    return tuple(_key(field, hint, name) for field, hint in get_type_hints(table, include_extras=True).items())


def _key(field: str, hint: Any, table: str) -> Key:
    kind, option = get_args(hint)
    assert isinstance(option, Option), field
    flag = option.flag or field.replace("_", "-")
    env = option.env or f"{table}-{flag}".upper().replace("-", "_")
    inner: tuple[Key, ...] = ()
    found = Type.TEXT_OR_LIST if option.split else _TYPES.get(kind)
    if found is None and get_origin(kind) is tuple:
        found, inner = Type.TABLES, _keys(get_args(kind)[0], "")
    assert found is not None, field
    return Key(
        name=field,
        type=found,
        flag="" if flag == "-" else f"{table}-{flag}",
        env="" if "-" in (flag, env) else env,
        help=option.help,
        inner=inner,
        ask=option.ask,
    )


def executor_table(
    reader: Reader, kind: Kind, tables: Mapping[str, Any], place: tuple[str | int, ...]
) -> dict[str, dict[str, Any]]:
    """The table of an entry's executor, with findings reported; nothing where there is none."""
    if kind.config is None or kind.table is None:
        return {}
    raw = tables.get(kind.table)
    place = (*place, kind.table)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        reader.fail("wrong-type", f'"{kind.table}" must be a table', *place)
        return {kind.table: {}}
    values = reader.table(raw, table_keys(kind), *place)
    table: Table = kind.config().from_values(values)
    for problem in table.problems():
        say = reader.fail if problem.fatal else reader.warn
        say("bad-value", problem.text, *place, *problem.place)
    return {kind.table: values}
