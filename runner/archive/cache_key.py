"""Keys of caches: what a job calls them, and what they are stored under (``job-lifecycle.md`` 12.1). Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

PROTECTED = "-protected"
_ENCODED = {"%2f": "/", "%2F": "/", "%2e": ".", "%2E": ".", "\\": "/"}
_DECODE = re.compile("|".join(map(re.escape, _ENCODED)))


@dataclass(frozen=True, slots=True)
class CacheKey:
    """``shown`` is for people; ``stored`` names directory and object: components without ``.`` and ``..``, or a hash.

    Empty ones mean that there is no cache. ``complaint`` is a warning for the job's log. ``other`` is the key as it would
    be with, or without, hashes: so an archive of before the change is found.
    """

    shown: str
    stored: str
    complaint: str = ""
    is_hashed: bool = False
    raw: str = ""

    @property
    def other(self) -> CacheKey:
        """See the class."""
        return cache_key(self.raw, hashed=not self.is_hashed)


def cache_key(expanded: str, *, hashed: bool) -> CacheKey:
    """The key of an expanded text."""
    if not expanded:
        return CacheKey("", "")
    if hashed:
        digest = hashlib.sha256(expanded.encode(errors="surrogateescape")).hexdigest()
        return CacheKey(expanded, digest, is_hashed=True, raw=expanded)
    clean = _sanitised(expanded)
    if clean == expanded:
        return CacheKey(clean, clean, raw=expanded)
    if not clean:
        return CacheKey("", "", f"cache key {_quoted(expanded)} could not be sanitized")
    return CacheKey(clean, clean, f"cache key {_quoted(expanded)} sanitized to {_quoted(clean)}", raw=expanded)


def fallback_key(expanded: str, *, hashed: bool) -> tuple[CacheKey, list[str]]:
    """The key of ``CACHE_FALLBACK_KEY`` and its warnings: caches of protected branches are not for everybody."""
    clean = _sanitised(expanded).rstrip(". ")
    key = cache_key(expanded, hashed=hashed)
    complaints = [key.complaint] if key.complaint else []
    if clean.endswith(PROTECTED):
        refused = f'CACHE_FALLBACK_KEY {_quoted(_sanitised(expanded))} not allowed to end in "{PROTECTED}"'
        return CacheKey("", ""), [refused, *complaints]
    return key, complaints


def object_name(key: CacheKey, *, path: str, short_token: str, shared: bool, project_id: int) -> str:
    """The name of an object in a bucket (12.2)."""
    runner = "" if shared else f"runner/{short_token}"
    shard = key.stored[:2] if key.is_hashed else ""
    return "/".join(part for part in (path.strip("/"), runner, f"project/{project_id}", shard, key.stored) if part)


def _sanitised(key: str) -> str:
    found: list[str] = []
    for part in _DECODE.sub(lambda match: _ENCODED[match[0]], key).split("/"):
        if part == "..":
            found = found[:-1]
        elif part not in ("", "."):
            found.append(part)
    while found:
        last = found.pop().rstrip()
        if last not in ("", ".", ".."):  # blanks may have hidden what these are
            return "/".join([*found, last])
    return ""


def _quoted(text: str) -> str:
    """As Go's ``%q`` shows it."""
    escapes = {
        '"': '\\"',
        "\\": "\\\\",
        "\a": "\\a",
        "\b": "\\b",
        "\f": "\\f",
        "\n": "\\n",
        "\r": "\\r",
        "\t": "\\t",
        "\v": "\\v",
    }

    def escaped(character: str) -> str:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            return f"\\x{code - 0xDC00:02x}"
        if code < 0x80:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(escapes.get(one) or (one if one.isprintable() else escaped(one)) for one in text) + '"'
