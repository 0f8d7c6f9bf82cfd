"""The form in which a supervisor keeps the output of a run: frames of stream, time and bytes. Standard library only."""

from __future__ import annotations

import struct

# Stream (1 standard output, 2 standard error), Unix nanoseconds, number of bytes that follow.
FRAME = struct.Struct("<BQI")
