"""Tokens that are known by their prefix: the prefix stays, what follows is masked (``job-lifecycle.md`` 7.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from runner.trace.pieces import MASK_PIECE, Piece

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
        own = {prefix.encode() for prefix in (*ALWAYS, *(DEFAULTS if defaults else ()))}
        asked = {prefix.strip().encode() for prefix in server if prefix.strip()} | own
        active = own | set(sorted(asked, key=lambda prefix: (len(prefix), prefix))[:MAX_SERVER_PREFIXES])
        self.all = tuple(sorted(active, key=len, reverse=True))
        self.pattern = re.compile(b"|".join(re.escape(prefix) for prefix in self.all))
        self.longest = max(map(len, self.all))
        self.marks = tuple({prefix[:2] for prefix in self.all})

    def may_begin(self, data: bytes) -> bool:
        """A quick look: False when no prefix, not even the start of one, can be in ``data``."""
        return any(mark in data for mark in self.marks) or any(mark[:1] == data[-1:] for mark in self.marks)


class PrefixMask:
    """The filter of one stream."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._held = b""
        self._behind_prefix = False
        self._in_token = False

    @property
    def swallows(self) -> bool:
        """See :class:`runner.trace.pieces.Filter`."""
        return False

    def feed(self, data: bytes) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        idle = not self._held and not self._behind_prefix
        if idle and not self._prefixes.may_begin(data):
            return [Piece(data)]
        data, self._held = self._held + data, b""
        pieces: list[Piece] = []
        while data:
            if self._behind_prefix:
                data = self._take_token(data, pieces)
                continue
            found = self._prefixes.pattern.search(data)
            if found is None:
                data = self._hold_back(data)
                if data:
                    pieces.append(Piece(data))
                break
            pieces.append(Piece(data[: found.end()]))
            data = data[found.end() :]
            self._behind_prefix = True
        return pieces

    def release(self) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        held, self._held = self._held, b""
        return [Piece(held)] if held else []

    def _take_token(self, data: bytes, pieces: list[Piece]) -> bytes:
        token = _TOKEN.match(data)
        if token is None:
            self._behind_prefix = self._in_token = False
            return data
        if not self._in_token:
            self._in_token = True
            pieces.append(MASK_PIECE)
        return data[token.end() :]

    def _hold_back(self, data: bytes) -> bytes:
        for size in range(min(self._prefixes.longest - 1, len(data)), 0, -1):
            end = data[-size:]
            if any(prefix.startswith(end) for prefix in self._prefixes.all):
                self._held = end
                return data[:-size]
        return data
