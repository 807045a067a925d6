"""What a cluster costs an hour now, by its metrics: the products that a window integrates, at single moments."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from msgspec import structs

from metroculus.cost_model.live import LivePoint, rows_of, summed
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.chunk import ALLOCATED, CLUSTER_LABEL, FROM_THE_COST_EXPORTER, Chunk, open_parts
from metroculus.sources.thanos.client import Labels, Querier
from metroculus.sources.thanos.costs import (
    EGRESS,
    EGRESS_FLAGS,
    GIB,
    MANAGEMENT,
    REACHES,
    UNMOUNTED,
    capacity_of,
    claimed_by,
    nodes_without_total,
    reach_of,
    volume_prices,
    volumes_without_price,
    volumes_without_size,
)
from tools.deadline import Deadline
from tools.window import DAY, HOUR, MINUTE

LEARNED_FROM_SECONDS = 900
"""How often exporters write is measured over so much time."""
LEARNED_FOR_SECONDS = 300
"""A metric that was never there before is seen within so much time."""
MIN_RATE_SECONDS = 300
SCRAPES_OF_A_RATE = 4
"""A counter's rate is taken over so many scrapes, and over five minutes at least: some counters move once a minute."""

_COMPUTE = {
    "cpu": ("cores", ALLOCATED, "node_cpu_hourly_cost", ""),
    "ram": ("ram_gib", "container_memory_allocation_bytes", "node_ram_hourly_cost", f" / {GIB}"),
    "gpu": ("gpus", "container_gpu_allocation", "node_gpu_hourly_cost", ""),
}
"""By component: the amount that is allocated, its metric, its price, and what makes it the amount's unit."""
_CAPACITY = {
    "cores": ("cpu", "core", "kube_node_status_capacity_cpu_cores", ""),
    "ram_gib": ("memory", "byte", "kube_node_status_capacity_memory_bytes", f" / {GIB}"),
    "gpus": ("nvidia_com_gpu", "integer", "node_gpu_count", ""),
}
_VOLUMES, _VOLUME_PRICE = "kube_persistentvolume_capacity_bytes", "pv_hourly_cost"
_NODES = "node_total_hourly_cost"
_BALANCERS = "kubecost_load_balancer_cost"
_WHO = ("namespace", "pod", "container")
SMALLEST_REST = 1e-9
"""What is less is rounding."""

Values = Mapping[str, Mapping[int, Sequence[tuple[Labels, float]]]]
"""By name of what was asked and by moment: labels and values."""


