"""What a cluster cost by its metrics alone: allocations container by container with idle, and cluster management."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import msgspec
from msgspec import Struct

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.components import Amounts, Costs, Egress, Usage
from metroculus.cost_model.reading import AllocationReading, AllocationSet, ManagementReading
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.chunk import ALLOCATED, Chunk, SeriesCoverage, judged, open_parts
from metroculus.sources.thanos.client import Labels, Querier, Samples
from metroculus.sources.thanos.promql import Tenant
from tools.deadline import Deadline
from tools.window import HOUR, Window

GIB = 2**30
REACHES = {
    ("true", "", ""): "internet",
    ("false", "false", "false"): "region",
    ("false", "false", "true"): "zone",
}
MANAGEMENT = "kubecost_cluster_management_cost"
EGRESS = "kubecost_pod_network_egress_bytes_total"
EGRESS_FLAGS = ("internet", "same_zone", "same_region", "sameZone", "sameRegion")
CAPACITY = "kube_node_status_capacity"
"""As kube-state-metrics 2 writes it; version 1 had a metric for each resource."""
NO_METRICS_OF = ("shared", "external")
"""Components that no metric tells: they are not covered, which is not the same as 0."""
OF_NODES = ("cpu", "ram", "gpu")
SPLIT_SHARE = 0.01
"""What nodes cost by resource may differ from their total price by so much."""
LONG_ENOUGH_HOURS = 0.25
"""A container that ran for less may be gone before its usage was ever sampled twice."""


async def management_by_metrics(thanos: Querier, account: str, window: Window, deadline: Deadline) -> ManagementReading:
    """Cluster management by the integral of its rate; heartbeat and no such series is 0.

    Raises:
        SourceError
    """
    tenant = thanos.tenant(account)

    async def read(chunk: Chunk) -> tuple[float, SeriesCoverage]:
        share, enough = await chunk.coverage()
        usd = 0.0
        if MANAGEMENT in chunk.intervals:
            rate = promql.total(chunk.now(MANAGEMENT), chunk.tenant)
            usd = math.fsum(value for _, value in await chunk.ask(chunk.integral(rate, MANAGEMENT)))
        return usd, (share * chunk.seconds * chunk.share, enough, chunk.warnings)

    async def read_day(start: int, end: int) -> list[tuple[float, SeriesCoverage]]:
        return await asyncio.gather(*(read(one) for one in await open_parts(thanos, tenant, start, end, deadline)))

    days = await asyncio.gather(*(read_day(start, end) for start, end in window.days()))
    parts = [part for day in days for part in day]
    source = judged(window, [seen for _, seen in parts], thanos.now())
    known = source.status in ("ok", "partial")
    return ManagementReading(source=source, usd=math.fsum(usd for usd, _ in parts) if known else None)


async def allocation_by_metrics(
    thanos: Querier,
    account: str,
    window: Window,
    deadline: Deadline,
    labels: Sequence[str] = (),
    services: bool = False,
) -> AllocationReading:
    """Allocations of a window by container, one set a stretch of what was covered.

    Args:
        labels: pod labels that rows must carry, as stored (``label_team``).
        services: whether rows must say which services select their pods.

    Raises:
        SourceError
    """
    tenant = thanos.tenant(account)

    async def read_part(chunk: Chunk) -> list[_Read]:
        covered = await chunk.covered()
        enough = sum(b - a for a, b in covered) >= chunk.seconds * _threshold(chunk)
        readers = [_ChunkReader(replace(chunk, start=a, end=b, warnings=[]), labels, services) for a, b in covered]
        reads = await asyncio.gather(*(reader.read() for reader in readers))
        bare = _Read(start=chunk.start, end=chunk.end, enough=enough, warnings=tuple(chunk.warnings))
        return [bare, *reads]

    async def read_day(start: int, end: int) -> list[_Read]:
        parts = await open_parts(thanos, tenant, start, end, deadline)
        return [one for part in await asyncio.gather(*(read_part(chunk) for chunk in parts)) for one in part]

    days = await asyncio.gather(*(read_day(start, end) for start, end in window.days()))
    readings = [one for day in days for one in day]
    with_rows = [one for one in readings if one.allocations]
    never = set.intersection(*(set(one.not_covered) for one in with_rows)) if with_rows else set()
    sometimes = {name for one in with_rows for name in one.not_covered} - never
    absent = {name for one in readings for name in one.missing} | sometimes
    notes = [text for one in readings for text in one.warnings]
    notes += [f"{name}: not reported for all of the time" for name in sorted(sometimes)]
    source = judged(
        window,
        [(one.seen_seconds, one.enough, []) for one in readings],
        thanos.now(),
        partial=bool(notes or absent) or any(one.incomplete for one in readings),
    )
    if not with_rows:
        source = msgspec.structs.replace(source, status="no_data")
    return AllocationReading(
        source=msgspec.structs.replace(source, warnings=tuple(dict.fromkeys(notes))),
        sets=tuple(AllocationSet(one.start, one.end, one.allocations) for one in with_rows),
        missing=tuple(sorted(absent)),
        not_covered=tuple(sorted(never - absent)),
    )


def _threshold(chunk: Chunk) -> float:
    """Share of a part below which it is not covered."""
    return promql.coverage_threshold(chunk.seconds, chunk.step(*chunk.beats)) if chunk.beats else 1.0


class _Read(Struct, frozen=True, kw_only=True):
    """What one covered stretch said; without allocations, what is to be said of a part as a whole."""

    start: int
    end: int
    allocations: tuple[Allocation, ...] = ()
    enough: bool = True
    incomplete: bool = False
    missing: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    seen: float = 0.0
    """Of its time, what counts as covered."""

    @property
    def seen_seconds(self) -> float:
        return (self.end - self.start) * self.seen


Pod = tuple[str, str]
Where = tuple[str, str, str, str]
"""Namespace, pod, container, node; what is of a pod or a namespace as a whole has the rest empty."""
Who = tuple[str, str, str]
UNMOUNTED = ("__unmounted__", "__unmounted__")


def _two(labels: Labels, one: str, other: str) -> tuple[str, str]:
    return labels.get(one, ""), labels.get(other, "")


class _ChunkReader:
    """Reads one covered stretch: every figure by container or pod, joined to allocations."""

    def __init__(self, chunk: Chunk, labels: Sequence[str], services: bool) -> None:
        self.chunk = chunk
        self.tenant = chunk.tenant
        self.labels = labels
        self.services = services
        self.notes: list[str] = []
        self.incomplete = False

    async def read(self) -> _Read:
        start, end = self.chunk.start, self.chunk.end
        cpu, ram, gpu = await asyncio.gather(
            self._compute("cpu", ALLOCATED, "node_cpu_hourly_cost", ""),
            self._compute("ram", "container_memory_allocation_bytes", "node_ram_hourly_cost", f" / {GIB}"),
            self._compute("gpu", "container_gpu_allocation", "node_gpu_hourly_cost", ""),
        )
        usage, owners, labelled, served = await asyncio.gather(
            self._usage(),
            read_owners(self.chunk.ask, self.tenant, self.chunk.looked_back, self.chunk.own),
            self._labelled(),
            self._served(),
        )
        nodes, (volumes, gib_hours), (network, egress, network_state), balancers = await asyncio.gather(
            self._nodes(), self._volumes(), self._network(), self._balancers(usage.hours, served)
        )
        priced, missing = self._missing(nodes)
        places = _Places([*cpu.usd, *cpu.amounts, *ram.usd, *gpu.usd], usage.hours)
        rows, amounts = _Rows(places), _Rows(places)
        amounts.of_pods("pv", gib_hours)
        for component, of_containers in (("cpu", cpu), ("ram", ram), ("gpu", gpu)):
            rows.add(component, of_containers.usd)
            amounts.add(component, of_containers.amounts)
        for component, of_pods in (("pv", volumes), ("network", network), ("load_balancer", balancers)):
            rows.of_pods(component, of_pods)
        allocations = [
            Allocation(
                name="/".join(where[:3]).rstrip("/"),
                namespace=where[0],
                pod=where[1] if where[0] != UNMOUNTED[0] else "",
                container=where[2],
                node=where[3],
                cluster=self.chunk.cluster,
                controller=owners.get(where[:2], ("", ""))[1],
                controller_kind=owners.get(where[:2], ("", ""))[0],
                labels=labelled.get(where[:2], {}),
                services=served.get(where[:2], ()),
                start=start,
                end=end,
                costs=Costs(**costs),
                egress=_part_of(egress.get(where[:2], Egress()), places.share(where)),
                usage=usage.of(where, places),
                amounts=Amounts(**amounts.costs.get(where, {})),
                unknown=usage.unknown_of(where),
            )
            for where, costs in sorted(rows.costs.items())
        ]
        if nodes is not None and priced:
            used = Costs(*(math.fsum(one.usd.values()) for one in (cpu, ram, gpu)))
            idle = _idle(nodes, used)
            allocations.append(Allocation(name=IDLE, cluster=self.chunk.cluster, start=start, end=end, costs=idle))
        if network_state == "missing":
            missing = (*missing, "network")
        return _Read(
            start=start, end=end, allocations=tuple(allocations), seen=self.chunk.share, incomplete=self.incomplete,
            missing=missing,
            not_covered=(*NO_METRICS_OF, *(("network",) if network_state == "not_covered" else ())),
            warnings=tuple(dict.fromkeys([*self.notes, *self.chunk.warnings])),
        )  # fmt: skip

    def _missing(self, nodes: _Nodes | None) -> tuple[bool, tuple[str, ...]]:
        """Whether idle can be told, and the components that this stretch does not tell whole."""
        there = self.chunk.intervals
        if ALLOCATED not in there or nodes is None:
            self._untold("cpu, ram, gpu: nobody wrote what nodes cost and what is allocated on them")
            return False, OF_NODES if "pv_hourly_cost" in there or nodes is not None else (*OF_NODES, "pv")
        if nodes.by_resource is None and nodes.total:
            self._untold("cpu, ram, gpu: how what nodes cost is divided among them is not known")
            return True, OF_NODES
        return True, ()

    async def _compute(self, component: str, amount: str, price: str, unit: str) -> _Compute:
        """Cost of what was allocated on nodes, by container; an amount without a price is told of."""
        tenant = self.tenant
        if amount not in self.chunk.intervals:
            if component != "gpu":
                self._untold(f"{component}: nobody wrote what was allocated")
            return _Compute({}, {})
        identity = ("namespace", "pod", "container", "node")
        amounts = f"({self.chunk.now(amount, *identity)}{unit})"
        summed = self.chunk.integral(amounts, amount)
        if price not in self.chunk.intervals:
            self._untold(f"{component}: some of it ran on nodes whose price is not known, and is not counted")
            return _Compute({}, await self._by_container(summed))
        prices = self.chunk.price(price, "node")
        costs, without = await asyncio.gather(
            self._by_container(self.chunk.integral(promql.priced(amounts, prices, tenant, "node"), amount, price)),
            self.chunk.ask(
                self.chunk.integral(
                    promql.total(promql.unpriced(amounts, prices, tenant, "node"), tenant), amount, price
                )
            ),
        )
        if any(value > 0 for _, value in without):
            self._untold(f"{component}: some of it ran on nodes whose price is not known, and is not counted")
        if any(costs.values()):
            return _Compute(costs, {})
        return _Compute(costs, await self._by_container(summed))

    async def _by_container(self, query: str) -> dict[Where, float]:
        """Figures by container and node; one below zero is counted out and told of."""
        found: dict[Where, float] = {}
        for labels, value in await self.chunk.ask(query):
            if value < 0:
                self._untold("a figure below zero is not counted")
                continue
            found[(*_two(labels, "namespace", "pod"), *_two(labels, "container", "node"))] = value
        return found

    async def _lasts(self, there: str | None, *metrics: str) -> bool:
        """Whether something is there in more steps than the edges of a stretch explain."""
        if there is None:
            return False
        step = self.chunk.step(*metrics)
        found = await self.chunk.ask(promql.seen_steps(there, self.chunk.seconds, step))
        allowed = 1 - promql.coverage_threshold(self.chunk.seconds, step)
        return any(count * step / self.chunk.seconds > allowed for _, count in found)

    def _untold(self, note: str) -> None:
        """Something is missing from the sums: the source is partial, and says what."""
        self.incomplete = True
        self.notes.append(note)

    async def _nodes(self) -> _Nodes | None:
        """What all nodes cost, by resource, adding up to their total price; None where that is not known."""
        there, tenant = self.chunk.intervals, self.tenant
        if "node_total_hourly_cost" not in there:
            return None
        total = self.chunk.integral(
            promql.total(self.chunk.now("node_total_hourly_cost", "node"), tenant), "node_total_hourly_cost"
        )
        usd = math.fsum(value for _, value in await self.chunk.ask(total))
        if await self._lasts(nodes_without_total(self.chunk), "node_total_hourly_cost"):
            self._untold("idle: some nodes have no total price, and what is idle on them is not counted")
        parts = await asyncio.gather(
            self._capacity_cost("cpu", "core", "kube_node_status_capacity_cpu_cores", "node_cpu_hourly_cost", ""),
            self._capacity_cost(
                "memory", "byte", "kube_node_status_capacity_memory_bytes", "node_ram_hourly_cost", f" / {GIB}"
            ),
            self._capacity_cost("nvidia_com_gpu", "integer", "node_gpu_count", "node_gpu_hourly_cost", ""),
        )
        whole = math.fsum(parts)
        if not parts[0] or not parts[1] or abs(whole - usd) > SPLIT_SHARE * abs(usd):
            return _Nodes(usd, None)
        return _Nodes(usd, Costs(*(usd * part / whole for part in parts)))

    async def _capacity_cost(self, resource: str, unit: str, older: str, price: str, factor: str) -> float:
        """What all of one resource cost: its capacity as either version of kube-state-metrics writes it."""
        there = self.chunk.intervals
        sizes = capacity_of(self.chunk, resource, unit, older)
        if sizes is None or price not in there:
            return 0.0
        amounts = f"(({sizes}){factor})"
        rate = promql.total(promql.priced(amounts, self.chunk.price(price, "node"), self.tenant, "node"), self.tenant)
        measures = [name for name in (older, CAPACITY) if name in there]
        return math.fsum(value for _, value in await self.chunk.ask(self.chunk.integral(rate, *measures, price)))

    async def _volumes(self) -> tuple[dict[Pod, float], dict[Pod, float]]:
        """Cost of volumes, and GiB hours where none of them has a price; by owner."""
        there = self.chunk.intervals
        capacity, price = "kube_persistentvolume_capacity_bytes", "pv_hourly_cost"
        if capacity not in there:
            if price in there:
                self._untold("pv: volumes are there, and their size is not known")
            return {}, {}
        sizes = self.chunk.now(capacity, "persistentvolume")
        gib = f"({sizes} / {GIB})"
        if price not in there:
            self._untold("pv: volumes are there, and their price is not known")
            amounts = await self._by_owner(gib, capacity)
            return dict.fromkeys(amounts, 0.0), amounts
        prices = volume_prices(self.chunk)
        if await self._lasts(volumes_without_size(self.chunk), capacity, price):
            self._untold("pv: the sizes of some volumes are not known for some of the time, and they are not counted")
        costs, without = await asyncio.gather(
            self._by_owner(promql.priced(gib, prices, self.tenant, "persistentvolume"), capacity, price),
            self.chunk.ask(self.chunk.integral(volumes_without_price(self.chunk), capacity, price)),
        )
        if any(value > 0 for _, value in without):
            self._untold("pv: some volumes have no price, and are not counted")
        if any(costs.values()):
            return costs, {}
        amounts = await self._by_owner(gib, capacity)
        return dict.fromkeys(amounts, 0.0), amounts

    async def _by_owner(self, rate: str, *metrics: str) -> dict[Pod, float]:
        """A rate of volumes by who mounts them, else by the namespace that claims them, else ``__unmounted__``."""
        costs, claimed, mounts = await asyncio.gather(
            self.chunk.ask(self.chunk.integral(rate, *metrics)),
            self.chunk.ask(self.chunk.integral(claimed_by(self.chunk, rate), *metrics)),
            self.chunk.seen("pod_pvc_allocation", "persistentvolume", "namespace", "pod"),
        )
        by_volume = {labels.get("persistentvolume", ""): usd for labels, usd in costs}
        pods: dict[tuple[str, str], list[Pod]] = defaultdict(list)
        for labels in mounts:
            namespace, mounter = _two(labels, "namespace", "pod")
            pods[(labels.get("persistentvolume", ""), namespace)].append((namespace, mounter))
        by_pod: dict[Pod, list[float]] = defaultdict(list)
        for labels, usd in claimed:
            volume, namespace = _two(labels, "volumename", "namespace")
            owners = pods.get((volume, namespace)) or [(namespace, UNMOUNTED[1])]
            by_volume[volume] = by_volume.get(volume, 0.0) - usd
            for owner in owners:
                by_pod[owner].append(usd / len(owners))
        rest = math.fsum(usd for usd in by_volume.values() if usd > 1e-9)
        if rest:
            by_pod[UNMOUNTED].append(rest)
        return {pod: math.fsum(values) for pod, values in by_pod.items()}

    async def _network(self) -> tuple[dict[Pod, float], dict[Pod, Egress], Literal["ok", "missing", "not_covered"]]:
        """Bytes sent times the price of where they went."""
        tenant, seconds = self.tenant, self.chunk.seconds
        if EGRESS not in self.chunk.intervals:
            return {}, {}, "not_covered"
        labels = ("namespace", "pod_name", *EGRESS_FLAGS)
        step = self.chunk.step(EGRESS)
        counted = promql.seen_steps(self.chunk.now(EGRESS), seconds, step)
        sent, prices, steps = await asyncio.gather(
            self.chunk.ask(self.chunk.increase(EGRESS, *labels)),
            self.chunk.ask(
                " or ".join(
                    promql.named(
                        reach,
                        f"max by ({tenant.by()}) (avg_over_time("
                        f"{promql.selector(f'kubecost_network_{reach}_egress_cost', tenant)}[{seconds}s]))",
                    )
                    for reach in ("internet", "region", "zone")
                )
            ),
            self.chunk.ask(counted),
        )
        seen = min(1.0, math.fsum(count for _, count in steps) * step / seconds)
        if not sent and not seen:
            return {}, {}, "not_covered"
        state: Literal["ok", "missing"] = "ok"
        if seen < promql.coverage_threshold(seconds, step):
            self._untold(f"network: reported for {seen * seconds / HOUR:.1f} of {seconds / HOUR:.1f} hours")
            state = "missing"
        price = {found["metric"]: value for found, value in prices}
        costs: dict[Pod, dict[str, float]] = {}
        for found, sent_bytes in sent:
            reach = reach_of(found)
            if reach is None or not sent_bytes:
                continue
            if reach not in price:
                return {}, {}, "missing"
            one = costs.setdefault((found.get("namespace", ""), found.get("pod_name", "")), {})
            one[reach] = one.get(reach, 0.0) + sent_bytes / GIB * price[reach]
        egress = {pod: Egress(**parts) for pod, parts in costs.items()}
        return {pod: math.fsum(parts.values()) for pod, parts in costs.items()}, egress, state

    async def _balancers(self, hours: Mapping[Where, float], served: Mapping[Pod, tuple[str, ...]]) -> dict[Pod, float]:
        """Cost of balancers by the pods behind them, by how long each ran; else by namespace."""
        name = "kubecost_load_balancer_cost"
        if name not in self.chunk.intervals:
            return {}
        identity = ("namespace", "service_name")
        rate = promql.total(self.chunk.now(name, *identity, "ingress_ip"), self.tenant, *identity)
        ran: dict[Pod, float] = {}
        for who, there in _by_container(hours).items():
            ran[who[:2]] = max(ran.get(who[:2], 0.0), there)
        behind: dict[tuple[str, str], list[Pod]] = defaultdict(list)
        for one, services in served.items():
            for service in services:
                if ran.get(one):
                    behind[(one[0], service)].append(one)
        by_pod: dict[Pod, list[float]] = defaultdict(list)
        for labels, usd in await self.chunk.ask(self.chunk.integral(rate, name)):
            namespace, service = _two(labels, *identity)
            pods = behind.get((namespace, service), [])
            whole = math.fsum(ran[pod] for pod in pods)
            for pod in pods:
                by_pod[pod].append(usd * ran[pod] / whole)
            if not pods:
                by_pod[(namespace, UNMOUNTED[1])].append(usd)
        return {pod: math.fsum(values) for pod, values in by_pod.items()}

    async def _served(self) -> dict[Pod, tuple[str, ...]]:
        """Which services select each pod, by their selectors and the pods' labels."""
        if not self.services and "kubecost_load_balancer_cost" not in self.chunk.intervals:
            return {}
        there = f"max_over_time({promql.selector('service_selector_labels', self.tenant)}[{self.chunk.looked_back}s])"
        found: dict[Pod, set[str]] = defaultdict(set)
        by_namespace: dict[str, list[tuple[str, dict[str, str]]]] = defaultdict(list)
        for labels, _ in await self.chunk.ask(self.chunk.own(there)):
            selector = {name: value for name, value in labels.items() if name.startswith("label_")}
            if selector:
                by_namespace[labels.get("namespace", "")].append((labels.get("service", ""), selector))
        selectors = [selector for services in by_namespace.values() for _, selector in services]
        wanted = sorted({name for selector in selectors for name in selector})
        if not wanted:
            return {}
        for labels in await self._pod_labels(wanted):
            namespace, pod = _two(labels, "namespace", "pod")
            for service, selector in by_namespace.get(namespace, ()):
                if all(labels.get(name, "") == value for name, value in selector.items()):
                    found[(namespace, pod)].add(service)
        return {pod: tuple(sorted(services)) for pod, services in found.items()}

    async def _usage(self) -> _Usages:
        """Requests and usage of the time that containers ran, in core-minutes and byte-minutes."""
        there, memory = self.chunk.intervals, "container_memory_working_set_bytes"
        who = ("namespace", "pod", "container")

        async def integrated(gauge: str, metric: str) -> dict[Who, float]:
            """A gauge for as long as its container was there; requests outlive the pod that made them."""
            if ALLOCATED in there:
                gauge = f"({gauge}) and on ({self.tenant.by(*who)}) ({self.chunk.now(ALLOCATED, *who)})"
            return await self._by_who(self.chunk.integral(gauge, metric))

        async def requested(resource: str, older: str) -> dict[Who, float] | None:
            newer = "kube_pod_container_resource_requests"
            parts = [self.chunk.now(older, *who)] if older in there else []
            if newer in there:
                parts.insert(0, self.chunk.now(newer, *who, resource=resource))
            if not parts:
                return None
            return await integrated(" or ".join(f"({one})" for one in parts), newer if newer in there else older)

        async def resident() -> dict[Who, float] | None:
            return await integrated(self.chunk.now(memory, *who, container="!"), memory) if memory in there else None

        async def ran() -> dict[Where, float]:
            if ALLOCATED not in there:
                return {}
            present = f"({self.chunk.now(ALLOCATED, *who, 'node')}) * 0 + 1"
            return await self._by_container(self.chunk.integral(present, ALLOCATED))

        cpu_request, ram_request, ram_usage, cpu_seconds, hours = await asyncio.gather(
            requested("cpu", "kube_pod_container_resource_requests_cpu_cores"),
            requested("memory", "kube_pod_container_resource_requests_memory_bytes"),
            resident(),
            self._by_who(self.chunk.increase("container_cpu_usage_seconds_total", *who, container="!")),
            ran(),
        )
        return _Usages(hours, cpu_request, cpu_seconds or None, ram_request, ram_usage)

    async def _by_who(self, query: str) -> dict[Who, float]:
        found: dict[Who, float] = {}
        for labels, value in await self.chunk.ask(query):
            found[(*_two(labels, "namespace", "pod"), labels.get("container", ""))] = value
        return found

    async def _pod_labels(self, names: Sequence[str]) -> list[Labels]:
        """Pods with some of their labels; rows outlive the samples of what is said of them."""
        seconds = self.chunk.looked_back
        return await self.chunk.seen("kube_pod_labels", "namespace", "pod", *names, seconds=seconds)

    async def _labelled(self) -> dict[Pod, dict[str, str]]:
        if not self.labels:
            return {}
        return {
            (labels.get("namespace", ""), labels.get("pod", "")): {
                name.removeprefix("label_"): value for name, value in labels.items() if name.startswith("label_")
            }
            for labels in await self._pod_labels(self.labels)
        }


