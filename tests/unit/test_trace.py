"""The job log: masks over any split, timestamps, repair and limit, replay from a state."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import zlib
from pathlib import Path

import msgspec
import pytest

from executors.base import Stream
from runner.trace.log import JobLog, TraceSettings
from runner.trace.spool import Spool
from runner.trace.timestamps import Timestamper

NOW = 1_700_000_000_123_456_789


def written(path: Path, settings: TraceSettings, pieces: list[bytes]) -> bytes:
    spool = Spool(path, 1 << 30)
    log = JobLog(spool, settings)
    stage = log.open_stage()
    for piece in pieces:
        stage.write(Stream.STDOUT, piece, NOW)
    stage.close(NOW)
    content = spool.read(0, spool.size)
    spool.close()
    return content


def split(data: bytes, rng: random.Random) -> list[bytes]:
    pieces = []
    while data:
        size = rng.randint(1, 6)
        pieces.append(data[:size])
        data = data[size:]
    return pieces


@pytest.mark.parametrize("seed", range(40))
def test_a_secret_is_masked_wherever_the_stream_is_split(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    alphabet = "ab-?&=gl"
    secrets = tuple("".join(rng.choices(alphabet, k=rng.randint(2, 7))) for _ in range(rng.randint(1, 5)))
    text = "".join(rng.choices([*alphabet, *secrets, "glpat-ab1", "?private_token=x ", "\n"], k=60)).encode()
    settings = TraceSettings(masks=secrets, timestamps=False)
    whole = written(tmp_path / "whole", settings, [text])
    pieces = written(tmp_path / "pieces", settings, split(text, rng))
    assert pieces == whole
    shown = whole.replace(b"[MASKED]", b"\0")
    assert not [secret for secret in secrets if secret.encode() in shown]


@pytest.mark.parametrize(
    ("masks", "pieces", "expected"),
    [
        pytest.param(("aab",), [b"aa", b"ab!"], b"a[MASKED]!", id="begins-inside-a-broken-match"),
        pytest.param(("abc", "bcdefg"), [b"abcdefg"], b"a[MASKED]", id="longest-wins-over-leftmost"),
        pytest.param(("token-a", "token-abc"), [b"token-a", b"bc"], b"[MASKED]", id="longer-is-waited-for"),
        pytest.param(("x",), [b"log-x-log"], b"log-[MASKED]-log", id="order-of-bytes-is-kept"),
        pytest.param(("it's",), [b"'it'\\''s'"], b"'[MASKED]'", id="quoted-form"),
        pytest.param((), [b"glpat-ab", b"c def glpat- x"], b"glpat-[MASKED] def glpat- x", id="token-prefix"),
        pytest.param((), [b"u?private_", b"token=ab", b"c&x=1"], b"u?private_token=[MASKED]&x=1", id="url-parameter"),
        pytest.param(("s3cret",), [b"glpat-s3cretx"], b"glpat-[MASKED][MASKED]", id="phrase-behind-a-prefix"),
    ],
)
def test_masks(masks: tuple[str, ...], pieces: list[bytes], expected: bytes, tmp_path: Path) -> None:
    assert written(tmp_path / "log", TraceSettings(masks=masks, timestamps=False), pieces) == expected


def test_a_mask_of_one_letter_leaves_the_runners_own_controls_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "log", 1 << 20)
    log = JobLog(spool, TraceSettings(masks=("m", "0", "s"), timestamps=False))
    log.section_start("prepare_script", time_ns=NOW)
    log.warning("some", time_ns=NOW)
    content = spool.read(0, 1000)
    assert content.startswith(b"section_start:1700000000:prepare_script\r\x1b[0K")
    assert content.endswith(b"\x1b[0;33mWARNING: [MASKED]o[MASKED]e\x1b[0;m\n")


@pytest.mark.parametrize("size", [8191, 8192, 8193])
def test_lines_without_end_are_entries_above_the_buffer(size: int) -> None:
    stamper = Timestamper(1, "O")
    out = stamper.feed(b"x" * size, NOW)
    assert bool(out) == (size > 8192)


def test_timestamps_of_lines_progress_and_continuations() -> None:
    stamper = Timestamper(1, "E")
    head = b"2023-11-14T22:13:20.123456Z 01E"
    assert stamper.feed(b"one\ntw", NOW) == head + b" one\n"
    assert stamper.feed(b"o\n10%\r", NOW) == head + b" two\n" + head + b" 10%\r\n"
    assert stamper.feed(b"\n", NOW) == head + b"+\n"
    assert stamper.feed(b"rest", NOW) == b""
    assert stamper.close() == head + b" rest\n"


def test_broken_utf8_is_repaired_byte_by_byte(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "log", 1 << 20)
    for piece in (b"hello a\xfeb a\xffb\n",):
        spool.write(piece)
    assert spool.checksum == "crc32:2a6f9196"
    spool.write(b"\xe2\x82")
    spool.write(b"\xac \xc0\x80 \xf4\x90\x80\x80 \xe2\x82")
    spool.finish()
    text = spool.read(0, 1000).decode().splitlines()[1]
    assert text == "€ \ufffd\ufffd \ufffd\ufffd\ufffd\ufffd \ufffd\ufffd"


def test_the_limit_cuts_and_says_so(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "log", 20)
    spool.write(b"data before limit\n")
    spool.write(b"data after limit\n")
    spool.write(b"never")
    assert spool.checksum == "crc32:559aa46f"
    assert spool.is_full


def test_a_log_that_is_cut_back_and_written_again_is_the_same(tmp_path: Path) -> None:
    """What adoption does: restore the state of the stage's beginning, read the frames again."""
    settings = TraceSettings(masks=("secret",))
    spool = Spool(tmp_path / "log", 1 << 20)
    log = JobLog(spool, settings)
    log.section_start("step_script", time_ns=NOW)
    state = log.state()
    frames = [(NOW + number * 1000, b"line %d sec" % number + b"ret\nha\xe2" + b"\x82\xaclf") for number in range(20)]

    def play(target: JobLog) -> None:
        stage = target.open_stage()
        for time_ns, data in frames:
            stage.write(Stream.STDOUT, data, time_ns)
        stage.close(NOW)

    play(log)
    first, checksum = spool.read(0, spool.size), spool.checksum
    spool.close()
    again = Spool(tmp_path / "log", 1 << 20)
    assert again.checksum == checksum, "a reopened file knows its checksum"
    adopted = JobLog(again, settings)
    adopted.restore(state)
    play(adopted)
    assert again.read(0, again.size) == first
    assert again.checksum == checksum