class LiveReader:
    """Reads the metrics of one account; remembers for some minutes how they are written."""

    def __init__(self, thanos: Querier, account: str) -> None:
        self._thanos = thanos
        self._account = account
        self._learned: list[Chunk] = []
        self._learned_at = 0
        self._names: frozenset[str] = frozenset()
        """Of an account of several clusters, those that were heard of in the last day."""

    async def read(self, start: int, end: int, deadline: Deadline) -> list[tuple[LivePoint, ...]]:
        """Each whole minute of ``[start, end]`` at which an exporter was alive, in order; a point a cluster.

        Raises:
            SourceError
        """
        clusters = await self._clusters(start, end, deadline)
        by_minute: dict[int, dict[str, LivePoint]] = defaultdict(dict)
        for one in clusters:
            for point in await _Moments(replace(one, deadline=deadline, warnings=[]), start, end).read():
                by_minute[point.at][one.cluster] = point
        return [self._all_of(points) for _, points in sorted(by_minute.items())]

    def _all_of(self, points: Mapping[str, LivePoint]) -> tuple[LivePoint, ...]:
        """The clusters of a moment; one that is not heard of makes the others partial."""
        silent = sorted(self._names - points.keys())
        if not silent:
            return tuple(points.values())
        note = f"nothing is heard of {', '.join(silent)}, which wrote metrics in the last day"
        return tuple(structs.replace(one, notes=(*one.notes, note), partial=True) for one in points.values())

    async def _clusters(self, start: int, now: int, deadline: Deadline) -> list[Chunk]:
        """The account's clusters, each with what is known of how its metrics are written."""
        if self._learned and 0 <= now - self._learned_at < LEARNED_FOR_SECONDS:
            return self._learned
        self._learned = []
        for since in dict.fromkeys((now - LEARNED_FROM_SECONDS, min(start, now - LEARNED_FROM_SECONDS))):
            if not await self._is_heard(since, now, deadline):
                continue
            self._learned = await self._learn(since, now, deadline)
            if self._learned:
                self._learned_at = now
                break
        return self._learned

    async def _is_heard(self, since: int, now: int, deadline: Deadline) -> bool:
        """Whether there is any heartbeat: of a cluster that writes no metrics nothing else is asked."""
        tenant = self._thanos.tenant(self._account)
        beats = " or ".join(
            f"count by ({tenant.by()}) (last_over_time({promql.selector(name, tenant)}[{now - since}s]))"
            for name in promql.HEARTBEATS
        )
        found, _ = await self._thanos.query(tenant, beats, now, deadline)
        return bool(found)

    async def _learn(self, since: int, now: int, deadline: Deadline) -> list[Chunk]:
        tenant = self._thanos.tenant(self._account)
        parts = await open_parts(self._thanos, tenant, since, now, deadline)
        newest = {one.cluster: one for one in sorted(parts, key=lambda part: part.start)}
        learned = [_steady(one) for one in newest.values() if one.beats]
        if len(learned) == 1 and not learned[0].cluster:
            names = await learned[0].cluster_names()
            if len(names) == 1:  # another one that appears is not added to it before it is known
                mine = structs.replace(learned[0].tenant, cluster_label=CLUSTER_LABEL, clusters=(names[0],))
                learned = [replace(learned[0], tenant=mine, cluster=names[0])]
        self._names = frozenset()
        if learned and self._thanos.clusters.all and self._thanos.selected is None:
            self._names = frozenset(await self._heard_in_a_day(learned, now, deadline))
        return [one for one in learned if min(one.intervals[name] for name in one.beats) <= (now - since) / 2]

    async def _heard_in_a_day(self, learned: Sequence[Chunk], now: int, deadline: Deadline) -> list[str]:
        tenant = self._thanos.tenant(self._account)
        beats = sorted({name for one in learned for name in one.beats})
        asked = " or ".join(
            f"count by ({tenant.by(CLUSTER_LABEL)}) (last_over_time({promql.selector(name, tenant)}[{DAY}s]))"
            for name in beats
        )
        found, _ = await self._thanos.query(tenant, asked, now, deadline)
        return [labels.get(CLUSTER_LABEL, "") for labels, _ in found]


def _steady(chunk: Chunk) -> Chunk:
    """With look-backs of what others write that are no longer than those can be: after an outage a sample is there."""
    slowest = max(LEARNED_FROM_SECONDS / 3, *(chunk.intervals[name] for name in chunk.beats))
    others = {
        name: min(interval, slowest) for name, interval in chunk.intervals.items() if name not in FROM_THE_COST_EXPORTER
    }
    return replace(chunk, intervals=chunk.intervals | others)