class _Compute(Struct, frozen=True):
    """Of one resource by container: USD, and where nothing of it is priced, hours of what was allocated."""

    usd: dict[Where, float]
    amounts: dict[Where, float]


class _Usages(Struct, frozen=True):
    """By container: hours that it ran on each node; requests and usage (hours of cores and bytes, seconds of cores).

    None where nobody wrote any of them.
    """

    hours: Mapping[Where, float]
    cpu_request: Mapping[Who, float] | None
    cpu_seconds: Mapping[Who, float] | None
    ram_request: Mapping[Who, float] | None
    ram_usage: Mapping[Who, float] | None

    def of(self, where: Where, places: _Places) -> Usage:
        """Of a container on one node, in proportion to how long it was there."""
        who, share = where[:3], places.share_of_container(where)

        def value(of: Mapping[Who, float] | None, factor: float) -> float:
            return of.get(who, 0.0) * factor * share if of is not None else 0.0

        return Usage(
            value(self.cpu_request, 60), value(self.cpu_seconds, 1 / 60), value(self.ram_request, 60),
            value(self.ram_usage, 60),
        )  # fmt: skip

    def unknown_of(self, where: Where) -> tuple[str, ...]:
        """The measures that nobody wrote, of this container or of any."""
        who = where[:3]
        if not where[2]:
            return ()
        long = self.hours.get(where, 0.0) >= LONG_ENOUGH_HOURS
        lacking = {
            "cpu_request": self.cpu_request is None,
            "cpu_usage": self.cpu_seconds is None or (long and who not in self.cpu_seconds),
            "ram_request": self.ram_request is None,
            "ram_usage": self.ram_usage is None or (long and who not in self.ram_usage),
        }
        return tuple(name for name, lacks in lacking.items() if lacks)