@pytest.mark.parametrize("length", [65_530, 65_540, 65_560, 70_001])
@pytest.mark.parametrize("cut", [1, 25, 55])
def test_no_secret_shows_behind_many_overlapping_ones(length: int, cut: int, tmp_path: Path) -> None:
    """Occurrences that overlap in a row are decided after a bounded time; what may still become a secret is not let go."""
    settings = TraceSettings(masks=("aa", "a" * 50 + "SECRETTAIL"), timestamps=False)
    data = b"a" * length + b"SECRETTAIL\n"
    split_at = length - cut
    assert b"SECRETTAIL" not in written(tmp_path / "log", settings, [data[:split_at], data[split_at:]])


@pytest.mark.parametrize("shell", ["bash", "dash"])
@pytest.mark.parametrize("secret", ["it's-a-secret", "two words", "a$b`c", 'quo"ted', "tab\there", "ends-with-'", "üml'aut"])
def test_what_a_tracing_shell_prints_of_a_secret_is_masked(shell: str, secret: str, tmp_path: Path) -> None:
    code = 'set -x; : "$S"; V=$S; export V; export -p'
    environment = {"S": secret, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run([shell, "-c", code], env=environment, capture_output=True)
    shown = written(tmp_path / "log", TraceSettings(masks=(secret,), timestamps=False), [done.stderr, done.stdout])
    assert b"[MASKED]" in shown
    letters = max(re.findall(r"[A-Za-z-]{3,}", secret) or [secret], key=len)
    assert letters.encode() not in shown


def test_a_log_of_other_filters_is_not_taken_for_the_same(tmp_path: Path) -> None:
    state = JobLog(Spool(tmp_path / "log", 1 << 20), TraceSettings()).state()
    assert state.is_current
    assert not msgspec.structs.replace(state, version=state.version - 1).is_current


def test_a_file_that_lost_its_end_is_not_filled_with_zeros(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "log", 1 << 20)
    spool.write(b"0123456789")
    state = spool.state()
    os.truncate(tmp_path / "log", 4)
    spool.restore(state)
    assert spool.read(0, 100) == b"0123"
    assert spool.checksum == f"crc32:{zlib.crc32(b'0123'):08x}"


def test_a_disk_that_takes_no_more_ends_the_log_with_a_line(tmp_path: Path) -> None:
    """The limit of file sizes stands in for a full disk; what the spool says of itself agrees with what can be read."""
    program = f"""
import resource, signal, sys, zlib
from pathlib import Path
from runner.trace.spool import Spool
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path({str(tmp_path / "trace")!r}), 1 << 20)
heard = []
spool.on_broken = heard.append
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for number in range(100):
    spool.write(b"line %03d is here\\n" % number)
whole = spool.read(0, 1 << 20)
assert len(whole) == spool.size, (len(whole), spool.size)
assert spool.checksum == f"crc32:{{zlib.crc32(whole):08x}}"
assert whole.startswith(b"line 000 is here\\n") and b"line 057" in whole
assert b"".join(spool.read(at, 7) for at in range(0, spool.size, 7)) == whole
assert heard == ["the log of the job cannot be stored: File too large"], heard
assert spool.is_full and b"cannot store more of this job's log: File too large" in whole
"""
    subprocess.run([sys.executable, "-c", program], check=True)
