"""The daemon's log: structlog in the reference's three formats (``config-cli-daemon.md`` 11)."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec
import structlog

WIDTH = 50
RESET = "\x1b[0;m"
COLOURS = {"debug": "\x1b[37;1m", "warning": "\x1b[0;33m", "error": "\x1b[31;1m", "critical": "\x1b[31;1m"}
PREFIXES = {"warning": "WARNING: ", "error": "ERROR: ", "critical": "FATAL: "}
NAMES = {"critical": "fatal"}
LEVELS = {
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}
FORMATS = ("runner", "text", "json")
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+")

Counter = Callable[[str], None]


def configure(*, level: str = "info", form: str = "runner", stream: TextIO | None = None, count: Counter | None = None) -> None:
    """Set level and format of everything that logs from here on. ``count`` hears of every record's level."""
    target = stream or sys.stderr
    colours = wants_colour(target)
    processors: list[Any] = [structlog.contextvars.merge_contextvars, structlog.stdlib.add_log_level]
    if count is not None:
        processors.append(_counting(count))
    processors += [_without_traceback(LEVELS[level.lower()] <= logging.DEBUG), _renderer(form, colours=colours)]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level.lower()]),
        logger_factory=structlog.WriteLoggerFactory(file=target),
        cache_logger_on_first_use=False,
    )


def wants_colour(stream: TextIO) -> bool:
    """Escapes go to terminals only, unless the environment says otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def _counting(count: Counter) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    def process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        count(str(event["level"]))
        return event

    return process


def _without_traceback(keep: bool) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    """A bug's traceback is for who debugs; others get the place where it happened."""

    def process(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if not event.pop("exc_info", None):
            return event
        kind, error, trace = sys.exc_info()
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None:
            event["at"] = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        event["error_type"] = kind.__name__ if kind else ""
        if keep:
            event["error"] = repr(error)
        return event

    return process


def _renderer(form: str, *, colours: bool) -> Callable[[Any, str, MutableMapping[str, Any]], str]:
    def render(_: Any, __: str, event: MutableMapping[str, Any]) -> str:
        level = str(event.pop("level", "info"))
        message = str(event.pop("event"))
        fields = {key: event[key] for key in sorted(event)}
        if form == "json":
            return _as_json(level, message, fields)
        if form == "text":
            return _as_text(level, message, fields)
        return _as_runner(level, message, fields, colours=colours)

    return render


def printable(text: str, *, newline: str = "\\n") -> str:
    """A text without what a terminal would act on: much of what is shown comes from elsewhere."""
    if text.isprintable():
        return text
    return newline.join("".join(one if one.isprintable() else ascii(one)[1:-1] for one in line) for line in text.split("\n"))


def printable_lines(text: str) -> str:
    """The same for a text of lines: those behind the first stand to the right, so that none can be taken for one of ours."""
    return printable(text, newline="\n\t")


def _as_runner(level: str, message: str, fields: Mapping[str, Any], *, colours: bool) -> str:
    prefix = PREFIXES.get(level, "")
    colour = COLOURS.get(level, "") if colours else ""
    reset = RESET if colours else ""
    shown = printable_lines(message)
    line = f"{colour}{prefix}{shown:<{WIDTH - len(prefix)}}{reset} "
    return line + "".join(f" {colour}{key}{reset}={printable_lines(_shown(value))}" for key, value in fields.items())


def _as_text(level: str, message: str, fields: Mapping[str, Any]) -> str:
    pairs = {"time": _now(), "level": NAMES.get(level, level), "msg": message, **fields}
    quoted = {"time", "msg"}
    return " ".join(f"{key}={_quoted(_shown(value), always=key in quoted)}" for key, value in pairs.items())


def _as_json(level: str, message: str, fields: Mapping[str, Any]) -> str:
    pairs = {**fields, "level": NAMES.get(level, level), "msg": message, "time": _now()}
    text = msgspec.json.encode({key: pairs[key] for key in sorted(pairs)}, enc_hook=str).decode()
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _quoted(text: str, *, always: bool) -> str:
    if not always and all(char in _PLAIN for char in text):
        return text
    return msgspec.json.encode(text).decode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")