def _by_container(hours: Mapping[Where, float]) -> dict[Who, float]:
    """Hours of each container, on whichever nodes."""
    summed: dict[Who, float] = {}
    for where, there in hours.items():
        summed[where[:3]] = summed.get(where[:3], 0.0) + there
    return summed


class _Places:
    """Where the costs of a pod as a whole go: to one of its containers, on each of its nodes for its time there."""

    def __init__(self, rows: Sequence[Where], hours: Mapping[Where, float]) -> None:
        self.rows = tuple(sorted(set(rows)))
        self._hours = hours
        self._of_containers = _by_container(hours)
        nodes: dict[Who, list[Where]] = defaultdict(list)
        for where in self.rows:
            nodes[where[:3]].append(where)
        main: dict[Pod, Who] = {}
        for who in sorted(nodes, key=lambda one: (-self._of_containers.get(one, 0.0), one)):
            main.setdefault(who[:2], who)
        self._main = {pod: nodes[who] for pod, who in main.items()}

    def of(self, pod: Pod) -> list[tuple[Where, float]]:
        """The rows of a pod that its own costs go to, with the share of each; a row of their own where it has none."""
        rows = self._main.get(pod)
        return [(where, self.share_of_container(where)) for where in rows] if rows else [((*pod, "", ""), 1.0)]

    def share(self, where: Where) -> float:
        """The share that a row has of what is of its pod."""
        rows = self._main.get(where[:2])
        return 1.0 if rows is None else self.share_of_container(where) if where in rows else 0.0

    def share_of_container(self, where: Where) -> float:
        """The share that a node has of a container's time."""
        whole = self._of_containers.get(where[:3], 0.0)
        return self._hours.get(where, 0.0) / whole if whole else 1.0