class _Moments:
    """One cluster at the minutes of a stretch."""

    def __init__(self, chunk: Chunk, start: int, end: int) -> None:
        self._chunk = chunk
        self._tenant = chunk.tenant
        self._there = chunk.intervals
        self._start = start
        self._end = end
        self._warned = False

    async def read(self) -> list[LivePoint]:
        values: dict[str, Mapping[int, Sequence[tuple[Labels, float]]]] = {}
        # One after the other: rates leave the querier's places to those who wait for an answer.
        for asked in (self._costs(), self._amounts(), self._usage(), self._network()):
            values |= await self._ask(asked)
        return [self._point(at, values) for at in sorted(values.get("alive", {}))]

    async def _ask(self, queries: Mapping[str, str]) -> Values:
        """Several range queries as one."""
        if not queries:
            return {}
        chunk, query = self._chunk, " or ".join(promql.named(name, one) for name, one in queries.items())
        series, warnings = await chunk.thanos.query_range(
            self._tenant, query, self._start, self._end, MINUTE, chunk.deadline, chunk.resolution
        )
        self._warned = self._warned or bool(warnings)
        chunk.warnings += warnings
        found: dict[str, dict[int, list[tuple[Labels, float]]]] = defaultdict(lambda: defaultdict(list))
        for one in series:
            for at, value in one.values:
                found[one.labels.get("metric", "")][int(at)].append((one.labels, value))
        return found

    def _costs(self) -> dict[str, str]:
        """That the exporter is alive, and money an hour."""
        chunk, tenant = self._chunk, self._tenant
        beats = " or ".join(f"({chunk.now(name)})" for name in chunk.beats)
        if ALLOCATED in self._there:  # nodes alone would look idle
            beats = f"({beats}) and on ({tenant.by()}) ({chunk.now(ALLOCATED)})"
        asked = {"alive": f"count by ({tenant.by()}) ({beats})"}
        for name, (_, metric, price, unit) in _COMPUTE.items():
            if {metric, price} <= self._there.keys():
                amounts = f"({chunk.now(metric, *_WHO, 'node')}{unit})"
                prices = chunk.price(price, "node")
                asked[name] = promql.total(promql.priced(amounts, prices, tenant, "node"), tenant, "namespace")
                asked[f"unpriced:{name}"] = promql.total(promql.unpriced(amounts, prices, tenant, "node"), tenant)
        if _NODES in self._there:
            asked["nodes"] = promql.total(chunk.price(_NODES, "node"), tenant)
        for name, lacking in (
            ("nodes:untold", nodes_without_total(chunk)),
            ("pv:unsized", volumes_without_size(chunk)),
        ):
            if lacking is not None:
                asked[name] = lacking
        if MANAGEMENT in self._there:
            asked["management"] = promql.total(chunk.now(MANAGEMENT), tenant)
        if _BALANCERS in self._there:
            balancers = chunk.now(_BALANCERS, "namespace", "service_name", "ingress_ip")
            asked["load_balancer"] = promql.total(balancers, tenant, "namespace")
        if {_VOLUMES, _VOLUME_PRICE} <= self._there.keys():
            sizes, prices = self._sizes(), volume_prices(chunk)
            rate = promql.priced(sizes, prices, tenant, "persistentvolume")
            asked |= {"pv": self._claimed(rate), "pv:all": promql.total(rate, tenant)}
            asked["unpriced:pv"] = volumes_without_price(chunk)
        return asked

    def _sizes(self) -> str:
        return f"({self._chunk.now(_VOLUMES, 'persistentvolume')} / {GIB})"

    def _claimed(self, of_volumes: str) -> str:
        """What is of volumes, by the namespace that claims them."""
        return promql.total(claimed_by(self._chunk, of_volumes), self._tenant, "namespace")

    def _amounts(self) -> dict[str, str]:
        """What is allocated, and what the nodes have."""
        chunk, tenant = self._chunk, self._tenant
        asked = {
            amount: promql.total(f"({chunk.now(metric, *_WHO, 'node')}{unit})", tenant, "namespace")
            for amount, metric, _, unit in _COMPUTE.values()
            if metric in self._there
        }
        if _VOLUMES in self._there:
            asked |= {"pv_gib": self._claimed(self._sizes()), "pv_gib:all": promql.total(self._sizes(), tenant)}
        for amount, (resource, unit, older, factor) in _CAPACITY.items():
            capacity = capacity_of(chunk, resource, unit, older)
            if capacity is not None:
                asked[f"capacity:{amount}"] = promql.total(f"(({capacity}){factor})", tenant)
        return asked

    def _usage(self) -> dict[str, str]:
        """Requests of what is there, and usage."""
        chunk, tenant = self._chunk, self._tenant
        asked = {}
        for name, resource, older in (
            ("cpu_request", "cpu", "kube_pod_container_resource_requests_cpu_cores"),
            ("ram_request", "memory", "kube_pod_container_resource_requests_memory_bytes"),
        ):
            newer = "kube_pod_container_resource_requests"
            gauges = [f"({chunk.now(newer, *_WHO, resource=resource)})"] if newer in self._there else []
            gauges += [f"({chunk.now(older, *_WHO)})"] if older in self._there else []
            if gauges and ALLOCATED in self._there:  # requests outlive the pod that made them
                alive = f"({' or '.join(gauges)}) and on ({tenant.by(*_WHO)}) ({chunk.now(ALLOCATED, *_WHO)})"
                asked[name] = promql.total(alive, tenant, "namespace")
        memory = "container_memory_working_set_bytes"
        if memory in self._there:
            asked["ram_usage"] = promql.total(chunk.now(memory, *_WHO, container="!"), tenant, "namespace")
            cpu = "container_cpu_usage_seconds_total"
            asked["cpu_usage"] = self._rate(cpu, memory, "namespace", container="!")
            asked["cpu_usage:then"] = self._then(cpu, memory)
        return asked

    def _rate_seconds(self, like: str) -> int:
        """Time over which the rate of a counter is taken that is scraped as often as another metric."""
        return max(MIN_RATE_SECONDS, math.ceil(SCRAPES_OF_A_RATE * self._there[like]))

    def _then(self, counter: str, like: str) -> str:
        """Whether a counter was there at the beginning of the time that its rate is taken over."""
        lookback = promql.lookback(self._there[like])
        before = f"{promql.selector(counter, self._tenant)}{lookback} offset {self._rate_seconds(like)}s"
        return f"count by ({self._tenant.by()}) (last_over_time({before}))"

    def _rate(self, counter: str, like: str, *labels: str, **matchers: str) -> str:
        """A counter's growth a second; it is scraped as often as another metric."""
        seconds = self._rate_seconds(like)
        chunk = self._chunk
        grown = promql.increase(counter, self._tenant, labels, seconds, chunk.thanos.replicas, chunk.own, **matchers)
        return f"({grown}) / {seconds}"

    def _network(self) -> dict[str, str]:
        """Bytes a second by where they go, and what a GiB costs there."""
        if EGRESS not in self._there:
            return {}
        asked = {
            "sent": self._rate(EGRESS, EGRESS, "namespace", *EGRESS_FLAGS),
            "network:then": self._then(EGRESS, EGRESS),
            "network:there": f"count by ({self._tenant.by()}) ({self._chunk.now(EGRESS)})",
        }
        interval = max(self._there[name] for name in self._chunk.beats)
        for reach in REACHES.values():
            asked[f"price:{reach}"] = promql.current(
                f"kubecost_network_{reach}_egress_cost", self._tenant, (), interval
            )
        return asked

    def _point(self, at: int, values: Values) -> LivePoint:
        return _Point(at, values, self._there, self._warned, self._chunk.warnings).made()


