"""Figures of ``docs`` and of releases: each module is a command, ``python -m benchmarks.NAME``."""

import io
import sys

# A figure is seen when it is there, also through a pipe.
if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(line_buffering=True)