def _part_of(egress: Egress, share: float) -> Egress:
    return Egress(egress.internet * share, egress.region * share, egress.zone * share)


class _Rows:
    """Costs by row, as they are added up."""

    def __init__(self, places: _Places) -> None:
        self._places = places
        self.costs: dict[Where, dict[str, float]] = {where: {} for where in places.rows}

    def add(self, component: str, found: Mapping[Where, float]) -> None:
        for where, usd in found.items():
            costs = self.costs.setdefault(where, {})
            costs[component] = costs.get(component, 0.0) + usd

    def of_pods(self, component: str, found: Mapping[Pod, float]) -> None:
        for pod, usd in found.items():
            self.add(component, {where: usd * share for where, share in self._places.of(pod)})


def volume_prices(chunk: Chunk, interval: float = 0.0) -> str:
    """USD per GiB and hour of each volume; older exporters name it ``volumename`` alone.

    Args:
        interval: looks back as if it were written so seldom.
    """
    price, tenant, spacing = "pv_hourly_cost", chunk.tenant, interval or chunk.intervals["pv_hourly_cost"]
    newer = promql.current(price, tenant, ("persistentvolume",), spacing, chunk.own, persistentvolume="!")
    older = f"last_over_time({promql.selector(price, tenant, persistentvolume='')}{promql.lookback(spacing)})"
    return (
        f"({newer} or "
        f"max by ({tenant.by('persistentvolume')}) "
        f'(label_replace({older}, "persistentvolume", "$1", "volumename", "(.+)")))'
    )


