"""Metrics under the reference's names (``config-cli-daemon.md`` 12.1), in a registry of their own."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from runner.config.model import RunnerConfig
from runner.config.queuing import is_exceeded
from runner.identity import NAME, REVISION, VERSION, architecture, os_name
from runner.job.costs import Costs

JOB_BUCKETS = (30, 60, 300, 600, 1800, 3600, 7200, 10800, 18000, 36000)
QUEUE_BUCKETS = (1, 3, 10, 30, 60, 120, 300, 900, 1800, 3600)
REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
RUNNER = ("runner", "runner_name", "system_id")
TOKEN = ("runner", "system_id")
STAGE_BUCKETS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
MEMORY_BUCKETS = tuple(2**20 * size for size in (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536))
NO_CLIENT = -100
MODE = "traditional"
Family = TypeVar("Family", Counter, Gauge, Histogram)
FAILURES = ("job_failure", "no_free_executor", "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningJob:
    """A running job as metrics and the list of jobs show it."""

    runner: RunnerConfig
    url: str
    stage: str
    state: str
    duration_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is read at the moment of a scrape. ``requests`` maps tokens to (in flight, exceeded, adaptive limit)."""

    concurrent: int
    state: str
    runners: tuple[RunnerConfig, ...]
    jobs: tuple[RunningJob, ...]
    requests: dict[str, tuple[int, int, int]]
    unreported: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQueue:
    """What the server says of the queue that a job came from. ``project_jobs`` counts the project's running jobs."""

    waited_s: float
    project_jobs: str
    size: int
    depth: int


