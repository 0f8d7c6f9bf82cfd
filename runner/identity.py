"""Names and versions of this program, and the short forms of tokens."""

from __future__ import annotations

import platform
import re
import sys

NAME = "pyrunner"
VERSION = "0.1.0"
REVISION = "HEAD"

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "i386": "386", "armv7l": "arm"}
_PREFIXES = (
    re.compile(r"^(?:glrt-(?:t[123]_)?|t[123]_|glrtr-)"),
    re.compile(r"^glcbt-"),
    re.compile(r"^GR[0-9A-Fa-f]{7}"),
)
SHORT_TOKEN_LENGTH = 9


def architecture() -> str:
    """This machine's architecture by its Go name (``amd64``)."""
    machine = platform.machine()
    return _MACHINES.get(machine, machine)


def os_name() -> str:
    """This machine's system by its Go name (``linux``)."""
    return sys.platform


def user_agent() -> str:
    """The ``User-Agent`` of every request, in the reference's shape (``runner-api.md`` 1.2)."""
    return f"{NAME} {VERSION} ({REVISION}; python{platform.python_version()}; {os_name()}/{architecture()})"


def short_token(token: str) -> str:
    """The part of a token that may be shown (``runner-api.md`` 2.1): no prefix, nine characters."""
    for prefix in _PREFIXES:
        token = prefix.sub("", token, count=1)
    return token[:SHORT_TOKEN_LENGTH]
