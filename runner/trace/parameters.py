"""Values of URL query parameters that hold credentials (``job-lifecycle.md`` 7.2)."""

from __future__ import annotations

import re

from runner.trace.pieces import MASK_PIECE, Piece

NAMES = (
    b"private_token",
    b"authenticity_token",
    b"rss_token",
    b"x-amz-signature",
    b"x-amz-credential",
    b"x-amz-security-token",
)
_BEGIN = re.compile(rb"[?&](?:" + b"|".join(re.escape(name) for name in NAMES) + rb")=", re.IGNORECASE)
# Ends of a value: ``?``, ``&``, control characters, and white space in UTF-8.
_END = re.compile(rb"[?&\x00-\x20\x7f]|\xc2[\x80-\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80")
_HALF_END = re.compile(rb"(?:\xc2|\xe1\x9a?|\xe2[\x80\x81]?|\xe3\x80?)\Z")
_LONGEST = max(map(len, NAMES)) + 2


class ParameterMask:
    """The filter of one stream."""

    def __init__(self) -> None:
        self._held = b""
        self._in_value = False

    @property
    def swallows(self) -> bool:
        """See :class:`runner.trace.pieces.Filter`."""
        return self._in_value

    def feed(self, data: bytes) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        if not self._in_value and not self._held and b"?" not in data and b"&" not in data:
            return [Piece(data)]
        data, self._held = self._held + data, b""
        pieces: list[Piece] = []
        while data:
            if self._in_value:
                data = self._skip_value(data)
                continue
            begin = _BEGIN.search(data)
            if begin is None:
                data = self._hold_back(data)
                if data:
                    pieces.append(Piece(data))
                break
            pieces += (Piece(data[: begin.end()]), MASK_PIECE)
            data = data[begin.end() :]
            self._in_value = True
        return pieces

    def release(self) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        held, self._held = self._held, b""
        return [Piece(held)] if held and not self._in_value else []

    def _skip_value(self, data: bytes) -> bytes:
        end = _END.search(data)
        if end is not None:
            self._in_value = False
            return data[end.start() :]
        half = _HALF_END.search(data)
        self._held = half.group() if half else b""
        return b""

    def _hold_back(self, data: bytes) -> bytes:
        """Keep an end that may become a parameter; returns what stands before it."""
        start = max(data.rfind(b"?"), data.rfind(b"&"))
        if start < 0 or len(data) - start > _LONGEST:
            return data
        begun = data[start + 1 :].lower()
        if any((name + b"=").startswith(begun) for name in NAMES):
            self._held = data[start:]
            return data[:start]
        return data