class _Point:
    """Puts one moment together, and says what of it is not known."""

    def __init__(
        self, at: int, values: Values, there: Mapping[str, float], warned: bool, warnings: Sequence[str]
    ) -> None:
        self._at = at
        self._values = values
        self._there = there
        self._warned = warned
        self._notes = list(warnings)
        self._missing = set[str]()
        self._not_covered = set[str]()

    def made(self) -> LivePoint:
        measures = {name: self._by_namespace(name) for name in ("cpu", "ram", "gpu", "load_balancer")}
        measures |= {name: self._by_namespace(name) for name in ("cores", "ram_gib", "gpus")}
        measures |= {name: self._usage(name) for name in ("cpu_request", "cpu_usage", "ram_request", "ram_usage")}
        measures |= {name: self._volumes(name) for name in ("pv", "pv_gib")}
        measures["network"], measures["network_sent"] = self._network()
        idle = self._idle(measures)
        self._judge_compute()
        self._judge_volumes()
        rows = rows_of(measures)
        return LivePoint(
            at=self._at,
            sums=summed(rows),
            namespaces=rows,
            idle=idle,
            management=self._one("management"),
            capacity={
                name: amount for name in _CAPACITY if (amount := self._one(f"capacity:{name}", None)) is not None
            },
            missing=tuple(sorted(self._missing)),
            not_covered=tuple(sorted(self._not_covered)),
            notes=tuple(dict.fromkeys(self._notes)),
            partial=self._warned,
        )

    def _lacks(self, note: str, *components: str) -> None:
        self._missing.update(components)
        self._notes.append(note)

    def _at_this_moment(self, name: str) -> Sequence[tuple[Labels, float]]:
        return self._values.get(name, {}).get(self._at, ())

    def _one(self, name: str, default: float | None = 0.0) -> float | None:
        """The one value of a sum; without a series it is the default."""
        return next((value for _, value in self._at_this_moment(name)), default)

    def _by_namespace(self, name: str) -> dict[str, float]:
        """Values by namespace; one below zero is counted out and told of."""
        found = {}
        for labels, value in self._at_this_moment(name):
            if value < 0:
                self._lacks(f"{name}: a figure below zero is not counted", name)
                continue
            found[labels.get("namespace", "")] = value
        return found

    def _usage(self, name: str) -> dict[str, float]:
        found = self._by_namespace(name)
        if not found or (name == "cpu_usage" and not self._at_this_moment("cpu_usage:then")):
            self._not_covered.add(name)
            return {}
        return found

    def _volumes(self, name: str) -> dict[str, float]:
        """What is of claimed volumes by namespace, and the rest of all of them as ``__unmounted__``."""
        found = self._by_namespace(name)
        rest = (self._one(f"{name}:all") or 0.0) - math.fsum(found.values())
        if rest > SMALLEST_REST * math.fsum(found.values()) + SMALLEST_REST:
            found[UNMOUNTED[0]] = found.get(UNMOUNTED[0], 0.0) + rest
        return found

    def _network(self) -> tuple[dict[str, float], dict[str, float]]:
        """Money an hour and bytes a second, by namespace."""
        costs: dict[str, float] = defaultdict(float)
        sent: dict[str, float] = defaultdict(float)
        if EGRESS not in self._there:
            self._not_covered.update(("network", "network_sent"))
            return costs, sent
        if not self._at_this_moment("network:there"):
            self._lacks("network: nobody reports what is sent now", "network")
            self._not_covered.add("network_sent")
        elif not self._at_this_moment("network:then"):
            self._lacks("network: what is sent has been counted for less time than a rate takes", "network")
        for labels, bytes_a_second in self._at_this_moment("sent"):
            namespace, reach = labels.get("namespace", ""), reach_of(labels)
            sent[namespace] += bytes_a_second
            price = self._one(f"price:{reach}", None) if reach is not None else 0.0
            if price is None and bytes_a_second:
                self._lacks(f"network: what is sent to the {reach} has no price", "network")
            costs[namespace] += bytes_a_second * HOUR / GIB * (price or 0.0)
        return costs, sent

    def _idle(self, measures: Mapping[str, Mapping[str, float]]) -> float | None:
        whole = self._one("nodes", None)
        if whole is None or ALLOCATED not in self._there:
            self._lacks("idle: what the nodes cost, or what is allocated on them, is not known", "idle")
            return None
        if self._one("nodes:untold"):
            self._lacks("idle: some nodes have no total price, and what is idle on them is not counted", "idle")
        return whole - math.fsum(usd for name in _COMPUTE for usd in measures[name].values())

    def _judge_compute(self) -> None:
        for name, (amount, metric, price, _) in _COMPUTE.items():
            if name == "gpu" and metric not in self._there:
                continue
            if metric not in self._there or not (name == "gpu" or self._at_this_moment(amount)):
                self._lacks(f"{name}: nobody writes what is allocated", name)
            elif price not in self._there or self._one(f"unpriced:{name}"):
                self._lacks(f"{name}: some of it runs on nodes whose price is not known, and is not counted", name)

    def _judge_volumes(self) -> None:
        if _VOLUMES not in self._there:
            if _VOLUME_PRICE in self._there:
                self._lacks("pv: volumes are there, and their size is not known", "pv")
        elif self._one("pv:unsized"):
            self._lacks("pv: the sizes of some volumes are not known now, and they are not counted", "pv")
        elif _VOLUME_PRICE not in self._there or self._one("unpriced:pv"):
            self._lacks("pv: some volumes have no price, and are not counted", "pv")
