"""One stretch of metrics being read: how often its exporters wrote, its coverage, its integrals.

How often the cost exporter wrote is measured from the stamps of a series that is always there, never guessed from how
many samples something has: what lives five minutes has few, and costs five minutes.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

import msgspec

from metroculus.cost_model.reading import SourceReport, Status
from metroculus.sources.clusters import Clusters
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.client import RESOLUTIONS, Labels, Querier, Samples
from metroculus.sources.thanos.promql import Tenant
from tools.deadline import Deadline
from tools.window import HOUR, MINUTE, Window, split

ALLOCATED = "container_cpu_allocation"
"""The exporter writes it for every container that there is: where it is not, containers are not known."""

FROM_THE_COST_EXPORTER = (
    *promql.HEARTBEATS,
    ALLOCATED,
    "container_memory_allocation_bytes",
    "container_gpu_allocation",
    "node_cpu_hourly_cost",
    "node_ram_hourly_cost",
    "node_gpu_hourly_cost",
    "node_gpu_count",
    "pv_hourly_cost",
    "kubecost_load_balancer_cost",
)
FROM_OTHERS = (
    "kube_node_status_capacity_cpu_cores",
    "kube_node_status_capacity_memory_bytes",
    "kube_node_status_capacity",
    "kube_persistentvolume_capacity_bytes",
    "kube_pod_container_resource_requests",
    "kube_pod_container_resource_requests_cpu_cores",
    "kube_pod_container_resource_requests_memory_bytes",
    "container_memory_working_set_bytes",
    "kubecost_pod_network_egress_bytes_total",
)
GAUGES = (*FROM_THE_COST_EXPORTER, *FROM_OTHERS)
MAY_BE_OVERWRITTEN = (
    ALLOCATED,
    "kube_pod_container_resource_requests",
    "kube_pod_container_resource_requests_cpu_cores",
    "kube_persistentvolumeclaim_info",
    "kubecost_load_balancer_cost",
)

CLUSTER_LABEL = "cluster_id"
"""What Kubecost calls it, where several clusters write under one tenant."""

MOST_SERIES = 32
"""A heartbeat with more series than this is measured by its three longest ones."""
MOST_POINTS = 2_000_000
"""Of one query: series times steps. Prometheus refuses 50 million by default."""
SAME_PACE = 1.2
"""Spacings further apart than by this factor are two."""

SeriesCoverage = tuple[float, bool, list[str]]
"""Seconds of a stretch in which the exporter was alive, whether that is enough, and what the querier warned of."""
Pace = tuple[int, float]
"""From this stamp on, seconds between samples."""


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
    series: dict[str, int] = field(default_factory=dict)
    """How many series each metric has."""
    cluster: str = ""
    """Whose series are read, where several clusters under one tenant are told apart."""
    share: float = 1.0
    """Of the time that it covers: where several clusters are read, each counts for its part."""
    overwritten: bool = False
    """Whether a scrape without ``honor_labels`` has renamed the labels that say whose a series is."""
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

    @property
    def looked_back(self) -> int:
        """Seconds before its end in which what is said of a row was last written: rows outlive their samples."""
        spacing = max(
            (self.intervals[name] for name in (ALLOCATED, *self.beats) if name in self.intervals), default=0.0
        )
        return self.seconds + math.ceil(2 * spacing)

    @property
    def beats(self) -> list[str]:
        """The heartbeats that are there."""
        return [name for name in promql.HEARTBEATS if name in self.intervals]

    def own(self, expression: str) -> str:
        """A vector with the labels that its exporter gave it."""
        return promql.own_labels(expression) if self.overwritten else expression

    def price(self, metric: str, *identity: str) -> str:
        """A price's current value, one a thing; one below zero is none."""
        return f"({self.now(metric, *identity)} >= 0)"

    def now(self, metric: str, *identity: str, **labels: str) -> str:
        """A metric's current value, one a thing."""
        return promql.current(metric, self.tenant, identity, self.intervals[metric], self.own, **labels)

    def step(self, *metrics: str) -> int:
        """The finer step of the metrics that are there."""
        return min(promql.step_for(self.intervals[name]) for name in metrics if name in self.intervals)

    def integral(self, rate: str, *metrics: str) -> str:
        """A rate made of ``metrics``, over the stretch."""
        return promql.integral(rate, self.seconds, self.step(*metrics))

    def increase(self, metric: str, *labels: str, **matchers: str) -> str:
        """What a counter grew by."""
        return promql.increase(metric, self.tenant, labels, self.seconds, self.thanos.replicas, self.own, **matchers)

    async def seen(self, metric: str, *identity: str, seconds: int = 0) -> list[Labels]:
        """The label sets of a metric that was there at any time of the stretch, or so many seconds before its end."""
        there = self.own(f"max_over_time({promql.selector(metric, self.tenant)}[{seconds or self.seconds}s])")
        return [labels for labels, _ in await self.ask(f"max by ({self.tenant.by(*identity)}) ({there})")]

    async def read_intervals(self) -> None:
        """Find out what is there, at the finest resolution that has any, and how often it was written."""
        found: dict[str, float] = {}
        for resolution in RESOLUTIONS:
            self.resolution = resolution
            parts = [
                promql.named(f"{what}:{name}", count(name, self.tenant, self.seconds))
                for what, count in (("series", promql.series_count), ("in_all", promql.samples))
                for name in GAUGES
            ]
            parts += [
                promql.named(f"overwritten:{name}", promql.series_count(name, self.tenant, self.seconds, exported=True))
                for name in MAY_BE_OVERWRITTEN
            ]
            parts += [
                promql.named(f"hourly:{name}", promql.samples_an_hour(name, self.tenant, self.seconds))
                for name in FROM_OTHERS
            ]
            counts = await asyncio.gather(*(self.ask(" or ".join(parts[i::4])) for i in range(4)))
            found = {labels["metric"]: value for one in counts for labels, value in one}
            if found:
                break
        self.overwritten = any(f"overwritten:{name}" in found for name in MAY_BE_OVERWRITTEN)
        for name in GAUGES:
            in_all = found.get(f"in_all:{name}")
            if in_all:
                self.series[name] = int(found.get(f"series:{name}", 1))
                interval = promql.interval_of(found.get(f"hourly:{name}", 0.0), in_all, self.seconds)
                # Counted over all who write it: the quickest must not hide a slower one.
                self.intervals[name] = max(interval, float(MINUTE)) if name in FROM_OTHERS else interval

    async def cluster_names(self) -> list[str]:
        """The clusters that the heartbeats of the stretch are of, as their label says; "" is one beside others."""
        by = self.tenant.by(CLUSTER_LABEL)
        asked = [
            f"count by ({by}) (count_over_time({promql.selector(name, self.tenant)}[{self.seconds}s]))"
            for name in self.beats
        ]
        found = await self.ask(" or ".join(asked)) if asked else []
        names = sorted({labels.get(CLUSTER_LABEL, "") for labels, _ in found})
        return [] if names == [""] else names

    async def paces(self) -> list[Pace]:
        """How often the cost exporter wrote, from which moment on; empty where nothing says so."""
        if not self.beats:
            return []
        name = min(self.beats, key=lambda one: self.series[one])
        selectors = [promql.selector(name, self.tenant)]
        if self.series[name] > MOST_SERIES:
            longest = f"topk(3, count_over_time({selectors[0]}[{self.seconds}s]))"
            selectors = [promql.selector_of(name, labels) for labels, _ in await self.ask(longest)]
        stamps = [
            found
            for one in selectors
            for found in await self.thanos.stamps(
                self.tenant, f"{one}[{self.seconds}s]", self.end - 0.001, self.deadline, self.resolution
            )
        ]
        return paces_of(stamps, self.start, self.end)

    def parts(self, paces: Sequence[Pace]) -> list[Chunk]:
        """The stretch cut where the pace changes and so that no query takes too many points, each with its pace."""
        edges = [self.start, *(stamp for stamp, _ in paces if self.start < stamp < self.end), self.end]
        cut = []
        for start, end in pairwise(edges):
            interval = next((pace for stamp, pace in reversed(paces) if stamp <= start), paces[0][1] if paces else 0.0)
            known = dict.fromkeys((name for name in FROM_THE_COST_EXPORTER if name in self.intervals), interval)
            intervals = self.intervals | (known if interval else {})
            largest = max((self.series.get(name, 1) for name in FROM_THE_COST_EXPORTER), default=1)
            steps = HOUR / min((promql.step_for(one) for one in intervals.values()), default=MINUTE)
            hours = max(1, int(MOST_POINTS / (largest * steps)))
            cut += [
                replace(self, start=a, end=b, intervals=intervals, warnings=[])
                for a, b in split(start, end, hours * HOUR)
            ]
        return cut

    async def coverage(self) -> tuple[float, bool]:
        """Share of the stretch in which the exporter was alive, and whether that is enough."""
        best, enough = 0.0, False
        for name in self.beats:
            step = promql.step_for(self.intervals[name])
            query = promql.seen_steps(self.now(name), self.seconds, step)
            for _, count in await self.ask(query):
                share = min(1.0, count * step / self.seconds)
                if share >= best:
                    best, enough = share, share >= promql.coverage_threshold(self.seconds, step)
        return best, enough

    async def covered(self) -> list[tuple[int, int]]:
        """The stretches in which nodes and containers were both written; of nodes alone where nobody writes containers.

        An exporter that lost its containers goes on with its nodes: all of their cost would look idle.
        """
        if not self.beats:
            return []
        step = self.step(*self.beats)
        alive = " or ".join(f"({self.now(name)})" for name in self.beats)
        if ALLOCATED in self.intervals:
            alive = f"({alive}) and on ({self.tenant.by()}) ({self.now(ALLOCATED)})"
        found, warnings = await self.thanos.query_range(
            self.tenant, f"count by ({self.tenant.by()}) ({alive})", self.start, self.end - 1, step, self.deadline,
            self.resolution,
        )  # fmt: skip
        self.warnings += warnings
        stretches: list[tuple[int, int]] = []
        stamps = {int(at) for one in found for at, _ in one.values if self.start <= at < self.end}
        for stamp in sorted(stamps):
            until = min(stamp + step, self.end)
            if stretches and stretches[-1][1] == stamp:
                stretches[-1] = (stretches[-1][0], until)
            else:
                stretches.append((stamp, until))
        return stretches


