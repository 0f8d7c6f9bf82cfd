"""Fields of secrets: how a job describes them, and what providers answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from runner.errors import SecretMissing, SecretRefused


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a description: frozen, tolerant of unknown keys."""


P = TypeVar("P", bound=Part)


def described(description: Any, kind: type[P], expand: Callable[[str], str]) -> P:
    """What a job says of a secret, every text of it expanded. Raises :class:`SecretRefused`, which names the place."""
    try:
        return msgspec.convert(_expanded(description, expand), kind)
    except msgspec.ValidationError as error:
        raise SecretRefused(f"the description of the secret cannot be used: {error}") from error


def text_of(raw: msgspec.Raw) -> str:
    """A value of JSON as text: strings as they are, anything else as it is written. Raises :class:`SecretMissing`."""
    written = bytes(raw)
    if written == b"null":
        raise SecretMissing
    return msgspec.json.decode(written, type=str) if written.startswith(b'"') else written.decode()


def said(body: bytes, *path: str) -> str:
    """What an answer complains of: the text or the texts at ``path`` of its JSON; empty where it is no such thing."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return ""
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    texts = found if isinstance(found, list) else [found]
    return ", ".join(" ".join(text.split()) for text in texts if isinstance(text, str))


def _expanded(found: Any, expand: Callable[[str], str]) -> Any:
    if isinstance(found, str):
        return expand(found)
    if isinstance(found, dict):
        return {key: _expanded(value, expand) for key, value in found.items()}
    if isinstance(found, list):
        return [_expanded(value, expand) for value in found]
    return found
