"""What the disk budget shows in ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from runner.disk.budget import DiskBudget


class DiskMetrics:
    """A collector: it reads what the last round found, and touches no disk."""

    def __init__(self, disk: DiskBudget) -> None:
        self._disk = disk

    def collect(self) -> Iterator[Metric]:
        """Called at every scrape."""
        disk = self._disk
        low = GaugeMetricFamily("pyrunner_disk_low", "Whether no jobs are requested since a disk is full")
        low.add_metric((), disk.is_low)
        free = GaugeMetricFamily("pyrunner_disk_free_bytes", "Free space where jobs write", labels=("path",))
        for space in disk.spaces:
            free.add_metric((space.path,), space.free_bytes)
        used = GaugeMetricFamily("pyrunner_disk_used_bytes", "What is kept beside jobs", labels=("kind",))
        bound = GaugeMetricFamily("pyrunner_disk_budget_bytes", "What may be kept beside jobs", labels=("kind",))
        removed = CounterMetricFamily("pyrunner_disk_removed", "Things removed to make room", labels=("kind",))
        for state in disk.kinds:
            budget = disk.budget(state)
            if budget is not None:
                used.add_metric((state.kind.name,), state.size_bytes)
                bound.add_metric((state.kind.name,), budget)
                removed.add_metric((state.kind.name,), state.removed)
        yield from (low, free, used, bound, removed)
