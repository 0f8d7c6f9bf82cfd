"""Renews the tokens of runners before they expire (``config-cli-daemon.md`` 6)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

import structlog

from runner.config.edit import store_token, why_token_not_writable
from runner.config.model import Config, RunnerConfig
from runner.coordinator.registration import CallResult, token_values
from runner.daemon.reload import ConfigFile
from runner.errors import RunnerError

log = structlog.get_logger()

SHARE = 0.75
FIRST_PAUSE_S = 60.0
LONGEST_PAUSE_S = 3600.0
SAVE_PAUSE_S = 10.0
DISABLED = "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION"
# Without anything planned: a reload wakes it.
NEVER_S = 86400.0


@dataclass(slots=True)
class _Refusal:
    """A reset that failed: when it may be tried again, on the wall clock, and how long the pause was."""

    until: float
    pause_s: float


class Rotation:
    """One token at a time, the earliest first. ``reset`` asks the server; ``apply`` takes a configuration over."""

    def __init__(
        self,
        file: ConfigFile,
        *,
        reset: Callable[[RunnerConfig], Awaitable[CallResult]],
        apply: Callable[[Config], Awaitable[None]],
    ) -> None:
        self._file = file
        self._reset = reset
        self._apply = apply
        self._config: Config | None = None
        self._planned = asyncio.Event()
        self._refusals: dict[str, _Refusal] = {}
        self._said: set[str] = set()

    def plan(self, config: Config) -> None:
        """Go by another configuration from now on."""
        self._config = config
        self._planned.set()

    async def catch_up(self) -> None:
        """Renew what is due already, each token once."""
        for _ in self._config.runners if self._config is not None else ():
            runner = self._next()
            if runner is None or self._due(runner) > time.time():
                return
            await self._renew(runner)

    async def run(self) -> None:
        """Renew for ever."""
        while True:
            runner = self._next()
            wait_s = min(self._due(runner) - time.time(), NEVER_S) if runner is not None else NEVER_S
            if runner is not None and wait_s <= 0:
                await self._renew(runner)
                continue
            self._planned.clear()
            try:
                await asyncio.wait_for(self._planned.wait(), wait_s)
            except TimeoutError:
                pass

    def _next(self) -> RunnerConfig | None:
        """The runner whose token is due first."""
        runners = self._config.runners if self._config is not None else ()
        return min((runner for runner in runners if self._rotates(runner)), key=self._due, default=None)

    def _rotates(self, runner: RunnerConfig) -> bool:
        if not runner.token or runner.disabled is not None or runner.token_expires_at is None:
            return False
        if runner.token_expires_at.year <= 1:
            return False
        if runner.feature_flags.get(DISABLED, False):
            self._say_disabled(runner)
            return False
        return True

    def _due(self, runner: RunnerConfig) -> float:
        """When, on the wall clock."""
        assert runner.token_expires_at is not None
        expires = runner.token_expires_at.timestamp()
        obtained = _timestamp(runner.token_obtained_at, expires)
        refusal = self._refusals.get(runner.token)
        return max(obtained + SHARE * (expires - obtained), refusal.until if refusal is not None else 0.0)

    def _say_disabled(self, runner: RunnerConfig) -> None:
        if runner.token not in self._said and self._due(runner) <= time.time():
            self._said.add(runner.token)
            log.warning(
                "Automatic token rotation is disabled for this runner. Its token is about to expire",
                runner=runner.short_token,
                runner_name=runner.name,
            )

    async def _renew(self, runner: RunnerConfig) -> None:
        bound = log.bind(runner=runner.short_token, runner_name=runner.name)
        # A token that cannot be saved would be lost with this process, and the runner with it.
        reason = self._why_not_savable(runner)
        if reason:
            bound.error("Resetting runner authentication token... failed", error=f"it could not be saved: {reason}")
            self._put_off(runner)
            return
        result = await self._reset(runner)
        if not result.ok or not result.credentials.token:
            text = "failed (check used token)" if result.refused else "failed"
            bound.error(f"Resetting runner authentication token... {text}", status=result.text)
            self._put_off(runner)
            return
        self._refusals.pop(runner.token, None)
        bound.info("Resetting runner authentication token... succeeded")
        await self._save(runner, result)

    def _why_not_savable(self, runner: RunnerConfig) -> str:
        try:
            self._find(runner)
        except (OSError, RunnerError) as error:
            return str(error)
        return why_token_not_writable(self._file.path, runner.pyrunner.token_file)

    def _put_off(self, runner: RunnerConfig) -> None:
        before = self._refusals.get(runner.token)
        pause_s = min(before.pause_s * 2, LONGEST_PAUSE_S) if before is not None else FIRST_PAUSE_S
        self._refusals[runner.token] = _Refusal(time.time() + pause_s, pause_s)

    async def _save(self, runner: RunnerConfig, result: CallResult) -> None:
        """Write the token down, however often that takes: the one before is void."""
        while True:
            try:
                before, index = self._find(runner)
                values = token_values(result.credentials)
                await asyncio.to_thread(store_token, self._file.path, index, runner.pyrunner.token_file, values)
                config = self._file.peek().config
                if config is not None:
                    if self._file.is_in_force(before):
                        self._file.accept(config)
                    await self._apply(config)
                return
            except (OSError, RunnerError) as error:
                log.critical("the new token could not be saved", runner=runner.short_token, error=str(error))
            await asyncio.sleep(SAVE_PAUSE_S)

    def _find(self, runner: RunnerConfig) -> tuple[Config, int]:
        """Where the entry stands in the file, which may have been edited meanwhile."""
        config = self._file.peek().config
        if config is not None:
            for number, one in enumerate(config.runners):
                if (one.url, one.token) == (runner.url, runner.token):
                    return config, number
        raise RunnerError(f"{self._file.path} has no entry with the former token")


def _timestamp(at: datetime | None, latest: float) -> float:
    """When a token was obtained; one that does not say so is as old as it can be."""
    return at.timestamp() if at is not None and at.year > 1 else latest - 1.0