def paces_of(series: Sequence[Sequence[float]], start: int, end: int) -> list[Pace]:
    """Spacings of the samples of series that are always there, each with the moment from which on it holds.

    Args:
        series: stamps of each, rising.
    """
    spaced = sorted((a, b - a) for stamps in series for a, b in pairwise(stamps) if b > a)
    if not spaced:
        return []
    begun = [a for a, _ in spaced]
    paces: list[Pace] = []
    for hour, until in split(start, end, HOUR):
        inside = [gap for _, gap in spaced[bisect_left(begun, hour) : bisect_left(begun, until)]]
        if not inside:
            continue
        pace = float(median(inside))
        if paces and max(pace, paces[-1][1]) <= SAME_PACE * min(pace, paces[-1][1]):
            continue
        since = start if not paces else _change(spaced, begun, max(paces[-1][0], hour - HOUR), until, pace)
        paces.append((since, pace))
    return paces


def _change(spaced: Sequence[tuple[float, float]], begun: Sequence[float], start: int, end: int, pace: float) -> int:
    """The first moment from which on samples come at a pace, to the minute."""
    inside = spaced[bisect_left(begun, start) : bisect_left(begun, end)]
    for place, (stamp, _) in enumerate(inside):
        following = [gap for _, gap in inside[place : place + 3]]
        if all(max(gap, pace) <= SAME_PACE * min(gap, pace) for gap in following):
            return int(stamp) - int(stamp) % MINUTE
    return end - HOUR


