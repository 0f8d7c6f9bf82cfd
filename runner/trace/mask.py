"""Masked values: every occurrence becomes ``[MASKED]``, wherever the stream is split (``job-lifecycle.md`` 7.1).

The reference applies one value after the other, the longest first. One automaton over all of them finds all occurrences;
the longest win, also over shorter ones that begin earlier.
"""

from __future__ import annotations

from collections.abc import Iterable

from runner.trace.pieces import MASK_PIECE, Piece
from runner.trace.quoting import quoted_forms
from runner.trace.words import Words

# Occurrences of values of many lengths that overlap in a row are decided at the latest after so many bytes.
_UNDECIDED_BYTES = 64 * 1024


class Phrases:
    """The values of a job, prepared once. ``values`` are texts; blank ones and duplicates are dropped."""

    def __init__(self, values: Iterable[str]) -> None:
        forms: set[str] = set()
        for value in values:
            text = value.strip()
            if text:
                forms.update((text, *quoted_forms(text)))
        self.words = Words(form.encode(errors="surrogateescape") for form in forms)
        # An occurrence that is still to come displaces shorter ones, these free or displace shorter ones to their left,
        # and so on: one step at most for each length below the longest.
        lengths = self.words.lengths
        self.reach = min(sum(lengths) - max(lengths, default=0), _UNDECIDED_BYTES)


class PhraseMask:
    """The filter of one stream."""

    def __init__(self, phrases: Phrases) -> None:
        self._words = phrases.words
        self._reach = phrases.reach
        self._held = b""

    @property
    def swallows(self) -> bool:
        """See :class:`runner.trace.pieces.Filter`."""
        return False

    def feed(self, data: bytes) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        if not self._words:
            return [Piece(data)]
        buffer = self._held + data if self._held else data
        hits = self._words.occurrences(buffer)
        cut = self._words.pending(buffer)
        chosen = _chosen(hits, len(buffer)) if hits else hits
        if chosen and cut < len(buffer):
            cut = max(_before_cluster(hits, cut), _before_reach(chosen, cut - self._reach))
        self._held = buffer[cut:]
        return _masked(buffer, chosen, cut)

    def release(self) -> list[Piece]:
        """See :class:`runner.trace.pieces.Filter`."""
        held, self._held = self._held, b""
        return _masked(held, _chosen(self._words.occurrences(held), len(held)), len(held)) if held else []


def _before_cluster(hits: list[tuple[int, int]], cut: int) -> int:
    """Move ``cut`` before all occurrences that overlap each other up to it: nothing to come changes those before."""
    for start, end in reversed(hits):
        if end <= cut:
            break
        cut = min(cut, start)
    return cut


def _before_reach(chosen: list[tuple[int, int]], cut: int) -> int:
    """Move ``cut``, behind which choices can change, out of the chosen occurrence that it stands in."""
    for start, end in reversed(chosen):
        if end <= cut:
            break
        if start < cut:
            return start
    return cut


def _masked(data: bytes, chosen: list[tuple[int, int]], end_of_data: int) -> list[Piece]:
    """``data`` up to ``end_of_data``, which stands in no chosen occurrence."""
    pieces: list[Piece] = []
    position = 0
    for start, end in chosen:
        if end > end_of_data:
            break
        if start > position:
            pieces.append(Piece(data[position:start]))
        pieces.append(MASK_PIECE)
        position = end
    if position < end_of_data:
        pieces.append(Piece(data[position:end_of_data]))
    return pieces


def _chosen(hits: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Of ``hits`` in ``size`` bytes those that are masked, in order: the longest first, of equal ones the earliest."""
    starts: dict[int, list[int]] = {}
    for start, end in hits:
        starts.setdefault(end - start, []).append(start)
    if len(starts) == 1:
        return _without_overlaps(hits)
    taken = bytearray(size)
    chosen: list[tuple[int, int]] = []
    for length in sorted(starts, reverse=True):
        mark = b"\x01" * length
        for start in starts[length]:
            # What is taken is at least as long: it covers one of the ends of whatever it overlaps.
            if not taken[start] and not taken[start + length - 1]:
                taken[start : start + length] = mark
                chosen.append((start, start + length))
    chosen.sort()
    return chosen


def _without_overlaps(hits: list[tuple[int, int]]) -> list[tuple[int, int]]:
    chosen: list[tuple[int, int]] = []
    position = 0
    for hit in hits:
        if hit[0] >= position:
            chosen.append(hit)
            position = hit[1]
    return chosen
