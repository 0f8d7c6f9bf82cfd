"""What a driver says of its place: the JSON object that its config step prints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from executors.base import PlaceFacts

_LITERALS = {"n": "null", "t": "true", "f": "false"}


class BadReply(ValueError):
    """What a driver printed in its config step cannot be used."""


def parse_reply(raw: bytes) -> PlaceFacts:
    """What the config step printed; nothing at all changes nothing. Raises :class:`BadReply`."""
    text = raw.decode(errors="replace")
    if not text.strip():
        return PlaceFacts()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadReply(f"error while parsing JSON output: {_complaint(text, error)}") from None
    if not isinstance(found, dict):
        raise BadReply("error while parsing JSON output: an object was expected")
    driver = found.get("driver") or {}
    words = [_text(driver, name, "driver.") for name in ("name", "version")] if isinstance(driver, dict) else []
    shared = found.get("builds_dir_is_shared")
    if shared is not None and not isinstance(shared, bool):
        raise BadReply("error while parsing JSON output: builds_dir_is_shared is neither true nor false")
    variables = found.get("job_env") or {}
    if not isinstance(variables, dict) or not all(isinstance(value, str) for value in variables.values()):
        raise BadReply("error while parsing JSON output: job_env is no object of strings")
    return PlaceFacts(
        driver=" ".join(word for word in words if word) if words and words[0] else "",
        hostname=_text(found, "hostname"),
        builds_dir=_text(found, "builds_dir"),
        cache_dir=_text(found, "cache_dir"),
        is_shared=shared,
        shell=_text(found, "shell"),
        environment=variables,
    )


def _text(found: Mapping[str, Any], name: str, place: str = "") -> str:
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise BadReply(f"error while parsing JSON output: {place}{name} is no text")
    return value or ""


def _complaint(text: str, error: ValueError) -> str:
    """The reference's words for the first thing that is wrong."""
    start = text.lstrip()
    literal = _LITERALS.get(start[:1])
    if literal is not None:
        for wanted, got in zip(literal, start, strict=False):
            if wanted != got:
                return f"invalid character {got!r} in literal {literal} (expecting {wanted!r})"
    if isinstance(error, json.JSONDecodeError):
        if error.pos >= len(text.rstrip()):
            return "unexpected end of JSON input"
        if error.msg == "Expecting value":
            return f"invalid character {text[error.pos]!r} looking for beginning of value"
        if error.msg == "Extra data":
            return f"invalid character {text[error.pos]!r} after top-level value"
    return str(error)
