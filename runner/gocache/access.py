"""What a job gets of its store: mounts, variables, and lines of its log."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from executors.base import Mount, Sharing
from runner.config.model import GoConfig
from runner.config.size import format_size
from runner.coordinator.payload import Cache
from runner.gocache.generation import BUILD, GOPATH, IMAGES, MODULES, PROXY
from runner.gocache.stores import Claim

# Where processes of jobs find their store, whichever it is: paths are in the keys of what the Go tool builds.
TARGET = "/var/cache/pyrunner/go"
PLACES = (BUILD, MODULES, GOPATH, PROXY)
# The Go tool's own places, as a job may name them without setting a variable.
_MODULE_PLACES = ("/go/pkg/mod", "/root/go/pkg/mod", "~/go/pkg/mod", "$GOMODCACHE", "${GOMODCACHE}")
_GOPATHS = ("$GOPATH", "${GOPATH}")
_BUILD_PLACES = ("/root/.cache/go-build", "/.cache/go-build", "~/.cache/go-build", "$GOCACHE", "${GOCACHE}")
_HOME = re.compile(r"^\$(HOME\b|\{HOME\})")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAccess:
    """``defaults`` count where neither the job nor the place where it runs sets a variable of that name. ``proxied`` is a
    directory of modules to ask before the usual proxies."""

    mounts: tuple[Mount, ...] = ()
    defaults: tuple[tuple[str, str], ...] = ()
    proxied: str = ""
    lines: tuple[str, ...] = ()


NO_ACCESS = GoAccess()


def access(claim: Claim, settings: GoConfig, sharing: Sharing, *, by_image: bool) -> GoAccess:
    """What a claim means to its job. Headers of C are in no key of a build cache: with cgo each image has its own."""
    base = TARGET if claim.mounted else claim.place
    mounts = []
    if claim.mounted:
        build = IMAGES if by_image else BUILD
        mounts = [
            Mount(source=f"{claim.place}/{build}", target=f"{TARGET}/{BUILD}", per_image=by_image),
            *(Mount(source=f"{claim.place}/{name}", target=f"{TARGET}/{name}") for name in (MODULES, GOPATH)),
        ]
        if claim.published:
            mounts.append(Mount(source=claim.published, target=f"{TARGET}/{PROXY}", read_only=True))
    defaults = [("GOCACHE", f"{base}/{BUILD}"), ("GOMODCACHE", f"{base}/{MODULES}"), ("GOPATH", f"{base}/{GOPATH}")]
    defaults.append(("GOFLAGS", "-modcacherw"))
    if settings.proxy:
        defaults.append(("GOPROXY", settings.proxy))
    return GoAccess(
        mounts=tuple(mounts),
        defaults=tuple(defaults),
        proxied=f"{TARGET}/{PROXY}" if claim.published else "",
        lines=(_line(claim, sharing),),
    )


def refused(why: str) -> GoAccess:
    """A job without a store."""
    return GoAccess(lines=(f"Go cache: none ({why})",))


def _line(claim: Claim, sharing: Sharing) -> str:
    state = "warm" if claim.warm else "cold"
    whose = f"of this job alone, since {sharing.problem}" if claim.private else claim.name
    return f"Go cache: {format_size(claim.size_bytes)}, scope {claim.scope}, {state} ({whose})"


def without_served(
    found: GoAccess, caches: Sequence[Cache], *, variables: Mapping[str, str], expand: Callable[[str], str], project: str
) -> tuple[GoAccess, tuple[Cache, ...]]:
    """The caches of a job without the paths that its store serves, and the same access, which tells of them.

    Where ``variables`` of the job name a place of their own, that is what the Go tool uses, and what is packed.
    """
    if not found.defaults:
        return found, tuple(caches)
    places: list[str] = []
    if not variables.get("GOMODCACHE"):
        own = [posixpath.join(project, variables["GOPATH"])] if variables.get("GOPATH") else []
        places += [*_MODULE_PLACES, *(f"{gopath}/pkg/mod" for gopath in (*own, *_GOPATHS))]
    if not variables.get("GOCACHE"):
        places += [*_BUILD_PLACES, f"{project}/.cache/go-build"]
    kept: list[Cache] = []
    lines: dict[str, None] = {}
    for cache in caches:
        served = [path for path in cache.paths if _names_one_of(path, places, expand, project)]
        lines.update((f"Cache path {path} is served by the Go cache, nothing of it is packed", None) for path in served)
        rest = [path for path in cache.paths if path not in served]
        if not served:
            kept.append(cache)
        elif rest or cache.untracked:
            kept.append(msgspec.structs.replace(cache, paths=rest))
    return replace(found, lines=(*found.lines, *lines)), tuple(kept)


def _names_one_of(path: str, places: Sequence[str], expand: Callable[[str], str], project: str) -> bool:
    """Whether a path of a cache is one of the places, or lies in it."""
    written = _HOME.sub("~", path)
    spellings = (posixpath.normpath(written), posixpath.normpath(posixpath.join(project, expand(path))))
    return any(spelled == place or spelled.startswith(f"{place}/") for spelled in spellings for place in places)
