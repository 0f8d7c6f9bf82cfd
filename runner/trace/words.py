"""A fixed set of byte strings, sought in a stream: what occurs, and what may be about to."""

from __future__ import annotations

import bisect
from collections.abc import Iterable

from ahocorasick_rs import BytesAhoCorasick

# Longer words are recognised by so many first bytes before they are compared as a whole.
_HEAD_BYTES = 16


class Words:
    """One automaton over all words. An empty set finds nothing and costs nothing; empty words are not allowed."""

    def __init__(self, words: Iterable[bytes]) -> None:
        self._sorted = sorted(set(words))
        self.longest = max(map(len, self._sorted), default=0)
        self._automaton = BytesAhoCorasick(self._sorted) if self._sorted else None
        heads = sorted({word[:_HEAD_BYTES] for word in self._sorted if len(word) > _HEAD_BYTES})
        self._heads = BytesAhoCorasick(heads) if heads else None
        self._first = frozenset(word[0] for word in self._sorted)
        self._unfinished = frozenset(b"".join([word[:-1] for word in self._sorted]))

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def lengths(self) -> frozenset[int]:
        """The lengths that words have."""
        return frozenset(map(len, self._sorted))

    def occurrences(self, data: bytes) -> list[tuple[int, int]]:
        """All occurrences, overlapping ones too, as (start, end) in the order of their ends."""
        if self._automaton is None:
            return []
        return [(start, end) for _, start, end in self._automaton.find_matches_as_indexes(data, overlapping=True)]

    def pending(self, data: bytes, start: int = 0) -> int:
        """Where, from ``start`` on, the longest end of ``data`` begins that may grow into a word; else its length."""
        size = len(data)
        if not size or data[-1] not in self._unfinished:
            return size
        begin = max(start, size - self.longest + 1)
        if self._heads is not None and begin <= size - _HEAD_BYTES:
            for _, position, _ in self._heads.find_matches_as_indexes(data[begin:], overlapping=True):
                if self._grows(data, begin + position):
                    return begin + position
        for position in range(max(begin, size - _HEAD_BYTES + 1), size):
            if data[position] in self._first and self._grows(data, position):
                return position
        return size

    def _grows(self, data: bytes, position: int) -> bool:
        head = data[position : position + _HEAD_BYTES]
        rest = len(data) - position
        for index in range(bisect.bisect_left(self._sorted, head), len(self._sorted)):
            word = self._sorted[index]
            if not word.startswith(head):
                return False
            # Views compare in place: the rest can be as long as the longest word.
            if len(word) > rest and (rest <= len(head) or memoryview(word)[:rest] == memoryview(data)[position:]):
                return True
        return False
