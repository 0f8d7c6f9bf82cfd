"""Names of images, as the engine's own client reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass

DEFAULT_REGISTRY = "docker.io"
OFFICIAL = "library"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_PART = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_WHOLE = re.compile(
    rf"(?P<host>{_HOST})/(?P<path>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?",
    re.ASCII,
)
_ID = re.compile(r"[a-f0-9]{64}")
_LONGEST_PATH = 255


class InvalidReference(ValueError):
    """What should be the name of an image is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """``registry/path:tag@digest``, taken apart. ``tag`` and ``digest`` may be empty, the rest is not."""

    registry: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def familiar(self) -> str:
        """The name without tag and digest, as short as people write it."""
        if self.registry != DEFAULT_REGISTRY:
            return f"{self.registry}/{self.path}"
        return self.path.removeprefix(f"{OFFICIAL}/") if self.path.count("/") == 1 else self.path

    @property
    def version(self) -> str:
        """What is pulled of it: the digest, else the tag, else ``latest``."""
        return self.digest or self.tag or "latest"

    @property
    def name(self) -> str:
        """As the engine lists what was pulled by it."""
        return f"{self.familiar}@{self.digest}" if self.digest else f"{self.familiar}:{self.version}"


def split_registry(name: str) -> tuple[str, str]:
    """Registry and rest of a name; a first part is a registry when it cannot be a directory of the default one."""
    first, slash, rest = name.partition("/")
    is_host = bool(slash) and ("." in first or ":" in first or first == "localhost" or first != first.lower())
    if not is_host:
        return DEFAULT_REGISTRY, name
    return DEFAULT_REGISTRY if first == f"index.{DEFAULT_REGISTRY}" else first, rest


def familiar_name(listed: str) -> str:
    """A name (with tag or digest) that an engine lists, as Docker lists it: Podman says of the default registry that it is."""
    registry, slash, rest = listed.partition("/")
    if not slash or registry != DEFAULT_REGISTRY:
        return listed
    return rest.removeprefix(f"{OFFICIAL}/") if rest.partition("@")[0].count("/") == 1 else rest


def parse_reference(name: str) -> Reference:
    """Read the name of an image. Raises :class:`InvalidReference`, in the words of the engine's client."""
    if _ID.fullmatch(name):
        raise InvalidReference(f"invalid repository name ({name}), cannot specify 64-byte hexadecimal strings")
    registry, rest = split_registry(name)
    if registry == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"{OFFICIAL}/{rest}"
    path = rest.partition(":")[0]
    if path != path.lower():
        raise InvalidReference(f"invalid reference format: repository name ({path}) must be lowercase")
    found = _WHOLE.fullmatch(f"{registry}/{rest}")
    if found is None:
        raise InvalidReference("invalid reference format")
    if len(found["path"]) > _LONGEST_PATH:
        raise InvalidReference(f"repository name must not be more than {_LONGEST_PATH} characters")
    return Reference(registry=found["host"], path=found["path"], tag=found["tag"] or "", digest=found["digest"] or "")
