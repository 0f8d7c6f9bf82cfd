"""Puts the inputs of a job into its definition, once, before anything else looks at it (``job-lifecycle.md`` 18)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from runner.coordinator.payload import Artifact, Cache, Image, JobPayload, JobStep
from runner.job import moa
from runner.job.outcome import misconfigured

USER_SCRIPTS = ("script", "after_script")


def interpolate(payload: JobPayload) -> JobPayload:
    """The payload with every ``${{ job.inputs.<name> }}`` replaced; without inputs the text is left alone.

    Raises :class:`JobFailure` for an expression that cannot be evaluated.
    """
    if not payload.inputs:
        return payload
    values: dict[str, moa.Value] = {}
    for given in payload.inputs:
        name = f"job.inputs.{given.key}"
        values[given.key] = moa.Sensitive(name) if given.value.sensitive else moa.from_json(given.value.content)
    texts = _Texts({"job": {"inputs": values}})
    try:
        return msgspec.structs.replace(
            payload,
            steps=[texts.step(step) for step in payload.steps],
            image=texts.image(payload.image),
            services=[texts.image(service) for service in payload.services],
            artifacts=[texts.artifact(artifact) for artifact in payload.artifacts],
            cache=[texts.cache(cache) for cache in payload.cache],
        )
    except moa.MoaError as error:
        raise misconfigured(f"failed to interpolate job inputs: {error}") from error


class _Texts:
    """Renders the texts of one definition."""

    def __init__(self, env: Mapping[str, moa.Value]) -> None:
        self._env = env

    def _text(self, text: str) -> str:
        return moa.to_text(moa.render(text, self._env)) if moa.OPEN in text else text

    def _list(self, texts: list[str]) -> list[str]:
        return [self._text(text) for text in texts]

    def step(self, step: JobStep) -> JobStep:
        if step.name not in USER_SCRIPTS:
            return step
        return msgspec.structs.replace(step, script=self._list(step.script))

    def image(self, image: Image) -> Image:
        return msgspec.structs.replace(
            image,
            name=self._text(image.name),
            entrypoint=self._list(image.entrypoint),
            command=self._list(image.command),
            pull_policy=self._list(image.pull_policy),
            executor_opts=self._options(image.executor_opts),
        )

    def _options(self, found: Any) -> Any:
        if isinstance(found, str):
            return self._text(found)
        if isinstance(found, dict):
            return {key: self._options(value) for key, value in found.items()}
        return found

    def artifact(self, artifact: Artifact) -> Artifact:
        return msgspec.structs.replace(
            artifact,
            name=self._text(artifact.name),
            paths=self._list(artifact.paths),
            exclude=self._list(artifact.exclude),
            when=self._text(artifact.when),
            expire_in=self._text(artifact.expire_in),
        )

    def cache(self, cache: Cache) -> Cache:
        return msgspec.structs.replace(
            cache,
            key=self._text(cache.key),
            policy=self._text(cache.policy),
            paths=self._list(cache.paths),
            when=self._text(cache.when),
            fallback_keys=self._list(cache.fallback_keys),
        )
