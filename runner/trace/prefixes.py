"""Tokens that are known by their prefix: the prefix stays, what follows is masked (``job-lifecycle.md`` 7.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runner.trace.pieces import MASK_PIECE, Piece
from runner.trace.words import Words

ALWAYS = ("glpat-",)
DEFAULTS = (
    "gloas-",
    "gldt-",
    "glrt-",
    "glcbt-",
    "glrtr-",
    "glptt-",
    "glft-",
    "glimt-",
    "glagent-",
    "glsoat-",
    "glffct-",
    "_gitlab_session=",
    "gltok-",
)
MAX_SERVER_PREFIXES = 15
_TOKEN = re.compile(rb"[0-9A-Za-z._=-]+")


class Prefixes:
    """The prefixes of a job. Those of the runner are always active; of all, the server may add the shortest 15."""

    def __init__(self, server: Iterable[str], *, defaults: bool) -> None:
        own = {prefix.encode(errors="surrogateescape") for prefix in (*ALWAYS, *(DEFAULTS if defaults else ()))}
        asked = {prefix.strip().encode(errors="surrogateescape") for prefix in server if prefix.strip()} | own
        active = own | set(sorted(asked, key=lambda prefix: (len(prefix), prefix))[:MAX_SERVER_PREFIXES])
        self.words = Words(active)


class PrefixMask:
    """The filter of one stream."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._words = prefixes.words
        self._held = b""
        self._behind_prefix = False
        self._in_token = False

    @property
    def swallows(self) -> bool:
        """See :class:`runner.trace.pieces.Filter`."""
        return False

    def feed(self, data: bytes) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        if self._held:
            data, self._held = self._held + data, b""
        pieces: list[Piece] = []
        position = self._end_of_token(data, 0, pieces) if self._behind_prefix else 0
        for start, end in self._prefixes_from(data):
            if start < position:
                continue  # in a token, or a shorter prefix at the same place
            if self._words.pending(data, position) <= start:
                break  # a prefix that begins earlier, or a longer one, may be coming
            pieces.append(Piece(data[position:end]))
            self._behind_prefix, self._in_token = True, False
            position = self._end_of_token(data, end, pieces)
        cut = self._words.pending(data, position)
        self._held = data[cut:]
        if position < cut:
            pieces.append(Piece(data[position:cut]))
        return pieces

    def release(self) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        held, self._held = self._held, b""
        return [Piece(held)] if held else []

    def _prefixes_from(self, data: bytes) -> list[tuple[int, int]]:
        """The leftmost first, of those that begin together the longest."""
        return sorted(self._words.occurrences(data), key=lambda hit: (hit[0], -hit[1]))

    def _end_of_token(self, data: bytes, position: int, pieces: list[Piece]) -> int:
        """Put a mask in for the token that ``position`` stands at; returns where it ends, or ``position`` without one."""
        token = _TOKEN.match(data, position)
        if token is None:
            self._behind_prefix = position == len(data)
            return position
        if not self._in_token:
            pieces.append(MASK_PIECE)
        self._behind_prefix = self._in_token = token.end() == len(data)
        return token.end()
