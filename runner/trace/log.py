"""The log of a job: the runner's own lines and the output of its scripts, on their way into the spool.

Order for every stream: masked values, URL parameters, token prefixes, timestamps, then the spool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from executors.base import Stream
from runner.trace.mask import PhraseMask, Phrases
from runner.trace.parameters import ParameterMask
from runner.trace.pieces import Filter, Piece
from runner.trace.prefixes import Prefixes, PrefixMask
from runner.trace.spool import Spool, SpoolState
from runner.trace.timestamps import Timestamper

# Replay after an upgrade must give the same bytes: raised whenever a filter's result changes.
FILTER_VERSION = 2

CLEAR = b"\x1b[0K"
RESET = b"\x1b[0;m"
CYAN = b"\x1b[36;1m"
GREEN = b"\x1b[32;1m"
YELLOW = b"\x1b[0;33m"
RED = b"\x1b[31;1m"
OWN_STREAM = 0
SCRIPT_STREAM = 1
# Lines about archives are as wide as those of the reference's helper program.
TOOL_WIDTH = 50
TOOL_LEVELS = {"info": (b"", ""), "warning": (YELLOW, "WARNING: "), "error": (RED, "ERROR: "), "fatal": (RED, "FATAL: ")}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSettings:
    """How the log of a job is written. ``masks`` are the values to be masked, ``sections`` whether the server folds them."""

    masks: tuple[str, ...] = ()
    token_prefixes: tuple[str, ...] = ()
    mask_default_tokens: bool = True
    timestamps: bool = True
    sections: bool = True


class LogState(msgspec.Struct, frozen=True, kw_only=True):
    """Where a log stands between two steps."""

    spool: SpoolState
    pending: bytes = b""
    continues: bool = False
    version: int = FILTER_VERSION

    @property
    def size(self) -> int:
        """Bytes stored."""
        return self.spool.size

    @property
    def is_current(self) -> bool:
        """Whether the filters that follow give the same bytes as those that followed when this was recorded."""
        return self.version == FILTER_VERSION


class JobLog:
    """Writes the runner's own lines (``job-lifecycle.md`` 6.2) and opens writers for the output of stages."""

    def __init__(self, spool: Spool, settings: TraceSettings) -> None:
        self._spool = spool
        self._phrases = Phrases(settings.masks)
        self._prefixes = Prefixes(settings.token_prefixes, defaults=settings.mask_default_tokens)
        self._timestamps = settings.timestamps
        self._sections = settings.sections
        self._own = Timestamper(OWN_STREAM, "O")

    @property
    def is_full(self) -> bool:
        """Whether further output is dropped."""
        return self._spool.is_full

    def mask(self, values: Iterable[str]) -> None:
        """From now on these values are the ones that are masked; only between stages."""
        self._phrases = Phrases(tuple(values))

    def plain(self, text: str, *, time_ns: int) -> None:
        """A plain line."""
        self._line(CLEAR, text, RESET + b"\n", time_ns)

    def info(self, text: str, *, time_ns: int) -> None:
        """A green line."""
        self._line(GREEN, text, RESET + b"\n", time_ns)

    def warning(self, text: str, *, time_ns: int) -> None:
        """A yellow line."""
        self._line(YELLOW + b"WARNING: ", text, RESET + b"\n", time_ns)

    def error(self, text: str, *, time_ns: int) -> None:
        """A red line."""
        self._line(RED + b"ERROR: ", text, RESET + b"\n", time_ns)

    def header(self, text: str, *, time_ns: int) -> None:
        """The cyan headline of a stage."""
        self._line(CLEAR + CYAN, text, RESET + RESET + b"\n", time_ns)

    def bare(self, text: str, *, time_ns: int) -> None:
        """Text without colours or end of line."""
        self._line(b"", text, b"", time_ns)

    def section_start(self, name: str, *, time_ns: int, collapsed: bool = False) -> None:
        """The beginning of a collapsible section; nothing where the server knows none."""
        self._marker("section_start", f"{name}[collapsed=true]" if collapsed else name, time_ns)

    def section_end(self, name: str, *, time_ns: int) -> None:
        """The end of a section."""
        self._marker("section_end", name, time_ns)

    def _marker(self, kind: str, name: str, time_ns: int) -> None:
        if self._sections:
            before = f"{kind}:{time_ns // 1_000_000_000}:".encode()
            # Names of the runner's own stages stay readable even where a single letter is masked.
            text = self.masked(name) if name.startswith("step_") else name.encode()
            self._write_own(before + text + b"\r" + CLEAR, time_ns)

    def _line(self, before: bytes, text: str, behind: bytes, time_ns: int) -> None:
        self._write_own(before + self.masked(text) + behind, time_ns)

    def _write_own(self, data: bytes, time_ns: int) -> None:
        self._spool.write(self._own.feed(data, time_ns) if self._timestamps else data)

    def masked(self, text: str) -> bytes:
        """A text of the runner's own with everything masked that must be."""
        return _StreamFilters(self._phrases, self._prefixes).masked(text)

    def open_stage(self) -> StageLog:
        """Fresh writers for both streams of a stage."""
        return StageLog(self._spool, self._phrases, self._prefixes, timestamps=self._timestamps)

    def state(self) -> LogState:
        """Where the log stands; only between stages."""
        return LogState(spool=self._spool.state(), pending=self._own.pending, continues=self._own.continues)

    def restore(self, state: LogState) -> None:
        """Cut the log back to where it stood."""
        self._spool.restore(state.spool)
        self._own.pending, self._own.continues = state.pending, state.continues

    def reopen(self) -> None:
        """Go on behind everything that was stored."""
        self._spool.reopen()
        self._own.pending, self._own.continues = b"", False

    def begin_anew(self) -> None:
        """The next line is written by somebody else: it continues no entry."""
        if self._timestamps:
            self._spool.write(self._own.close())
        self._own.continues = False

    def finish(self) -> None:
        """Store everything that is held back."""
        if self._timestamps:
            self._spool.write(self._own.close())
        self._spool.finish()


