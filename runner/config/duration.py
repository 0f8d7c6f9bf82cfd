"""Durations as Go writes them: ``1h30m``, ``2.5s``, ``100ms``."""

from __future__ import annotations

import re

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds. Raises :class:`ValueError` for anything that Go does not read as a duration."""
    body = text.removeprefix("-").removeprefix("+") if text[:1] in "+-" else text
    if body == "0":
        return 0.0
    parts = list(_PART.finditer(body))
    if not parts or "".join(part.group() for part in parts) != body:
        raise ValueError(f"not a duration: {text!r}")
    total_ns = sum(float(part.group(1)) * _UNITS_NS[part.group(2)] for part in parts)
    return -total_ns / 1e9 if text.startswith("-") else total_ns / 1e9


def format_duration(seconds: float) -> str:
    """A duration as Go prints it."""
    total_ns = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and total_ns else ""
    if total_ns == 0:
        return "0s"
    if total_ns < 1_000_000_000:
        for unit, size_ns in (("ms", 1_000_000), ("µs", 1_000), ("ns", 1)):
            if total_ns >= size_ns:
                return f"{sign}{_decimal(total_ns, size_ns)}{unit}"
    minutes, rest_ns = divmod(total_ns, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{_decimal(rest_ns, 1_000_000_000)}s"
    if minutes or hours:
        text = f"{minutes}m{text}"
    return f"{sign}{hours}h{text}" if hours else sign + text


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    if not rest:
        return str(whole)
    digits = str(rest).zfill(len(str(unit)) - 1).rstrip("0")
    return f"{whole}.{digits}"