def claimed_by(chunk: Chunk, rate: str) -> str:
    """A rate of volumes by name (``volumename``) and namespace of their claims, as those are now."""
    claims = promql.selector("kube_persistentvolumeclaim_info", chunk.tenant)
    lookback = promql.lookback(chunk.intervals["kube_persistentvolume_capacity_bytes"])
    claims = chunk.own(f"last_over_time({claims}{lookback})")
    claimed = f"max by ({chunk.tenant.by('volumename', 'namespace')}) ({claims})"
    count = f"sum by ({chunk.tenant.by('volumename')}) ({claimed})"  # a claim that lost its volume still names it
    shares = f"({claimed} / on ({chunk.tenant.by('volumename')}) group_left () {count})"
    by_volume = f'label_replace({shares}, "persistentvolume", "$1", "volumename", "(.+)")'
    return promql.priced(by_volume, f"({rate})", chunk.tenant, "persistentvolume")


def _sizes_and_prices(chunk: Chunk) -> tuple[str, str]:
    """Sizes and prices of volumes, both looked back at for as long: what has ended lingers on neither side alone."""
    sizes, price = "kube_persistentvolume_capacity_bytes", "pv_hourly_cost"
    longer = max(chunk.intervals[sizes], chunk.intervals[price])
    told = promql.current(sizes, chunk.tenant, ("persistentvolume",), longer, chunk.own)
    return told, volume_prices(chunk, longer)


