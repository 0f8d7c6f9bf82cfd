"""How far a pull is, for pulls that take long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST_S = 30.0
EVERY_S = 60.0
_DONE = frozenset({"Pull complete", "Already exists"})
_FETCHED = frozenset({"Download complete", "Verifying Checksum", "Extracting"})


class PullProgress:
    """Sums up what the engine tells of a pull. Times are seconds of any clock."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begun_s: float | None = None
        self._due_s = 0.0
        self._states: dict[str, str] = {}
        self._bytes: dict[str, tuple[int, int]] = {}

    def feed(self, message: Mapping[str, Any], now_s: float) -> str:
        """Take a message in; a line when one is due, else nothing."""
        layer, status = message.get("id"), message.get("status")
        if self._begun_s is None:
            self._begun_s, self._due_s = now_s, now_s + FIRST_S
        if isinstance(layer, str) and isinstance(status, str) and not status.startswith("Pulling from"):
            self._states[layer] = status
            detail = message.get("progressDetail") or {}
            if status == "Downloading" and detail.get("total"):
                self._bytes[layer] = int(detail.get("current") or 0), int(detail["total"])
            elif layer in self._bytes and status in _FETCHED | _DONE:
                self._bytes[layer] = (self._bytes[layer][1],) * 2
        if now_s < self._due_s or not self._states:
            return ""
        self._due_s = now_s + EVERY_S
        return self._line(now_s - self._begun_s)

    def _line(self, taken_s: float) -> str:
        done = sum(status in _DONE for status in self._states.values())
        got = sum(current for current, _ in self._bytes.values()) / (1 << 20)
        total = sum(whole for _, whole in self._bytes.values()) / (1 << 20)
        sizes = f", {got:.0f} of {total:.0f} MiB fetched" if total else ""
        return f"Pulling {self._name} for {taken_s:.0f} s: {done} of {len(self._states)} layers{sizes}"
