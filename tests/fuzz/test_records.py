"""Files that a death has torn: every whole fact and frame before the tear is read, and writing goes on behind it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from executors.base import Stream
from executors.frames import FRAME
from executors.supervised import FrameReader
from runner.errors import RecordInvalid
from runner.job.record import Acknowledged, Adopted, Fact, Journal, Note, PatchSent
from tests.fuzz.mutation import mutated

FACTS = st.one_of(
    st.builds(Acknowledged, at_ns=st.integers(0, 2**62)),
    st.builds(Adopted, at_ns=st.integers(0, 2**62), pid=st.integers(1, 2**22)),
    st.builds(Note, name=st.text(), value=st.text()),
)


@given(st.lists(FACTS, max_size=6), st.integers(0, 2000), FACTS)
def test_a_torn_journal_is_read_up_to_the_tear(facts: list[Fact], size: int, later: Fact) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        journal = Journal(path)
        ends = [0]
        for fact in facts:
            journal.append(fact)
            ends.append(path.stat().st_size)
        journal.close()
        size = min(size, ends[-1])
        os.truncate(path, size)
        whole = sum(1 for end in ends[1:] if end <= size)
        torn = Journal(path)
        assert torn.facts == facts[:whole]
        torn.append(later)
        torn.close()
        again = Journal(path)
        assert again.facts == [*facts[:whole], later]
        again.close()


GOOD = b'{"fact":"acknowledged","at_ns":1}\n{"fact":"note","name":"n","value":"v"}\n{"fact":"patch","end":9}\n'


@given(mutated(GOOD, [b"\n", b"{", b"\xff", b"null", b'"fact"', b"[" * 64]))
def test_a_damaged_journal_is_refused_or_read(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        path.write_bytes(raw)
        try:
            journal = Journal(path)
        except RecordInvalid:
            return
        journal.append(PatchSent(end=10**12))
        journal.close()
        again = Journal(path)
        assert again.facts == journal.facts
        assert again.highest_sent == 10**12
        again.close()


@given(
    st.lists(st.tuples(st.sampled_from(list(Stream)), st.integers(0, 2**63), st.binary(max_size=50))),
    st.lists(st.integers(0, 3000)),
)
def test_frames_are_read_as_their_file_grows(frames: list[tuple[Stream, int, bytes]], sizes: list[int]) -> None:
    raw = b"".join(FRAME.pack(stream, time_ns, len(data)) + data for stream, time_ns, data in frames)
    with tempfile.TemporaryFile() as file:
        reader = FrameReader(file.fileno(), 0)
        found = []
        for size in [*sorted(size for size in sizes if size < len(raw)), len(raw)]:
            os.pwrite(file.fileno(), raw[:size], 0)
            found += reader.read(64)
            while more := reader.read(64):
                found += more
        assert [(one.stream, one.time_ns, one.data) for one in found] == frames
        for one in found:
            rest = FrameReader(file.fileno(), one.next_offset).read(1 << 20)
            assert [again.data for again in rest] == [later.data for later in found if later.next_offset > one.next_offset]