def volumes_without_price(chunk: Chunk) -> str:
    """The sizes of volumes that have no price."""
    sizes, prices = _sizes_and_prices(chunk)
    return promql.total(promql.unpriced(sizes, prices, chunk.tenant, "persistentvolume"), chunk.tenant)


def volumes_without_size(chunk: Chunk) -> str | None:
    """How many volumes have a price and no size: whoever tells sizes is away."""
    if not {"kube_persistentvolume_capacity_bytes", "pv_hourly_cost"} <= chunk.intervals.keys():
        return None
    sizes, prices = _sizes_and_prices(chunk)
    unsized = promql.unpriced(prices, sizes, chunk.tenant, "persistentvolume")
    return f"count by ({chunk.tenant.by()}) ({unsized})"


def nodes_without_total(chunk: Chunk) -> str | None:
    """How many nodes have a price of their cores and no total one: what is idle on them is not told."""
    total, price = "node_total_hourly_cost", "node_cpu_hourly_cost"
    if not {total, price} <= chunk.intervals.keys():
        return None
    lacking = promql.unpriced(chunk.now(price, "node"), chunk.now(total, "node"), chunk.tenant, "node")
    return f"count by ({chunk.tenant.by()}) ({lacking})"


def capacity_of(chunk: Chunk, resource: str, unit: str, older: str) -> str | None:
    """What each node has of a resource, as either version of kube-state-metrics writes it; None where nobody does."""
    sizes = [chunk.now(older, "node")] if older in chunk.intervals else []
    if CAPACITY in chunk.intervals:
        sizes.append(chunk.now(CAPACITY, "node", resource=resource, unit=unit))
    return " or ".join(sizes) or None


