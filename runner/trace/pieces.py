"""What filters of the log hand on to each other."""

from __future__ import annotations

from typing import NamedTuple, Protocol

MASK = b"[MASKED]"


class Piece(NamedTuple):
    """Bytes of output. ``is_final``: a mask that was put in, or bytes of the runner's own: later filters let it pass."""

    data: bytes
    is_final: bool = False


MASK_PIECE = Piece(MASK, is_final=True)


class Filter(Protocol):
    """Looks at a stream piece by piece. Bytes keep their order; what may begin a hit is held back until it is decided."""

    @property
    def swallows(self) -> bool:
        """Whether the stream is inside of something that is being left out: a mask put in before is left out too."""
        ...

    def feed(self, data: bytes) -> list[Piece]:
        """What can be handed on now."""
        ...

    def release(self) -> list[Piece]:
        """What is held back, as it is: something stands behind it that cannot continue a hit."""
        ...
