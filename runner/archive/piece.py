"""Compressing one piece of a file by itself: pieces put together are one deflate stream, or frames of zstandard in a row."""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import zstandard
from isal import isal_zlib

from executors.workspace import ZEROS
from runner.archive.formats import Level

RAW = -zlib.MAX_WBITS
# ISA-L knows only fast levels: what shall be smaller is left to zlib.
ISAL = {Level.FAST: 1, Level.DEFAULT: 2}
ZLIB = {Level.SLOW: 7, Level.SLOWEST: 9}
ZSTANDARD = {Level.FASTEST: 1, Level.FAST: 1, Level.DEFAULT: 3, Level.SLOW: 7, Level.SLOWEST: 11}

# A sample of a piece tells whether to try: what is compressed already would cost most and gain nothing.
SAMPLE_BYTES = 16 * 1024
SAMPLED_BYTES = 256 * 1024
WORTH = 0.98
BLOCK_BYTES = 0xFFFF
# A deflate stream without content.
NOTHING = b"\x03\x00"
Parts = list[bytes | memoryview]


class PieceCompressor(Protocol):
    """Compresses a piece; the last one of a file ends the stream."""

    def __call__(self, piece: bytes, *, is_last: bool) -> Parts: ...


class _Compressor(Protocol):
    def compress(self, data: bytes | memoryview, /) -> bytes: ...

    def flush(self, mode: int = ..., /) -> bytes: ...


def deflater(level: Level) -> PieceCompressor:
    """How pieces are compressed at a level; at the fastest they are not."""
    return _remembering_holes(_deflater(level))


def zstandard_framer(level: Level) -> PieceCompressor:
    """Every piece becomes a frame of its own, which decoders take one after the other."""

    # One for each thread: making one takes longer than compressing a small file.
    own = threading.local()

    def frame(piece: bytes, *, is_last: bool) -> Parts:
        if not hasattr(own, "compressor"):
            own.compressor = zstandard.ZstdCompressor(level=ZSTANDARD[level])
        packed: bytes = own.compressor.compress(piece)
        return [packed]

    return _remembering_holes(frame)


def _remembering_holes(compress: PieceCompressor) -> PieceCompressor:
    """Every piece of a hole becomes the same: a file of many gigabytes may have little else."""
    known: dict[bool, Parts] = {}

    def compressed(piece: bytes, *, is_last: bool) -> Parts:
        if piece is not ZEROS:
            return compress(piece, is_last=is_last)
        if is_last not in known:
            known[is_last] = compress(piece, is_last=is_last)
        return known[is_last]

    return compressed


def _deflater(level: Level) -> PieceCompressor:

    def make() -> _Compressor:
        if level in ISAL:
            fast: _Compressor = isal_zlib.compressobj(ISAL[level], isal_zlib.DEFLATED, RAW)
            return fast
        return zlib.compressobj(ZLIB[level], zlib.DEFLATED, RAW)

    at_once: Callable[[bytes], bytes] | None = None
    if level in ISAL:
        at_once = partial(isal_zlib.compress, level=ISAL[level], wbits=RAW)
    elif level in ZLIB:
        at_once = partial(zlib.compress, level=ZLIB[level], wbits=RAW)

    def deflate(piece: bytes, *, is_last: bool) -> Parts:
        if level is Level.FASTEST or (len(piece) >= SAMPLED_BYTES and not _is_worth_it(piece)):
            return _stored(piece, is_last=is_last)
        if is_last and at_once is not None:
            whole = at_once(piece)
            return [whole] if len(whole) <= len(piece) else _stored(piece, is_last=True)
        compressor = make()
        parts: Parts = [compressor.compress(piece), compressor.flush(zlib.Z_SYNC_FLUSH)]
        return parts if sum(map(len, parts)) <= len(piece) else _stored(piece, is_last=False)

    return deflate


def _is_worth_it(piece: bytes) -> bool:
    """Whether the beginning or the middle of a piece becomes smaller."""
    view = memoryview(piece)
    for start in (0, len(piece) // 2):
        compressor: _Compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, RAW)
        packed = len(compressor.compress(view[start : start + SAMPLE_BYTES])) + len(compressor.flush())
        if packed < WORTH * SAMPLE_BYTES:
            return True
    return False


def _stored(piece: bytes, *, is_last: bool) -> Parts:
    """A piece as stored blocks of a deflate stream, which begin at whole bytes."""
    view = memoryview(piece)
    parts: Parts = [] if piece or not is_last else [NOTHING]
    for start in range(0, len(piece), BLOCK_BYTES):
        block = view[start : start + BLOCK_BYTES]
        is_end = is_last and start + BLOCK_BYTES >= len(piece)
        parts += [struct.pack("<BHH", is_end, len(block), len(block) ^ 0xFFFF), block]
    return parts
