"""One stretch of metrics being read: the intervals of its series, its coverage, its integrals."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from metroculus.cost_model.reading import SourceReport, Status
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.client import RESOLUTIONS, Labels, Querier, Samples
from metroculus.sources.thanos.promql import Tenant
from tools.deadline import Deadline
from tools.window import Window

GAUGES = (
    *promql.HEARTBEATS,
    "container_cpu_allocation",
    "container_memory_allocation_bytes",
    "container_gpu_allocation",
    "node_cpu_hourly_cost",
    "node_ram_hourly_cost",
    "node_gpu_hourly_cost",
    "node_gpu_count",
    "kube_node_status_capacity_cpu_cores",
    "kube_node_status_capacity_memory_bytes",
    "kube_persistentvolume_capacity_bytes",
    "pv_hourly_cost",
    "kubecost_load_balancer_cost",
    "kube_pod_container_resource_requests",
    "container_memory_working_set_bytes",
)


SeriesCoverage = tuple[float, bool, list[str]]
"""Seconds of a stretch in which the exporter was alive, whether that is enough, and what the querier warned of."""


@dataclass
class Chunk:
    """A part of one UTC day, for one tenant: its queries share a resolution and collect warnings."""

    thanos: Querier
    tenant: Tenant
    deadline: Deadline
    start: int
    end: int
    resolution: str = RESOLUTIONS[0]
    intervals: dict[str, float] = field(default_factory=dict)
    """Seconds between samples, by metric; a metric that is not there is not in it."""
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> int:
        return self.end - self.start

    async def ask(self, query: str) -> Samples:
        """An instant query a millisecond before the end.

        Raises:
            SourceError
        """
        found, warnings = await self.thanos.query(self.tenant, query, self.end - 0.001, self.deadline, self.resolution)
        self.warnings += warnings
        return found

    def now(self, metric: str, *identity: str, **labels: str) -> str:
        """A metric's current value, one a thing."""
        return promql.current(metric, self.tenant, identity, self.intervals[metric], **labels)

    def step(self, *metrics: str) -> int:
        """The finer step of the metrics that are there."""
        return min(promql.step_for(self.intervals[name]) for name in metrics if name in self.intervals)

    def integral(self, rate: str, *metrics: str) -> str:
        """A rate made of ``metrics``, over the stretch."""
        return promql.integral(rate, self.seconds, self.step(*metrics))

    async def seen(self, metric: str, *identity: str) -> list[Labels]:
        """The label sets of a metric that was there at any time of the stretch."""
        there = f"max_over_time({promql.selector(metric, self.tenant)}[{self.seconds}s])"
        return [labels for labels, _ in await self.ask(f"max by ({self.tenant.by(*identity)}) ({there})")]

    async def read_intervals(self) -> None:
        """Find out how often each series was written, at the finest resolution that has any."""
        by_name: dict[str, float] = {}
        for resolution in RESOLUTIONS:
            self.resolution = resolution
            parts = [
                promql.named(f"{what}:{name}", count(name, self.tenant, self.seconds))
                for what, count in (("hourly", promql.samples_an_hour), ("in_all", promql.samples))
                for name in GAUGES
            ]
            counts = await asyncio.gather(*(self.ask(" or ".join(parts[i::4])) for i in range(4)))
            by_name = {labels["metric"]: value for found in counts for labels, value in found}
            if by_name:
                break
        for name in GAUGES:
            in_all = by_name.get(f"in_all:{name}")
            if in_all:
                hourly = by_name.get(f"hourly:{name}", 0.0)
                self.intervals[name] = promql.interval_of(hourly, in_all, self.seconds)

    async def coverage(self) -> tuple[float, bool]:
        """Share of the stretch in which the exporter was alive, and whether that is enough."""
        best, enough = 0.0, False
        for name in promql.HEARTBEATS:
            if name not in self.intervals:
                continue
            step = promql.step_for(self.intervals[name])
            query = promql.seen_steps(name, self.tenant, self.intervals[name], self.seconds)
            for _, count in await self.ask(query):
                share = min(1.0, count * step / self.seconds)
                if share >= best:
                    best, enough = share, share >= promql.coverage_threshold(self.seconds, step)
        return best, enough


async def open_chunk(thanos: Querier, tenant: Tenant, start: int, end: int, deadline: Deadline) -> Chunk:
    """A stretch that is ready to be read.

    Raises:
        SourceError
    """
    chunk = Chunk(thanos, tenant, deadline, start, end)
    await chunk.read_intervals()
    return chunk


def judged(window: Window, parts: Sequence[SeriesCoverage], fetched_at: int, partial: bool = False) -> SourceReport:
    """What became of asking for a window, out of what each stretch said."""
    seen = math.fsum(seconds for seconds, _, _ in parts)
    warnings = tuple(dict.fromkeys(text for _, _, texts in parts for text in texts))
    status: Status = "ok"
    if seen == 0:
        status = "ok" if window.still_running else "no_data"
    elif partial or warnings or not all(enough for _, enough, _ in parts):
        status = "partial"
    share = min(1.0, seen / window.seconds)
    return SourceReport(name="thanos", status=status, fetched_at=fetched_at, coverage=share, warnings=warnings)
