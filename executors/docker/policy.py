"""Which images a job may use, and how they are had (``docker-executor.md`` 5.1 to 5.3, 5.5)."""

from __future__ import annotations

import functools
import platform as host
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from executors.docker.config import PULL_POLICIES, DockerConfig
from executors.docker.lines import Level, Lines
from executors.errors import ExecutorError, InvalidSpec
from executors.glob import BadPattern, matcher

ADVICE = (
    "Please check runner's allowed_images configuration: https://docs.gitlab.com/runner/configuration/advanced-configuration/"
)
NO_IMAGE = "no Docker image specified to run the build in"
_COMPONENT = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_SYSTEMS = frozenset(
    {"aix", "android", "darwin", "dragonfly", "freebsd", "illumos", "ios", "js", "linux", "netbsd", "openbsd", "plan9"}
    | {"solaris", "wasip1", "windows"}
)
_ARCHITECTURES = frozenset(
    {"386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64"}
    | {"s390x", "wasm"}
)
# Other names of architectures, and the variants that they imply.
_ALIASES = {
    "i386": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether a pattern takes the name as it is written; malformed patterns take nothing."""
    return any(found.fullmatch(name) is not None for pattern in patterns if (found := _pattern(pattern)) is not None)


@functools.lru_cache(maxsize=1024)
def _pattern(text: str) -> re.Pattern[str] | None:
    try:
        return matcher(text)
    except BadPattern:
        return None


def build_image(asked: str, default: str, lines: Lines) -> str:
    """The image of the job's scripts: ``asked`` is the job's own, ``default`` the configured one, both expanded."""
    if asked:
        return asked
    if not default:
        raise ExecutorError(NO_IMAGE)
    lines.add(Level.INFO, "Using default image")
    return default


def check_allowed(name: str, patterns: Sequence[str], *, always: Iterable[str], what: str, lines: Lines) -> None:
    """Refuse an image that the lists do not allow; ``what`` is ``images`` or ``services``, ``always`` are names that need
    no pattern. An empty list allows all. Raises :class:`InvalidSpec`."""
    if not patterns or name in set(always) or matches_any(patterns, name):
        return
    lines.add(Level.PLAIN, "")
    lines.add(Level.ERROR, f'The "{name}" image is not present on list of allowed {what}:')
    for pattern in patterns:
        lines.add(Level.PLAIN, f"- {pattern}")
    lines.add(Level.PLAIN, "")
    lines.add(Level.PLAIN, ADVICE)
    raise InvalidSpec("disallowed image")


def effective_policies(image: str, asked: Sequence[str], config: DockerConfig) -> tuple[str, ...]:
    """The policies to try for an image, in this order; ``asked`` are the job's own. Raises :class:`InvalidSpec` when none
    is left, :class:`ExecutorError` for a configured one that there is not."""
    configured = config.pull_policy or PULL_POLICIES[:1]
    _check_known("pull_policy", configured)
    _check_known("allowed_pull_policies", config.allowed_pull_policies)
    requested = tuple(asked) or configured
    allowed = config.allowed_pull_policies or configured
    found = tuple(policy for policy in requested if policy in allowed)
    if found:
        return found
    source = "GitLab pipeline config" if asked else "Runner config" if config.pull_policy else "Runner config (default)"
    raise InvalidSpec(
        f'invalid pull policy for image "{image}": pull_policy ({shown(requested)}) defined in {source} '
        f"is not one of the allowed_pull_policies ({shown(allowed)})"
    )


def _check_known(key: str, policies: Iterable[str]) -> None:
    for policy in policies:
        if policy not in PULL_POLICIES:
            raise ExecutorError(f'unsupported {key} config: "{policy}"')


def shown(words: Iterable[str]) -> str:
    """A list as the log shows it."""
    return f"[{' '.join(words)}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What an image is made for. ``variant`` may be empty."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


def parse_platform(text: str) -> Platform | None:
    """``linux/arm64/v8``, ``linux/amd64``, ``arm64``; None for an empty text. Raises :class:`InvalidSpec`."""
    if not text:
        return None
    parts = text.lower().split("/")
    for part in parts:
        if not _COMPONENT.fullmatch(part):
            raise InvalidSpec(f'"{part}" is an invalid component of "{text}": invalid argument')
    match parts:
        case [one] if one in _SYSTEMS or one == "macos":
            return Platform(os=_system(one), **_architecture(host.machine().lower(), ""))
        case [one] if one in _ARCHITECTURES or one in _ALIASES:
            return Platform(os="linux", **_architecture(one, ""))
        case [_]:
            raise InvalidSpec(f'"{text}": unknown operating system or architecture: invalid argument')
        case [system, architecture]:
            return Platform(os=_system(system), **_architecture(architecture, ""))
        case [system, architecture, variant]:
            return Platform(os=_system(system), **_architecture(architecture, variant))
        case _:
            raise InvalidSpec(f'"{text}": cannot parse platform specifier: invalid argument')


def _system(name: str) -> str:
    return "darwin" if name == "macos" else name


def _architecture(name: str, variant: str) -> dict[str, str]:
    architecture, implied = _ALIASES.get(name, (name, ""))
    variant = variant or implied
    if architecture == "arm" and variant in ("", "5", "6", "7", "8"):
        variant = f"v{variant or 7}"
    if (architecture, variant) in (("arm64", "8"), ("arm64", "v8"), ("amd64", "v1")):
        variant = ""
    return {"architecture": architecture, "variant": variant}
