"""The 32 bytes before each stored line: time, stream, kind, continuation (``job-lifecycle.md`` 7.4).

All lines of a write share its time, so a write is stamped by one replacement over the whole of it.
"""

from __future__ import annotations

import time

ENTRY_BYTES = 8192


class Timestamper:
    """The entries of one writer. ``stream`` is its number, ``kind`` ``O`` or ``E``."""

    def __init__(self, stream: int, kind: str) -> None:
        self._mark = b" %02x%s" % (stream, kind.encode())
        self._second = -1
        self._second_text = b""
        self.pending = b""
        self.continues = False

    def feed(self, data: bytes, time_ns: int) -> bytes:
        """The entries that ``data`` completes; the rest waits for its end of line."""
        header = self._stamp(time_ns) + self._mark
        count = data.count(b"\n")
        out = rest = b""
        if not count:
            rest = data
        else:
            start = self.pending or self._begin(header)
            if not data.endswith(b"\n"):
                lines, _, rest = data.rpartition(b"\n")
                data = lines + b"\n"
            # One pass and one copy more: a log of many megabytes is made of copies.
            out = start + data.replace(b"\n", b"\n" + header + b" ", count - 1)
            self.pending = b""
            self.continues = False
        if not rest:
            return out
        size = len(self.pending) + len(rest)
        entry = (self.pending or self._begin(header)) + rest
        if b"\r" in rest or size > ENTRY_BYTES:
            self.pending = b""
            self.continues = True
            return out + entry + b"\n"
        self.pending = entry
        return out

    def close(self) -> bytes:
        """The last entry, if it has begun."""
        out, self.pending = self.pending, b""
        return out + b"\n" if out else b""

    def _begin(self, header: bytes) -> bytes:
        return header + (b"+" if self.continues else b" ")

    def _stamp(self, time_ns: int) -> bytes:
        """``2024-05-22T12:43:46.962646Z``, UTC."""
        second, rest_ns = divmod(time_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%s.%06dZ" % (self._second_text, rest_ns // 1000)
