"""Asks for jobs: fair turns, one slot reserved before each request, limits, health (``config-cli-daemon.md`` 5).

One loop offers the runners in file order, ``check_interval`` divided between them. Each offer becomes a task that takes
its slot from the request to the end of the job that it may bring. All counters live on the event loop: no locks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from runner.config.model import Config, RunnerConfig
from runner.coordinator.client import JobRequestKind, JobRequestResult
from runner.daemon.counters import Lease, TokenCounters
from runner.daemon.health import Health
from runner.daemon.slots import Slots

log = structlog.get_logger()

ADAPTIVE_FLAG = "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY"
# A request that was sent may have been answered with a job: how long its answer is waited for while draining.
REQUEST_DRAIN_S = 60.0


class JobSource(Protocol):
    """Asks the coordinator of a runner. ``hold`` allows the server to keep the request until there is a job."""

    async def __call__(self, runner: RunnerConfig, *, hold: bool) -> JobRequestResult:
        """One request; never raises for what a server can answer."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A job that was just received, with what it holds. ``accepted`` is to be called once the coordinator has heard
    that it runs; ``place`` gives it its concurrent ids."""

    runner: RunnerConfig
    result: JobRequestResult
    lease: Lease
    accepted: Callable[[], None]
    place: Callable[[int], None]


class Events(Protocol):
    """What the scheduler counts (``config-cli-daemon.md`` 12.1)."""

    def fed(self, runner: RunnerConfig) -> None:
        """A runner was offered its turn."""
        ...

    def feed_failed(self, runner: RunnerConfig) -> None:
        """A runner's turn was skipped."""
        ...

    def request_refused(self, runner: RunnerConfig) -> None:
        """No request slot was free."""
        ...

    def health_check_failed(self, runner: RunnerConfig) -> None:
        """An answer counted as unhealthy."""
        ...


@dataclass(slots=True)
class _Turns:
    """What is in flight: requests that may still bring a job, to be waited for when draining."""

    requests: set[asyncio.Task[None]] = field(default_factory=set)


