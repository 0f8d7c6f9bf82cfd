"""The coordinators of all runner entries: one client each, kept over reloads while nothing about it changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from executors.registry import KINDS
from runner.config.model import RunnerConfig
from runner.coordinator.client import Coordinator
from runner.coordinator.http import HttpClient, RequestObserver
from runner.coordinator.info import runner_info
from runner.coordinator.tls import find_files

Key = tuple[str, str, str, str, str, str, str]


class Connections:
    """Hands out coordinators by url, token and TLS files: two tokens never share a queue position."""

    def __init__(
        self,
        *,
        system_id: str,
        config_dir: Path,
        connection_max_age_s: float,
        observer: Callable[[RunnerConfig], RequestObserver] | None = None,
    ) -> None:
        self._system_id = system_id
        self._config_dir = config_dir
        self._max_age_s = connection_max_age_s
        self._observer = observer
        self._coordinators: dict[Key, Coordinator] = {}

    def of(self, runner: RunnerConfig) -> Coordinator:
        """The coordinator of an entry."""
        key = _key(runner)
        if key not in self._coordinators:
            files = find_files(
                runner.url,
                ca=runner.tls_ca_file,
                cert=runner.tls_cert_file,
                key=runner.tls_key_file,
                config_dir=self._config_dir,
            )
            http = HttpClient(
                runner.url,
                tls=files,
                connection_max_age_s=self._max_age_s,
                observer=self._observer(runner) if self._observer else None,
            )
            self._coordinators[key] = Coordinator(
                http,
                token=runner.token,
                system_id=self._system_id,
                info=runner_info(KINDS.get(runner.executor), shell=runner.shell, labels=runner.labels),
                runner=runner.short_token,
                runner_name=runner.name,
            )
        return self._coordinators[key]

    async def keep_only(self, runners: tuple[RunnerConfig, ...], in_use: set[str]) -> None:
        """Close clients of entries that are gone, unless a job still needs them (``in_use``: tokens)."""
        wanted = {_key(runner) for runner in runners}
        for key in [key for key in self._coordinators if key not in wanted and key[1] not in in_use]:
            await self._coordinators.pop(key).close()

    async def close(self) -> None:
        """Close everything."""
        for coordinator in self._coordinators.values():
            await coordinator.close()
        self._coordinators.clear()


def _key(runner: RunnerConfig) -> Key:
    labels = ",".join(f"{key}={value}" for key, value in sorted(runner.labels.items()))
    return (
        runner.url,
        runner.token,
        runner.tls_ca_file,
        runner.tls_cert_file,
        runner.tls_key_file,
        f"{runner.executor}/{runner.shell}",
        labels,
    )
