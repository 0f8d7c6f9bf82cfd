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
_IN_EVERY_NAME = (b"_token=", b"x-amz-")  # one of these, sought much faster than a pattern
_BEGIN = re.compile(rb"[?&](?:" + b"|".join(re.escape(name) for name in NAMES) + rb")=", re.IGNORECASE)
# Ends of a value: ``?``, ``&``, control characters, and white space in UTF-8.
_END = re.compile(rb"[?&\x00-\x20\x7f]|\xc2[\x80-\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80")
_HALF_END = re.compile(rb"(?:\xc2|\xe1\x9a?|\xe2[\x80\x81]?|\xe3\x80?)\Z")
_LONGEST = max(map(len, NAMES)) + 1
_LONGEST_END = 3


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
        position = self._end_of_value(data, 0) if self._in_value else 0
        # ``?`` and ``&`` end a value, so no parameter begins inside of one.
        for begin in _BEGIN.finditer(data, position) if _has_name(data) else ():
            pieces += (Piece(data[position : begin.end()]), MASK_PIECE)
            position = self._end_of_value(data, begin.end())
        end = self._hold_back(data, position)
        if position < end:
            pieces.append(Piece(data[position:end]))
        return pieces

    def release(self) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        held, self._held = self._held, b""
        return [Piece(held)] if held and not self._in_value else []

    def _end_of_value(self, data: bytes, position: int) -> int:
        """Where the value that ``position`` stands in ends; a white space that has only begun is held back."""
        end = _END.search(data, position)
        self._in_value = end is None
        if end is not None:
            return end.start()
        half = _HALF_END.search(data, max(position, len(data) - _LONGEST_END))
        self._held = half.group() if half else b""
        return len(data)

    def _hold_back(self, data: bytes, position: int) -> int:
        """Keep an end that may become a parameter; returns where it begins."""
        start = max(data.rfind(b"?", position), data.rfind(b"&", position))
        if start < 0 or len(data) - start > _LONGEST:
            return len(data)
        begun = data[start + 1 :].lower()
        if not any(name.startswith(begun) for name in NAMES):
            return len(data)
        self._held = data[start:]
        return start


def _has_name(data: bytes) -> bool:
    lowered = data.lower()
    return any(part in lowered for part in _IN_EVERY_NAME)
