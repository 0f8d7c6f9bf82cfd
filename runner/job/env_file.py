"""What the scripts of a job wrote into the file behind ``GITLAB_ENV``, as later stages see it."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def parse_env_file(content: bytes) -> dict[str, str]:
    """Name and value of every line that the prelude of a script would export: one without an equals sign, with an odd
    name, or cut off before its end of line is passed over; blanks and tabs around a line are not part of it."""
    found: dict[str, str] = {}
    for line in content.split(b"\n")[:-1]:
        name, equals, value = line.replace(b"\0", b"").strip(b" \t").decode(errors="surrogateescape").partition("=")
        if equals and _NAME.fullmatch(name):
            found[name] = value
    return found
