"""What an environment has to remember across daemons: one fact a line, written before it is acted on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()

FILE = "docker.jsonl"


def facts(directory: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """What the journal of somebody else's record says, by kind and name; what cannot be read is passed over."""
    try:
        raw = (directory / FILE).read_bytes()
    except OSError:
        return {}
    found = {}
    for line in raw.splitlines():
        try:
            fact = json.loads(line)
            found[fact["fact"], fact["name"]] = fact
        except (ValueError, KeyError, TypeError):
            continue
    return found


class Journal:
    """Facts of one job's place by kind and name; the last one of a name counts. A torn last line is passed over."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._facts: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            raw = b""
        whole = raw.rpartition(b"\n")[0]
        if len(whole) + 1 < len(raw):
            os.truncate(self._path, len(whole) + 1 if whole else 0)
        for line in whole.splitlines():
            fact = json.loads(line)
            self._facts[fact["fact"], fact["name"]] = fact

    def note(self, fact: str, name: str = "", **values: Any) -> None:
        """Remember a fact; what was known under its name is replaced."""
        whole = {"fact": fact, "name": name, **values}
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(whole).encode() + b"\n")
        finally:
            os.close(fd)
        self._facts[fact, name] = whole

    def find(self, fact: str, name: str = "") -> dict[str, Any] | None:
        """What is known under a name."""
        return self._facts.get((fact, name))

    def all(self, fact: str) -> dict[str, dict[str, Any]]:
        """All that is known of a kind, by name."""
        return {name: values for (kind, name), values in self._facts.items() if kind == fact}
