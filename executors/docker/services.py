"""The services of a job: what they are called, who may use them, and their containers (``docker-executor.md`` 6)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from executors.base import ServiceSpec
from executors.docker.lines import Lines
from executors.docker.names import LABELS
from executors.docker.policy import check_allowed
from executors.docker.reference import InvalidReference, parse_reference
from executors.errors import InvalidSpec, PrepareError

if TYPE_CHECKING:
    from executors.docker.config import DockerConfig, ServiceConfig

_PORT = re.compile(r":[0-9]+(?=/)")
_ALIASES = re.compile(r"[ ,]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceImage:
    """The parts of a service's image: ``path`` is without port and version; ``version`` is a tag, or a digest with its
    ``@``; ``name`` is what is pulled, with a tag in any case."""

    path: str
    version: str
    name: str

    @property
    def title(self) -> str:
        """How the log names it."""
        return f"{self.path}{'' if self.version.startswith('@') else ':'}{self.version}"

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names that follow from the image."""
        return tuple(dict.fromkeys((self.path.replace("/", "__"), self.path.replace("/", "-"))))


def split_image(text: str) -> ServiceImage | None:
    """The parts of an image's name; None for what is none (6.1)."""
    try:
        parse_reference(text)
    except InvalidReference:
        return None
    name, at, digest = text.partition("@")
    head, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    path = _PORT.sub("", f"{head}{slash}{last}")
    if digest:
        return ServiceImage(path=path, version=at + digest, name=text)
    return ServiceImage(path=path, version=tag or "latest", name=text if tag else f"{text}:latest")


def split_aliases(text: str) -> tuple[str, ...]:
    """Names that are divided by spaces and commas."""
    return tuple(alias for alias in _ALIASES.split(text) if alias)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service as it will run. ``index`` is its place among all that were asked for.

    ``aliases`` are all its names, ``own_aliases`` those that no service before it has; one without any has no
    container. ``warnings`` and ``late_warnings`` are for the log, before and after it is started.
    """

    index: int
    spec: ServiceSpec
    image: ServiceImage
    aliases: tuple[str, ...]
    own_aliases: tuple[str, ...]
    warnings: tuple[str, ...]
    late_warnings: tuple[str, ...]

    @property
    def labels(self) -> dict[str, str]:
        """What tells its container from others."""
        return {f"{LABELS}service": self.image.path, f"{LABELS}service.version": self.image.version}


def configured(service: ServiceConfig, expand: Callable[[str], str]) -> ServiceSpec:
    """A service of the configuration, with a job's variables in it."""
    pairs = (entry.partition("=") for entry in service.environment)
    return ServiceSpec(
        name=expand(service.name),
        aliases=split_aliases(expand(service.alias)),
        entrypoint=service.entrypoint,
        command=service.command,
        environment={key: expand(value) for key, _, value in pairs},
    )


def check_allowed_services(table: DockerConfig, asked: Sequence[ServiceSpec], expand: Callable[[str], str], lines: Lines) -> None:
    """Refuse services that a job may not have; the configured ones may be named by jobs too.

    Raises :class:`InvalidSpec`.
    """
    always = [expand(service.name) for service in table.services]
    for spec in asked:
        check_allowed(spec.name, table.allowed_services, always=always, what="services", lines=lines)


def plan_services(table: DockerConfig, asked: Sequence[ServiceSpec], expand: Callable[[str], str]) -> tuple[Service, ...]:
    """The services of the configuration, then those that the job asks for, as they will run.

    Raises :class:`PrepareError` for too many of them, :class:`InvalidSpec` for one whose image has no name.
    """
    specs = [*(configured(service, expand) for service in table.services), *asked]
    if 0 <= table.services_limit < len(specs):
        raise PrepareError(f"too many services requested: {len(specs)}, only {table.services_limit} allowed")
    taken: set[str] = set()
    return tuple(_plan(index, spec, taken) for index, spec in enumerate(specs))


def _plan(index: int, spec: ServiceSpec, taken: set[str]) -> Service:
    image = split_image(spec.name)
    if image is None:
        raise InvalidSpec(f"invalid service image name: {spec.name}")
    own: list[str] = []
    before: list[str] = []
    after: list[str] = []
    for alias in (*image.aliases, *spec.aliases):
        if alias in taken:
            text = f'Skipping alias "{alias}" for service "{spec.name}" (services[{index}])'
            (after if own else before).append(f"{text}: alias is already in use by another service.")
        else:
            taken.add(alias)
            own.append(alias)
    return Service(
        index=index,
        spec=replace(spec, name=image.name),
        image=image,
        aliases=tuple(dict.fromkeys((*image.aliases, *spec.aliases))),
        own_aliases=tuple(own),
        warnings=tuple(before),
        late_warnings=tuple(after),
    )