class Scheduler:
    """Takes turns until :meth:`drain`. ``run_job`` runs an offered job to its end and never raises. ``has_room`` tells, and
    may take a while to find out, whether the disk has room for another job.
    """

    def __init__(
        self,
        *,
        config: Config,
        request: JobSource,
        run_job: Callable[[Offer], Awaitable[None]],
        health: Health,
        events: Events,
        has_room: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._config = config
        self._request = request
        self._run_job = run_job
        self._health = health
        self._events = events
        self._has_room = has_room
        self._counters: dict[str, TokenCounters] = {}
        self._turns = _Turns()
        self._draining = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self.slots = Slots(config.concurrent)

    @property
    def draining(self) -> bool:
        """Whether asking has stopped."""
        return self._draining.is_set()

    def counters(self, token: str) -> TokenCounters:
        """The counters of a token, created on first use."""
        return self._counters.setdefault(token, TokenCounters())

    @property
    def known_counters(self) -> dict[str, TokenCounters]:
        """Counters of every token that was ever asked with."""
        return self._counters

    def request_limit(self, runner: RunnerConfig) -> int:
        """How many requests for jobs a runner may have in flight at the moment."""
        is_adaptive = runner.feature_flags.get(ADAPTIVE_FLAG, True)
        return self.counters(runner.token).request_limit(max(runner.request_concurrency, 1), is_adaptive=is_adaptive)

    def reload(self, config: Config) -> None:
        """Go on with another configuration; running jobs are not touched, health is forgotten."""
        self._config = config
        self.slots.resize(config.concurrent)
        self._health.clear()
        tokens = {runner.token for runner in config.runners}
        for token in [token for token, state in self._counters.items() if token not in tokens]:
            if not self._counters[token].jobs:
                del self._counters[token]

    def drain(self) -> None:
        """Stop asking. Requests in flight are let finish; a job that they bring is run."""
        self._draining.set()

    def cancel_requests(self) -> None:
        """Give up requests in flight: only when the process must end now."""
        for task in list(self._turns.requests):
            task.cancel()

    async def run(self, adopted: Sequence[tuple[RunnerConfig, Lease, Awaitable[None]]] = ()) -> None:
        """Ask until drained, then wait for all jobs. ``adopted`` jobs hold their slots before the first request."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for runner, lease, work in adopted:
                self.slots.occupy()
                self.counters(lease.token).jobs += 1
                group.create_task(self._adopt(runner, lease, work), name=f"adopted-{lease.concurrent_id}")
            await self._feed()
            await self._drain_requests()

    async def _feed(self) -> None:
        while not self.draining:
            config = self._config
            interval_s = config.check_interval_s / max(len(config.runners), 1)
            for runner in config.runners:
                if self.draining:
                    return
                if self._config is not config:
                    break  # loaded anew while this one waited for its turn: it may be gone, or changed
                await self._offer(runner)
                await self._sleep(interval_s)
            if not config.runners:
                await self._sleep(config.check_interval_s)

    async def _offer(self, runner: RunnerConfig) -> None:
        if runner.disabled is not None or not runner.token.strip() or not self._health.may_ask(runner):
            self._events.feed_failed(runner)
            return
        if not await self._take_slot():
            return
        self._events.fed(runner)
        self._start_turn(runner)

    async def _take_slot(self) -> bool:
        """Wait for a slot; False when draining began meanwhile."""
        take = asyncio.ensure_future(self.slots.take())
        stop = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait((take, stop), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not take.done():
                take.cancel()
                await asyncio.wait((take,))
        if take.cancelled():
            return False
        if self.draining:
            self.slots.give()
            return False
        return True

    def _start_turn(self, runner: RunnerConfig) -> None:
        """Hand a taken slot to a task that asks with it."""
        assert self._group is not None
        task = self._group.create_task(self._turn(runner), name=f"turn-{runner.short_token}")
        self._turns.requests.add(task)
        task.add_done_callback(self._turns.requests.discard)

    def _requeue(self, runner: RunnerConfig) -> None:
        """Ask once more at once, if a slot is idle right now."""
        if not self.draining and self._is_current(runner) and self.slots.try_take():
            self._start_turn(runner)

    def _is_current(self, runner: RunnerConfig) -> bool:
        return any(runner.token == other.token and runner.url == other.url for other in self._config.runners)

    async def _turn(self, runner: RunnerConfig) -> None:
        """One offer: from the reserved slot to the end of the job, if there is one."""
        counters = self.counters(runner.token)
        lease = Lease(token=runner.token)
        try:
            if runner.limit > 0 and counters.jobs >= runner.limit:
                counters.limit_met = True
                log.debug("Failed to request job, runner limit met", runner=runner.short_token)
                return
            counters.jobs += 1
            try:
                await self._ask_and_run(runner, counters, lease)
            except Exception as error:
                log.exception("turn of a runner failed", runner=runner.short_token, error=str(error))
            finally:
                counters.jobs -= 1
                counters.free(lease)
        finally:
            self.slots.give()
        if lease.concurrent_id >= 0:
            self._use_freed_place(runner, counters)

    def _use_freed_place(self, runner: RunnerConfig, counters: TokenCounters) -> None:
        """A runner that had more turns than its limit allowed uses the place that its job leaves at once."""
        if counters.limit_met:
            counters.limit_met = False
            self._requeue(runner)

    async def _ask_and_run(self, runner: RunnerConfig, counters: TokenCounters, lease: Lease) -> None:
        if self._has_room is not None and not await self._has_room():
            self._events.feed_failed(runner)
            return
        result = await self._ask(runner, counters)
        task = asyncio.current_task()
        if task is not None:
            self._turns.requests.discard(task)
        if result is None or result.kind is not JobRequestKind.JOB:
            return
        await self._run_job(
            Offer(
                runner=runner,
                result=result,
                lease=lease,
                accepted=lambda: None if runner.strict_check_interval else self._requeue(runner),
                place=lambda project_id: counters.place(lease, project_id),
            )
        )

    async def _ask(self, runner: RunnerConfig, counters: TokenCounters) -> JobRequestResult | None:
        """Send one request within the runner's request concurrency; None when there was no room for it."""
        hard_limit = max(runner.request_concurrency, 1)
        if counters.requests >= self.request_limit(runner):
            counters.exceeded += 1
            self._events.request_refused(runner)
            return None
        counters.requests += 1
        got_job = retried = False
        try:
            result = await self._request(runner, hold=self._may_hold(runner))
            got_job, retried = result.kind is JobRequestKind.JOB, result.retried
        finally:
            counters.requests -= 1
            counters.adapt(hard_limit, got_job=got_job, retried=retried)
        counters.last_answer = (time.time(), result.status, str(result.kind))
        self._health.mark(runner, healthy=result.healthy)
        if not result.healthy:
            self._events.health_check_failed(runner)
        return result

    def _may_hold(self, runner: RunnerConfig) -> bool:
        """Whether the server may keep this request open: not while other runners would wait for the slot it holds."""
        waiting = sum(
            1
            for other in self._config.runners
            if other.token != runner.token and other.disabled is None and not self.counters(other.token).requests
        )
        return self.slots.free >= waiting

    async def _adopt(self, runner: RunnerConfig, lease: Lease, work: Awaitable[None]) -> None:
        counters = self.counters(lease.token)
        try:
            await work
        except Exception as error:
            log.exception("adoption of a job failed", error=str(error), runner=runner.short_token)
        finally:
            counters.jobs -= 1
            counters.free(lease)
            self.slots.give()
        self._use_freed_place(runner, counters)

    async def _drain_requests(self) -> None:
        if self._turns.requests:
            _, late = await asyncio.wait(self._turns.requests, timeout=REQUEST_DRAIN_S)
            for task in late & self._turns.requests:
                task.cancel()

    async def _sleep(self, seconds: float) -> None:
        """Wait for the next turn, or for the end."""
        try:
            await asyncio.wait_for(self._draining.wait(), seconds)
        except TimeoutError:
            return