class StageLog:
    """Output of one stage: a writer each for standard output and standard error."""

    def __init__(self, spool: Spool, phrases: Phrases, prefixes: Prefixes, *, timestamps: bool) -> None:
        self._spool = spool
        self._writers = {
            Stream.STDOUT: _Writer(phrases, prefixes, Timestamper(SCRIPT_STREAM, "O") if timestamps else None),
            Stream.STDERR: _Writer(phrases, prefixes, Timestamper(SCRIPT_STREAM, "E") if timestamps else None),
        }

    def write(self, stream: Stream, data: bytes, time_ns: int) -> None:
        """Output as it was read."""
        self._spool.write(self._writers[stream].feed(data, time_ns))

    def notice(self, text: str, time_ns: int) -> None:
        """A green line in the place of a script's."""
        self._spool.write(self._writers[Stream.STDOUT].line(GREEN, text, time_ns))

    def warning(self, text: str, time_ns: int) -> None:
        """A yellow line in the place of a script's: without the word WARNING."""
        self._spool.write(self._writers[Stream.STDOUT].line(YELLOW, text, time_ns))

    def tool(self, level: str, text: str, time_ns: int, facts: Mapping[str, object] | None = None) -> None:
        """A line about an archive, in the place of a helper program's standard error. ``facts`` stand behind the text.

        ``level`` is ``info``, ``warning``, ``error`` or ``fatal``.
        """
        self._spool.write(self._writers[Stream.STDERR].tool(level, text, facts or {}, time_ns))

    def close(self, time_ns: int) -> None:
        """Release what the filters hold back."""
        for writer in self._writers.values():
            self._spool.write(writer.close(time_ns))


class _Writer:
    """One stream of a stage. Without a ``stamper`` lines carry no times."""

    def __init__(self, phrases: Phrases, prefixes: Prefixes, stamper: Timestamper | None) -> None:
        self._phrases = phrases
        self._prefixes = prefixes
        self._stamper = stamper
        self._filters = _StreamFilters(phrases, prefixes)

    def feed(self, data: bytes, time_ns: int) -> bytes:
        return self._stamp(self._filters.feed(data), time_ns)

    def line(self, colour: bytes, text: str, time_ns: int) -> bytes:
        """A line of the runner's own. Its colour ends whatever the filters were in, and is not masked itself."""
        return self._own(colour + self._masked(text) + RESET + b"\n", time_ns)

    def tool(self, level: str, text: str, facts: Mapping[str, object], time_ns: int) -> bytes:
        colour, word = TOOL_LEVELS[level]
        behind = b"".join(
            b" " + colour + key.encode() + RESET + b"=" + self._masked(str(value)) for key, value in sorted(facts.items())
        )
        return self._own(colour + self._masked(f"{word}{text}".ljust(TOOL_WIDTH)) + RESET + b" " + behind + b"\n", time_ns)

    def _masked(self, text: str) -> bytes:
        return _StreamFilters(self._phrases, self._prefixes).masked(text)

    def _own(self, line: bytes, time_ns: int) -> bytes:
        pieces = self._filters.close()
        self._filters = _StreamFilters(self._phrases, self._prefixes)
        return self._stamp([*pieces, Piece(line)], time_ns)

    def close(self, time_ns: int) -> bytes:
        rest = self._stamp(self._filters.close(), time_ns)
        return rest if self._stamper is None else rest + self._stamper.close()

    def _stamp(self, pieces: Iterable[Piece], time_ns: int) -> bytes:
        stamper = self._stamper
        if stamper is None:
            return b"".join([piece.data for piece in pieces])
        return b"".join([stamper.feed(piece.data, time_ns) for piece in pieces])


class _StreamFilters:
    """The three masks of one stream, one behind the other."""

    def __init__(self, phrases: Phrases, prefixes: Prefixes) -> None:
        self._filters: tuple[Filter, ...] = (PhraseMask(phrases), ParameterMask(), PrefixMask(prefixes))

    def masked(self, text: str) -> bytes:
        """A whole text."""
        pieces = self.feed(text.encode(errors="surrogateescape")) + self.close()
        return b"".join([piece.data for piece in pieces])

    def feed(self, data: bytes) -> list[Piece]:
        pieces = [Piece(data)] if data else []
        for number in range(len(self._filters)):
            pieces = self._through(number, pieces)
        return pieces

    def close(self) -> list[Piece]:
        pieces: list[Piece] = []
        for number, mask in enumerate(self._filters):
            pieces = self._through(number, pieces) + mask.release()
        return pieces

    def _through(self, number: int, pieces: list[Piece]) -> list[Piece]:
        mask = self._filters[number]
        out: list[Piece] = []
        for piece in pieces:
            if not piece.is_final:
                out += mask.feed(piece.data)
            elif not mask.swallows:
                out += [*mask.release(), piece]
        return out
