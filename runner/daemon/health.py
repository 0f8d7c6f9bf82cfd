"""Which runners may be asked for jobs now: a runner that GitLab refuses again and again rests (``config-cli-daemon.md`` 5.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from runner.config.duration import format_duration
from runner.config.model import RunnerConfig

log = structlog.get_logger()


@dataclass(slots=True)
class _State:
    failures: int = 0
    last_check: float = field(default=0.0)


class Health:
    """Counts unhealthy answers by url and short token.

    The pause is measured from the last healthy answer (or from the first look at the runner), not from the failures.
    ``clock`` gives monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._states: dict[str, _State] = {}

    def clear(self) -> None:
        """Forget everything: an edit of the configuration is the operator's "try again now"."""
        self._states.clear()

    def failures(self, runner: RunnerConfig) -> int:
        """Unhealthy answers in a row."""
        state = self._states.get(_key(runner))
        return state.failures if state else 0

    def rest_s(self, runner: RunnerConfig) -> float | None:
        """Seconds until a runner that rests is asked again; None for one that may be asked."""
        state = self._states.get(_key(runner))
        if state is None or state.failures < runner.unhealthy_requests_limit:
            return None
        return max(state.last_check + runner.unhealthy_interval_s - self._clock(), 0.0)

    def may_ask(self, runner: RunnerConfig) -> bool:
        """Whether the runner may be asked now; a disabled one gets a forced check when its pause is over."""
        state = self._state(runner)
        if state.failures < runner.unhealthy_requests_limit:
            return True
        if self._clock() - state.last_check <= runner.unhealthy_interval_s:
            return False
        log.warning(f'Runner "{_key(runner)}" is not healthy, but check for a new job will be forced!')
        state.failures = 0
        state.last_check = self._clock()
        return True

    def mark(self, runner: RunnerConfig, *, healthy: bool) -> None:
        """Take note of an answer."""
        state = self._state(runner)
        if healthy:
            state.failures = 0
            state.last_check = self._clock()
            return
        state.failures += 1
        if state.failures >= runner.unhealthy_requests_limit:
            pause = format_duration(runner.unhealthy_interval_s)
            log.error(f'Runner "{_key(runner)}" is unhealthy and will be disabled for {pause} seconds!')

    def _state(self, runner: RunnerConfig) -> _State:
        return self._states.setdefault(_key(runner), _State(last_check=self._clock()))


def _key(runner: RunnerConfig) -> str:
    return f"{runner.url}{runner.short_token}"
