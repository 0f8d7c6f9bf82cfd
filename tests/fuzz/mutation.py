"""Bytes that were right once: changed, cut, doubled and mixed with what parsers look for."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


def mutated(good: bytes, words: Sequence[bytes], *, most: int = 4) -> st.SearchStrategy[bytes]:
    """``good`` with one to ``most`` changes; ``words`` are written over any place."""
    place = st.integers(0, max(len(good) - 1, 0))
    change = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(1, 255)),
        st.tuples(st.just("cut"), place, st.integers(1, 64)),
        st.tuples(st.just("double"), place, st.integers(1, 64)),
        st.tuples(st.just("end"), place, st.just(0)),
        st.tuples(st.just("word"), place, st.integers(0, len(words) - 1)),
    )

    def apply(changes: list[tuple[str, int, int]]) -> bytes:
        raw = bytearray(good)
        for kind, at, value in changes:
            at = min(at, len(raw))
            if kind == "flip" and at < len(raw):
                raw[at] ^= value
            elif kind == "cut":
                del raw[at : at + value]
            elif kind == "double":
                raw[at:at] = raw[at : at + value]
            elif kind == "end":
                del raw[at:]
            elif kind == "word":
                raw[at : at + len(words[value])] = words[value]
        return bytes(raw)

    return st.lists(change, min_size=1, max_size=most).map(apply)
