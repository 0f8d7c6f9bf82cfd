"""Recordings of the reference: where they are, how they are filled in, and what of a log can be compared."""

from __future__ import annotations

import base64
import difflib
import json
import os
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("PYRUNNER_GOLDEN", Path(__file__).resolve().parents[3] / "shared" / "golden"))
ABSENT = f"the recordings of the reference are not at {ROOT}: set PYRUNNER_GOLDEN"


def scenarios(area: str) -> list[str]:
    folder = ROOT / area
    return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []


def read(area: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / area / f"{name}.json").read_text())
    return found


def fill(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, str):
        for name, text in places.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, dict):
        return {key: fill(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, places) for item in value]
    return value


def without_costs(config: str) -> str:
    """A configuration whose logs end as the reference's do."""
    head, *entries = re.split(r"(?m)^(?=[ \t]*\[\[runners\]\])", config)
    return head + "".join(f"{entry.rstrip()}\n  [runners.pyrunner]\n    job_costs = false\n" for entry in entries)


def text_of(files: dict[str, Any], name: str) -> str:
    """The content of a small file that a recording found afterwards; empty where there was none."""
    return base64.b64decode((files.get(name) or {}).get("base64") or "").decode()


_RULES = (
    (re.compile(r"section_(start|end):\d+:"), r"section_\1:T:"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z "), "TIME "),
    (re.compile(r"Running with \S+ \S+ \([^)]*\)"), "Running with PRODUCT"),
    (re.compile(r"system ID: \S+?(?=\x1b|$)"), "system ID: ID"),
    (re.compile(r"Gitaly correlation ID: [^\x1b]*"), "Gitaly correlation ID: ID"),
    (re.compile(r"Checking out [0-9a-f]{8} "), "Checking out SHA "),
    (re.compile(r"\b(bash|sh)(: line |: )\d+: "), r"\1: line N: "),
    (re.compile(r": line N: (eval: )?"), ": line N: "),
    (re.compile(r"eval: line \d+: "), "line N: "),
    (re.compile(r"not our ref [0-9a-f]{40}"), "not our ref SHA"),
    (re.compile(r"\b[0-9a-f]{40}\b"), "SHA"),
    (re.compile(r" [A-Z][a-z]{2} [ \d]\d \d\d:\d\d "), " DATE "),
    (re.compile(r"Cache archive size \(\d+\)"), "Cache archive size (N)"),
    (re.compile(r"(\.\./)+"), "../"),
)


PRODUCT = {
    "19.4.0": "VERSION",
    "0.1.0": "VERSION",
    "d79f3e7b": "REVISION",
    "=HEAD": "=REVISION",
    "|HEAD|": "|REVISION|",
}


# Lines of the reference's helper program: padded, with facts behind that vary; one of them names the program itself.
_HELPER = re.compile(r" *\x1b\[0;m (?: (?:\x1b\[[0-9;]*m)?[A-Za-z_\[\]-]+\x1b\[0;m=.*)?$", re.DOTALL)
_HELPER_START = re.compile(r"(?:[0-9T:.-]+Z 01E )?Runtime platform +\x1b\[0;m  arch\x1b\[0;m=.*\n")
# A count of what was selected: of visits there, of what is packed here.
_COUNT = re.compile(r": (found|excluded) \d+ (matching|files)")
_METER = re.compile(r"\r(Uploading|Downloading) artifacts [\d.]+ \w+ \([\d.]+ \w+/s\) +\n?")


_BEGAN = re.compile(r"section_start:(\d+):")


def normalised(log: str, places: dict[str, str]) -> list[str]:
    """Lines of a log without what varies from run to run. ``places``: placeholder -> this run's text."""
    log = _METER.sub("", _HELPER_START.sub("", log))
    for name, text in places.items():
        if text:
            log = log.replace(text, "{" + name + "}")
    for text, name in PRODUCT.items():
        log = log.replace(text, name)
    log = log.replace(socket.gethostname(), "{HOSTNAME}")
    began = _BEGAN.search(log)
    for pattern, replacement in _RULES:
        log = pattern.sub(replacement, log)
    if began is not None:
        log = log.replace(f"{datetime.fromtimestamp(int(began[1]), UTC):%Y-%m-%d}", "TODAY")
    return [_COUNT.sub(r": \1 N \2", _HELPER.sub("\x1b[0;m", line)) for line in log.split("\n")]


def same(expected: list[str], got: list[str]) -> bool:
    """Equal, but for the order of lines of the two streams inside a section: the reference reads them one by one."""
    return expected == got or _by_section(expected) == _by_section(got)


def _by_section(lines: list[str]) -> list[list[str]]:
    sections: list[list[str]] = [[]]
    for line in lines:
        if "section_start:" in line:
            sections.append([])
        sections[-1].append(line)
    return [sorted(section) for section in sections]


def difference(expected: list[str], got: list[str]) -> str:
    return "\n".join(repr(line) for line in difflib.unified_diff(expected, got, "reference", "pyrunner", lineterm="", n=1))
