"""The images that were pulled or made for jobs: which there are, what they take, and their end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from executors.docker.errors import NotFound
from executors.docker.reference import familiar_name
from executors.docker.shelf import Shelf, quoted
from executors.docker.uses import key_of, name_of

if TYPE_CHECKING:
    from executors.docker.client import Engine
    from executors.docker.ledger import Ledger

NO_NAME = "<none>"


class KeptImages(Shelf):
    """Those of one engine that are in the ledger, and that nobody else has given a name.

    A layer counts once; where several images have it, each takes its share.
    """

    def __init__(self, engine: Engine, ledger: Ledger, used: Callable[[], set[str]]) -> None:
        super().__init__(engine, ledger, used)
        self._layers: dict[str, list[tuple[str, int]]] = {}

    def _name_of(self, key: str) -> str:
        return name_of(key)

    async def _list(self) -> Mapping[str, int]:
        ours = {key: self.ledger.given(key) for key in self.ledger.last_uses()}
        return {
            name_of(one["Id"]): 0
            for one in await self._get("/images/json")
            if key_of(one["Id"]) in ours and not named_by_others(one, ours[key_of(one["Id"])])
        }

    async def _sizes(self, uses: Mapping[str, int]) -> Mapping[str, int]:
        self._layers = {image: layers for image, layers in self._layers.items() if image in uses}
        for image in uses:
            if image not in self._layers:
                try:
                    self._layers[image] = await self._layers_of(image)
                except NotFound:
                    continue
        return shares(self._layers)

    async def _layers_of(self, image: str) -> list[tuple[str, int]]:
        about = await self._get(f"/images/{image}/json")
        history = await self._get(f"/images/{image}/history")
        sizes = [step["Size"] for step in reversed(history) if step["Size"]]
        return layers(image, about["RootFS"].get("Layers") or (), sizes or [about["Size"]])

    async def _remove(self, name: str) -> bool:
        given = self.ledger.given(key_of(name))
        try:
            about = await self._get(f"/images/{name}/json")
        except NotFound:
            return True
        if named_by_others(about, given) or await self._get("/containers/json?all=1", ancestor=[name]):
            return False
        for reference in [*_names(about), name]:
            await self._delete(f"/images/{quoted(reference)}")
        return True


def named_by_others(image: Mapping[str, Any], given: Iterable[str]) -> bool:
    """Whether an image, as the engine lists it, has a name that the runner did not give it."""
    names = set(given)
    places = {_place(name) for name in names}
    tags, digests = image.get("RepoTags") or (), image.get("RepoDigests") or ()
    others = [name for name in tags if NO_NAME not in name and familiar_name(name) not in names]
    return bool(others) or any(NO_NAME not in name and _place(familiar_name(name)) not in places for name in digests)


def layers(image: str, found: Sequence[str], sizes: Sequence[int]) -> list[tuple[str, int]]:
    """Keys and sizes of layers, the lowest first; images with the same lowest layers have the same keys for them.

    ``found`` are the ids of the layers. The engine tells their sizes without those of empty ones: where some are, a layer
    is known by the lowest one's id and the sizes up to it.
    """
    if len(found) == len(sizes):
        return list(zip(found, sizes, strict=True))
    lowest = found[0] if found else image
    return [(f"{lowest} {sizes[: number + 1]}", size) for number, size in enumerate(sizes)]


def shares(images: Mapping[str, Sequence[tuple[str, int]]]) -> dict[str, int]:
    """What each image takes, bytes, where layers are shared; all together are what all take."""
    owners: dict[str, int] = {}
    for parts in images.values():
        for key in {key for key, _ in parts}:
            owners[key] = owners.get(key, 0) + 1
    return {image: sum(size // owners[key] for key, size in dict(parts).items()) for image, parts in images.items()}


def _place(name: str) -> str:
    """The name of an image without tag and digest."""
    path = name.partition("@")[0]
    head, colon, tag = path.rpartition(":")
    return head if colon and "/" not in tag else path


def _names(image: Mapping[str, Any]) -> list[str]:
    return [name for key in ("RepoTags", "RepoDigests") for name in image.get(key) or () if NO_NAME not in name]
