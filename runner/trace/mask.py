"""Masked values: every occurrence becomes ``[MASKED]``, wherever the stream is split (``job-lifecycle.md`` 7.1).

The reference applies one value after the other, the longest first. One automaton over all of them finds all occurrences;
the longest win, also over shorter ones that begin earlier.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from itertools import pairwise

from ahocorasick_rs import BytesAhoCorasick

from runner.trace.pieces import MASK_PIECE, Piece

# Overlapping occurrences in a row (a value like "aaa" in a line of a's) are decided at the latest after so many bytes.
UNDECIDED_BYTES = 64 * 1024


class Phrases:
    """The values of a job, prepared once. ``values`` are texts; blank ones and duplicates are dropped."""

    def __init__(self, values: Iterable[str]) -> None:
        found: dict[bytes, None] = {}
        for value in values:
            text = value.strip()
            for form in _forms(text) if text else ():
                found[form.encode(errors="surrogateescape")] = None
        self.sorted = sorted(found)
        self.longest = max(map(len, self.sorted), default=0)
        self.first_bytes = frozenset(phrase[0] for phrase in self.sorted)
        self.automaton = BytesAhoCorasick(self.sorted) if self.sorted else None

    def occurrences(self, data: bytes) -> list[tuple[int, int]]:
        """All occurrences, overlapping ones too, as (start, end)."""
        if self.automaton is None:
            return []
        return [(start, end) for _, start, end in self.automaton.find_matches_as_indexes(data, overlapping=True)]

    def pending(self, data: bytes) -> int:
        """Where the longest end of ``data`` begins that may grow into a value; its length when there is none."""
        begin = max(len(data) - self.longest + 1, 0)
        for position in range(begin, len(data)):
            if data[position] in self.first_bytes and self._begins_a_phrase(data[position:]):
                return position
        return len(data)

    def _begins_a_phrase(self, text: bytes) -> bool:
        index = bisect.bisect_right(self.sorted, text)
        return index < len(self.sorted) and self.sorted[index].startswith(text)


class PhraseMask:
    """The filter of one stream."""

    def __init__(self, phrases: Phrases) -> None:
        self._phrases = phrases
        self._held = b""

    @property
    def swallows(self) -> bool:
        """See :class:`runner.trace.pieces.Filter`."""
        return False

    def feed(self, data: bytes) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        if not self._phrases.sorted:
            return [Piece(data)]
        buffer = self._held + data if self._held else data
        found = self._phrases.occurrences(buffer)
        cut = self._phrases.pending(buffer)
        if cut < len(buffer) and found:
            cut = _before_cluster(found, cut)
            if len(buffer) - cut > UNDECIDED_BYTES + self._phrases.longest:
                cut = len(buffer)
        self._held = buffer[cut:]
        return _masked(buffer[:cut] if cut < len(buffer) else buffer, [hit for hit in found if hit[1] <= cut])

    def release(self) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        held, self._held = self._held, b""
        return _masked(held, self._phrases.occurrences(held)) if held else []


def _before_cluster(found: list[tuple[int, int]], cut: int) -> int:
    """Move ``cut`` before every occurrence that a later, longer one may still replace."""
    for start, end in sorted(found, key=lambda hit: hit[1], reverse=True):
        if end <= cut:
            continue
        cut = min(cut, start)
    moved = True
    while moved:
        inside = [start for start, end in found if start < cut < end]
        moved = bool(inside)
        cut = min(inside, default=cut)
    return cut


def _masked(data: bytes, found: list[tuple[int, int]]) -> list[Piece]:
    if not found:
        return [Piece(data)] if data else []
    pieces: list[Piece] = []
    position = 0
    for start, end in _chosen(found):
        if start > position:
            pieces.append(Piece(data[position:start]))
        pieces.append(MASK_PIECE)
        position = end
    if position < len(data):
        pieces.append(Piece(data[position:]))
    return pieces


def _chosen(found: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Occurrences that do not overlap: the longest first, of equally long ones the earliest."""
    ordered = sorted(found)
    if all(first[1] <= second[0] for first, second in pairwise(ordered)):
        return ordered
    taken: list[tuple[int, int]] = []
    for start, end in sorted(found, key=lambda hit: (hit[0] - hit[1], hit[0])):
        index = bisect.bisect_left(taken, (start, end))
        free_before = index == 0 or taken[index - 1][1] <= start
        free_behind = index == len(taken) or taken[index][0] >= end
        if free_before and free_behind:
            taken.insert(index, (start, end))
    return taken


def _forms(text: str) -> list[str]:
    """A value, and how shells print it when they trace commands, where that differs."""
    forms = [text]
    if "'" in text:
        forms.append(text.replace("'", "'\\''"))
    if any(char in text for char in "\n\t'\\") or not text.isprintable():
        escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
        forms.append(escaped.replace("\r", "\\r"))
    return forms