class Metrics:
    """Counts what happens; ``snapshot`` gives what is. All names start as the reference's do."""

    content_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self, system_id: str, snapshot: Callable[[], Snapshot]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._system_id = system_id
        self.registry = CollectorRegistry(auto_describe=False)
        self._of_runners: list[tuple[Counter | Gauge | Histogram, tuple[str, ...]]] = []
        ProcessCollector(registry=self.registry)
        self.registry.register(_State(system_id, snapshot))
        self._jobs = self._counter("jobs", "Jobs handled", RUNNER)
        self._failed = self._counter("failed_jobs", "Failed jobs", ("runner", "runner_name", "failure_reason", "mode"))
        self._durations = self._histogram("job_duration_seconds", "Duration of jobs", (*RUNNER, "mode"), JOB_BUCKETS)
        self._stages = self._histogram("job_stage_duration_seconds", "Duration of stages", (*RUNNER, "stage"), QUEUE_BUCKETS)
        self._queue = self._histogram(
            "job_queue_duration_seconds", "Time in the queue", (*RUNNER, "project_jobs_running"), QUEUE_BUCKETS
        )
        self._late = self._counter(
            "acceptable_job_queuing_duration_exceeded", "Jobs that waited for longer than they may", RUNNER
        )
        self._modes = self._counter("job_execution_mode", "Jobs by the way in which they run", ("executor", "mode"))
        self._inputs = self._counter("job_inputs_interpolations", "Jobs whose inputs changed their definition")
        self._queue_size = self._level("job_queue_size", "Jobs that wait in the queue", RUNNER)
        self._queue_depth = self._level("job_queue_depth", "Jobs of the queue that were looked at", RUNNER)
        self._feeds = self._counter("worker_feeds", "Turns given to runners", RUNNER)
        self._feed_failures = self._counter("worker_feed_failures", "Turns that were skipped", RUNNER)
        self._health = self._counter("worker_health_check_failures", "Unhealthy answers", RUNNER)
        self._processing = self._counter("worker_processing_failures", "Turns that failed", ("failure_type", *RUNNER))
        self._slots = self._counter("worker_slot_operations", "Slots started and stopped", ("operation",))
        self._statuses = self._counter("api_request_statuses", "Answers of the API", (*TOKEN, "endpoint", "status", "method"))
        self._request_times = self._histogram(
            "api_request_duration_seconds",
            "Duration of API calls",
            (*TOKEN, "endpoint", "status_class", "method"),
            REQUEST_BUCKETS,
        )
        self._retries = self._counter("api_request_retries", "Requests of API calls", ("path", "method"))
        self._errors = self._counter("errors", "Records of the log", ("level",))
        for level in ("panic", "fatal", "error", "warning"):
            self._errors.labels(level)
        # Ours: what jobs cost.
        self._stage_costs = self._own_histogram("job_stage_seconds", "Time of stages", (*TOKEN, "stage"), STAGE_BUCKETS)
        self._memory = self._own_histogram(
            "job_peak_memory_bytes", "The largest process, or container, of jobs", TOKEN, MEMORY_BUCKETS
        )
        self._cpu = self._own_counter("job_cpu_seconds", "Processor time of jobs", (*TOKEN, "mode"))
        self._moved = self._own_counter("job_bytes", "Artifacts and remote caches of jobs", (*TOKEN, "direction"))
        self._caches = self._own_counter("job_caches", "Caches that jobs have looked for", (*TOKEN, "result"))
        self._config = {
            name: self._counter(f"configuration_{name}", "Configuration file")
            for name in ("loaded", "loading_error", "saved", "saving_error")
        }

    def _counter(self, name: str, text: str, labels: Iterable[str] = ()) -> Counter:
        return self._kept(Counter(f"gitlab_runner_{name}", text, tuple(labels), registry=self.registry), labels)

    def _level(self, name: str, text: str, labels: Iterable[str]) -> Gauge:
        return self._kept(Gauge(f"gitlab_runner_{name}", text, tuple(labels), registry=self.registry), labels)

    def _histogram(self, name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
        found = Histogram(f"gitlab_runner_{name}", text, tuple(labels), buckets=buckets, registry=self.registry)
        return self._kept(found, labels)

    def _own_histogram(self, name: str, text: str, labels: Iterable[str], buckets: tuple[float, ...]) -> Histogram:
        found = Histogram(f"pyrunner_{name}", text, tuple(labels), buckets=buckets, registry=self.registry)
        return self._kept(found, labels)

    def _own_counter(self, name: str, text: str, labels: Iterable[str]) -> Counter:
        return self._kept(Counter(f"pyrunner_{name}", text, tuple(labels), registry=self.registry), labels)

    def _kept(self, family: Family, labels: Iterable[str]) -> Family:
        """Remember a family whose series are those of runners."""
        names = tuple(labels)
        if "runner" in names:
            self._of_runners.append((family, names))
        return family

    def page(self) -> bytes:
        """The text of ``/metrics``."""
        return generate_latest(self.registry)

    def know(self, runners: Iterable[RunnerConfig]) -> None:
        """Show counters of these runners from the beginning."""
        for runner in runners:
            for family in self._families():
                family.labels(*self._labels(runner))
            for failure in FAILURES:
                self._processing.labels(failure, *self._labels(runner))

    def _families(self) -> tuple[Counter | Gauge, ...]:
        return (self._jobs, self._feeds, self._feed_failures, self._health, self._queue_size, self._queue_depth)

    def forget(self, runner: RunnerConfig) -> None:
        """A runner left the configuration: its series go."""
        for family, names in self._of_runners:
            samples = [sample for metric in family.collect() for sample in metric.samples]
            for series in {tuple(sample.labels[name] for name in names) for sample in samples}:
                if series[names.index("runner")] == runner.short_token:
                    family.remove(*series)

    def _labels(self, runner: RunnerConfig) -> tuple[str, str, str]:
        return runner.short_token, runner.name, self._system_id

    # Events of the scheduler

    def fed(self, runner: RunnerConfig) -> None:
        """A runner was offered its turn."""
        self._feeds.labels(*self._labels(runner)).inc()

    def feed_failed(self, runner: RunnerConfig) -> None:
        """A runner's turn was skipped."""
        self._feed_failures.labels(*self._labels(runner)).inc()

    def request_refused(self, runner: RunnerConfig) -> None:
        """No request slot was free: the counter of the token shows it."""

    def health_check_failed(self, runner: RunnerConfig) -> None:
        """An answer counted as unhealthy."""
        self._health.labels(*self._labels(runner)).inc()

    # Jobs, requests, log, configuration

    def job_began(self, runner: RunnerConfig, queue: JobQueue) -> None:
        """A job was taken."""
        self._jobs.labels(*self._labels(runner)).inc()
        self._modes.labels(runner.executor, MODE).inc()
        late = self._late.labels(*self._labels(runner))
        if runner.queuing_limits and is_exceeded(
            runner.queuing_limits, waited_s=queue.waited_s, project_jobs=queue.project_jobs, now=datetime.now(UTC)
        ):
            late.inc()
        self._queue.labels(*self._labels(runner), queue.project_jobs).observe(queue.waited_s)
        self._queue_size.labels(*self._labels(runner)).set(queue.size)
        self._queue_depth.labels(*self._labels(runner)).set(queue.depth)

    def inputs_used(self) -> None:
        """Inputs changed the definition of a job."""
        self._inputs.inc()

    def stage_ended(self, runner: RunnerConfig, stage: str, duration_s: float) -> None:
        """A stage of a job is over."""
        self._stages.labels(*self._labels(runner), stage).observe(duration_s)

    def job_ended(self, runner: RunnerConfig, reason: str, duration_s: float) -> None:
        """A job has its result; ``reason`` is empty for success."""
        self._durations.labels(*self._labels(runner), MODE).observe(duration_s)
        if reason:
            self._failed.labels(runner.short_token, runner.name, reason, MODE).inc()
            self._processing.labels("job_failure", *self._labels(runner)).inc()

    def job_cost(self, runner: RunnerConfig, costs: Costs) -> None:
        """What a job that has its result cost."""
        labels = (runner.short_token, self._system_id)
        for stage in costs.stages:
            self._stage_costs.labels(*labels, stage.name).observe(stage.duration_s)
        if costs.max_rss_bytes is not None:
            self._memory.labels(*labels).observe(costs.max_rss_bytes)
        for mode, seconds in (("user", costs.cpu_user_s), ("system", costs.cpu_system_s)):
            if seconds is not None:
                self._cpu.labels(*labels, mode).inc(seconds)
        for direction, count in (("up", costs.up_bytes), ("down", costs.down_bytes)):
            self._moved.labels(*labels, direction).inc(count or 0)
        for result, count in (("hit", costs.cache_hits), ("miss", costs.cache_misses)):
            self._caches.labels(*labels, result).inc(count or 0)

    def requested(self, endpoint: str, method: str, status: int, duration_s: float, runner: str) -> None:
        """An API call was answered."""
        labels = (runner, self._system_id, endpoint)
        self._statuses.labels(*labels, str(status), method.lower()).inc()
        self._request_times.labels(*labels, f"{status // 100}xx" if status > 0 else "-1", method.lower()).observe(duration_s)

    def attempted(self, path: str, method: str) -> None:
        """One request of an API call was sent."""
        shown = "/".join("{id}" if part.isdigit() else part for part in path.split("/"))
        self._retries.labels(shown, method.lower()).inc()

    def logged(self, level: str) -> None:
        """A record went into the log."""
        if level in ("error", "warning"):
            self._errors.labels(level).inc()

    def configuration(self, what: str) -> None:
        """``loaded``, ``loading_error``, ``saved`` or ``saving_error``."""
        self._config[what].inc()

    def slot(self, operation: str, count: int = 1) -> None:
        """Slots were ``started`` or ``stopped``."""
        self._slots.labels(operation).inc(count)


class RequestMetrics:
    """Counts the API calls of one runner."""

    def __init__(self, metrics: Metrics, runner: RunnerConfig) -> None:
        self._metrics = metrics
        self._runner = runner.short_token

    def requested(self, endpoint: str, method: str, status: int, duration_s: float) -> None:
        """A call was answered; one that could not even be made does not count."""
        if status != NO_CLIENT:
            self._metrics.requested(endpoint, method, status, duration_s, self._runner)

    def attempted(self, path: str, method: str) -> None:
        """One request of a call was sent."""
        self._metrics.attempted(path, method)


class _State:
    """Families that are read, not counted."""

    def __init__(self, system_id: str, snapshot: Callable[[], Snapshot]) -> None:
        self._system_id = system_id
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Called at every scrape."""
        now = self._snapshot()
        yield self._gauge("concurrent", "Setting of concurrent", now.concurrent)
        yield self._gauge("worker_slots_number", "Slots", now.concurrent)
        yield self._labelled(
            "limit", "Setting of limit", RUNNER, [(self._runner(runner), runner.limit) for runner in now.runners]
        )
        yield self._jobs(now)
        yield from self._requests(now)
        yield self._labelled("process_state_info", "State of the process", ("state",), [((now.state,), 1)])
        facts = (NAME, VERSION, REVISION, "main", platform.python_version(), "now", os_name(), architecture())
        names = ("name", "version", "revision", "branch", "python_version", "built_at", "os", "architecture")
        yield self._labelled("version_info", "Version", names, [(facts, 1)])
        own = GaugeMetricFamily("pyrunner_unreported_jobs", "Jobs whose result no server has taken yet")
        own.add_metric((), now.unreported)
        yield own

    def _jobs(self, now: Snapshot) -> Metric:
        counts: dict[tuple[str, ...], int] = {(*self._runner(runner), "idle", "idle", "idle"): 0 for runner in now.runners}
        for job in now.jobs:
            key = (*self._runner(job.runner), job.state, job.stage, "prepare")
            counts[key] = counts.get(key, 0) + 1
        names = (*RUNNER, "state", "stage", "executor_stage")
        return self._labelled("jobs", "Running jobs", names, list(counts.items()))

    def _requests(self, now: Snapshot) -> Iterator[Metric]:
        tokens = {runner.token: runner for runner in now.runners if runner.token in now.requests}
        rows = [((runner.short_token, self._system_id), now.requests[token], runner) for token, runner in tokens.items()]
        yield self._labelled("request_concurrency", "Requests in flight", TOKEN, [(key, row[0]) for key, row, _ in rows])
        yield self._labelled(
            "request_concurrency_hard_limit",
            "Setting of request_concurrency",
            TOKEN,
            [(key, runner.request_concurrency) for key, _, runner in rows],
        )
        for name in ("adaptive", "used"):
            text = "Limit that follows how requests end"
            yield self._labelled(f"request_concurrency_{name}_limit", text, TOKEN, [(key, row[2]) for key, row, _ in rows])
        exceeded = Metric("gitlab_runner_request_concurrency_exceeded", "Requests that had no room", "counter")
        for key, row, _ in rows:
            exceeded.add_sample("gitlab_runner_request_concurrency_exceeded_total", dict(zip(TOKEN, key, strict=True)), row[1])
        yield exceeded

    def _runner(self, runner: RunnerConfig) -> tuple[str, str, str]:
        return runner.short_token, runner.name, self._system_id

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"gitlab_runner_{name}", text)
        family.add_metric((), value)
        return family

    def _labelled(self, name: str, text: str, labels: tuple[str, ...], rows: list[tuple[tuple[str, ...], float]]) -> Metric:
        family = GaugeMetricFamily(f"gitlab_runner_{name}", text, labels=labels)
        for values, value in rows:
            family.add_metric(values, value)
        return family