Ask = Callable[[str], Awaitable[Samples]]


async def read_owners(
    ask: Ask, tenant: Tenant, seconds: int, own: Callable[[str], str] = promql.same
) -> dict[Pod, tuple[str, str]]:
    """Controller kind (lower case) and name of each pod seen in ``seconds``."""

    def seen(metric: str, *identity: str) -> str:
        there = own(f"max_over_time({promql.selector(metric, tenant)}[{seconds}s])")
        return f"max by ({tenant.by(*identity)}) ({there})"

    pods, replicasets = await asyncio.gather(
        ask(seen("kube_pod_owner", "namespace", "pod", "owner_kind", "owner_name")),
        ask(seen("kube_replicaset_owner", "namespace", "replicaset", "owner_kind", "owner_name")),
    )
    deployments = {
        (labels.get("namespace", ""), labels.get("replicaset", "")): (
            labels["owner_kind"].lower(),
            labels["owner_name"],
        )
        for labels, _ in replicasets
        if labels.get("owner_name") and labels.get("owner_kind")
    }
    owners = {}
    for labels, _ in pods:
        namespace, name, kind = labels.get("namespace", ""), labels.get("owner_name", ""), labels.get("owner_kind", "")
        owner = deployments.get((namespace, name)) if kind == "ReplicaSet" else None
        owners[(namespace, labels.get("pod", ""))] = owner or (kind.lower(), name)
    return owners


class _Nodes(Struct, frozen=True):
    """What all nodes cost, USD; ``by_resource`` where their capacities are known."""

    total: float
    by_resource: Costs | None


def _idle(nodes: _Nodes, used: Costs) -> Costs:
    """What nodes cost beyond what was allocated; in one sum where it is not known of which resource."""
    whole = nodes.by_resource
    if whole is None:
        return Costs(cpu=nodes.total - used.total)
    return Costs(cpu=whole.cpu - used.cpu, ram=whole.ram - used.ram, gpu=whole.gpu - used.gpu)


def reach_of(labels: Labels) -> str | None:
    """Where bytes went; None for what stays in its zone and costs nothing."""
    internet = labels.get("internet", "false")
    if internet == "true":
        return "internet"
    same_zone = labels.get("same_zone") or labels.get("sameZone") or "false"
    same_region = labels.get("same_region") or labels.get("sameRegion") or "false"
    return REACHES.get((internet, same_zone, same_region))