async def open_chunk(thanos: Querier, tenant: Tenant, start: int, end: int, deadline: Deadline) -> Chunk:
    """A stretch of which it is known what is there.

    Raises:
        SourceError
    """
    chunk = Chunk(thanos, tenant, deadline, start, end)
    await chunk.read_intervals()
    return chunk


async def open_parts(thanos: Querier, tenant: Tenant, start: int, end: int, deadline: Deadline) -> list[Chunk]:
    """A stretch as parts that are ready to be read, each written at one pace, of one cluster.

    Raises:
        SourceError: SeveralClusters where the account does not say which of several it is.
    """
    whole = await open_chunk(thanos, tenant, start, end, deadline)
    chunks = [whole]
    if thanos.selected is None:
        chunks = [
            whole if wanted == tenant else replace(await open_chunk(thanos, wanted, start, end, deadline), cluster=name)
            for name, wanted in tenants_of(tenant, thanos.clusters, await whole.cluster_names())
        ]
    parts = []
    for chunk in chunks:
        found = chunk.parts(await chunk.paces())
        found[0].warnings += chunk.warnings
        parts += [replace(part, share=1 / len(chunks)) for part in found]
    return parts


def tenants_of(tenant: Tenant, clusters: Clusters, seen: Sequence[str]) -> list[tuple[str, Tenant]]:
    """Whose series to read, with the name of the cluster where it must be told.

    Args:
        seen: the clusters that series of the tenant are of.

    Raises:
        SeveralClusters
    """
    clusters.check(name or "(without a name)" for name in seen)
    if not seen or (len(seen) < 2 and (not clusters.named or seen[0] in clusters.named)):
        return [("", tenant)]
    if clusters.all:
        return [(name, msgspec.structs.replace(tenant, cluster_label=CLUSTER_LABEL, clusters=(name,))) for name in seen]
    # Where none of its own is seen nothing is: another cluster of the tenant does not take its place.
    mine = tuple(name for name in clusters.named if name in seen) or clusters.named
    return [("", msgspec.structs.replace(tenant, cluster_label=CLUSTER_LABEL, clusters=mine))]


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
