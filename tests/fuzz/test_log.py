"""The log: masks against a plain search, timestamps taken away again, over any split of the stream."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from runner.trace.mask import PhraseMask, Phrases
from runner.trace.timestamps import ENTRY_BYTES, Timestamper

HEADER = re.compile(rb"2023-11-14T22:13:20\.123456Z 01O([ +])")
NOW = 1_700_000_000_123_456_789


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at the places that are in it."""
    places = sorted({cut for cut in cuts if 0 < cut < len(data)})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def masked(text: str, values: list[str]) -> str:
    """Of all occurrences the longest first, of equal ones the earliest; none that meets a chosen one."""
    taken = [False] * len(text)
    begins: dict[int, int] = {}
    for length in sorted({len(value) for value in values}, reverse=True):
        for at in range(len(text) - length + 1):
            if text[at : at + length] in values and not any(taken[at : at + length]):
                taken[at : at + length] = [True] * length
                begins[at] = length
    found, at = "", 0
    while at < len(text):
        found += "[MASKED]" if at in begins else text[at]
        at += begins.get(at, 1)
    return found


@given(
    st.text("ab-", max_size=60),
    st.lists(st.text("ab-", min_size=1, max_size=7), min_size=1, max_size=6),
    st.lists(st.integers(0, 60)),
)
def test_masks_are_those_of_a_plain_search(text: str, values: list[str], cuts: list[int]) -> None:
    mask = PhraseMask(Phrases(values))
    pieces = [piece for data in pieces_of(text.encode(), cuts) for piece in mask.feed(data)] + mask.release()
    assert b"".join(piece.data for piece in pieces).decode() == masked(text, values)


@given(st.binary(max_size=300), st.lists(st.text(min_size=1, max_size=5), max_size=6), st.lists(st.integers(0, 300)))
def test_no_value_survives_in_any_bytes(data: bytes, values: list[str], cuts: list[int]) -> None:
    data += b"".join(value.encode(errors="surrogatepass") for value in values)
    mask = PhraseMask(Phrases(values))
    pieces = [piece for part in pieces_of(data, cuts) for piece in mask.feed(part)] + mask.release()
    shown = b"\0".join(piece.data for piece in pieces if piece.data != b"[MASKED]")
    for value in values:
        if value.strip() and "\0" not in value and value.strip() not in "[MASKED]":
            assert value.strip().encode(errors="surrogateescape") not in shown


LINES = st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"word ", b"\xff", b"x" * 5000, b"2023-"]), max_size=40).map(
    b"".join
)


@given(LINES, st.lists(st.integers(0, 50_000)))
def test_timestamps_can_be_taken_away_again(data: bytes, cuts: list[int]) -> None:
    stamper = Timestamper(1, "O")
    stored = b"".join(stamper.feed(part, NOW) for part in pieces_of(data, cuts)) + stamper.close()
    found = b""
    for line in stored.split(b"\n")[:-1]:
        head = HEADER.match(line)
        assert head is not None, line
        assert len(line) <= len(head[0]) + max(2 * ENTRY_BYTES, len(data))
        if head[1] == b"+":
            assert found, "only something that was begun goes on"
            found = found.removesuffix(b"\n")
        found += line[head.end() :] + b"\n"
    assert stored.endswith(b"\n") or not stored
    assert found in (data, data + b"\n")
