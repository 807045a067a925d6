"""What a cluster cost by its metrics alone: allocations pod by pod with idle, and cluster management."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import msgspec
from msgspec import Struct

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.components import Costs, Egress, Usage
from metroculus.cost_model.reading import AllocationReading, AllocationSet, ManagementReading
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.chunk import Chunk, SeriesCoverage, judged, open_chunk
from metroculus.sources.thanos.client import Labels, Querier, Samples
from metroculus.sources.thanos.promql import Tenant
from tools.deadline import Deadline
from tools.window import Window

GIB = 2**30
REACHES = {
    ("true", "", ""): "internet",
    ("false", "false", "false"): "region",
    ("false", "false", "true"): "zone",
}
MANAGEMENT = "kubecost_cluster_management_cost"
NO_METRICS_OF = ("shared", "external")
"""Components that no metric tells: they are not covered, which is not the same as 0."""


async def management_by_metrics(thanos: Querier, account: str, window: Window, deadline: Deadline) -> ManagementReading:
    """Cluster management by the integral of its rate; heartbeat and no such series is 0.

    Raises:
        SourceError
    """
    tenant = thanos.tenant(account)

    async def read(start: int, end: int) -> tuple[float, SeriesCoverage]:
        chunk = await open_chunk(thanos, tenant, start, end, deadline)
        share, enough = await chunk.coverage()
        usd = 0.0
        if MANAGEMENT in chunk.intervals:
            rate = promql.total(chunk.now(MANAGEMENT), tenant)
            usd = math.fsum(value for _, value in await chunk.ask(chunk.integral(rate, MANAGEMENT)))
        return usd, (share * chunk.seconds, enough, chunk.warnings)

    parts = await asyncio.gather(*(read(start, end) for start, end in window.days()))
    source = judged(window, [seen for _, seen in parts], thanos.now())
    known = source.status in ("ok", "partial")
    return ManagementReading(source=source, usd=math.fsum(usd for usd, _ in parts) if known else None)


async def allocation_by_metrics(
    thanos: Querier, account: str, window: Window, deadline: Deadline, labels: Sequence[str] = ()
) -> AllocationReading:
    """Allocations of a window by pod, one set a day.

    Args:
        labels: pod labels that rows must carry, as stored (``label_team``).

    Raises:
        SourceError
    """
    tenant = thanos.tenant(account)

    async def read(start: int, end: int) -> _Read:
        return await _ChunkReader(await open_chunk(thanos, tenant, start, end, deadline), labels).read()

    readings = await asyncio.gather(*(read(start, end) for start, end in window.days()))
    with_rows = [one for one in readings if one.allocations]
    absent = {name for one in readings for name in one.missing}
    never = set.intersection(*(set(one.not_covered) for one in with_rows)) if with_rows else set()
    sometimes = {name for one in with_rows for name in one.not_covered} - never
    notes = [text for one in readings for text in one.warnings]
    notes += [f"{name}: not reported for every day" for name in sorted(sometimes)]
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


class _Read(Struct, frozen=True, kw_only=True):
    start: int
    end: int
    allocations: tuple[Allocation, ...]
    seen_seconds: float
    enough: bool
    incomplete: bool
    missing: tuple[str, ...]
    not_covered: tuple[str, ...]
    warnings: tuple[str, ...]


Pod = tuple[str, str]


class _ChunkReader:
    """Reads one stretch: every figure by pod, joined to allocations."""

    def __init__(self, chunk: Chunk, labels: Sequence[str]) -> None:
        self.chunk = chunk
        self.tenant = chunk.tenant
        self.labels = labels
        self.notes: list[str] = []
        self.incomplete = False

    async def read(self) -> _Read:
        start, end = self.chunk.start, self.chunk.end
        share, enough = await self.chunk.coverage()
        there = self.chunk.intervals
        priced = {"node_cpu_hourly_cost", "node_total_hourly_cost"} & set(there)
        if not share or "container_cpu_allocation" not in there or not priced:
            return _Read(
                start=start, end=end, allocations=(), seen_seconds=share * (end - start), enough=False,
                incomplete=True, missing=(), not_covered=(), warnings=tuple(self.chunk.warnings),
            )  # fmt: skip
        cpu, ram, gpu, usage, owners, labelled = await asyncio.gather(
            self._compute("cpu", "container_cpu_allocation", "node_cpu_hourly_cost", ""),
            self._compute("ram", "container_memory_allocation_bytes", "node_ram_hourly_cost", f" / {GIB}"),
            self._compute("gpu", "container_gpu_allocation", "node_gpu_hourly_cost", ""),
            self._usage(),
            self._owners(),
            self._labelled(),
        )
        nodes, volumes, (network, egress, network_state), balancers = await asyncio.gather(
            self._nodes(), self._volumes(), self._network(), self._balancers()
        )
        pods = sorted({*cpu, *ram, *gpu, *volumes, *network, *balancers})
        allocations = [
            Allocation(
                name="/".join(pod),
                namespace=pod[0],
                pod=pod[1] if pod[0] != "__unmounted__" else "",
                controller=owners.get(pod, ("", ""))[1],
                controller_kind=owners.get(pod, ("", ""))[0],
                labels=labelled.get(pod, {}),
                start=start,
                end=end,
                costs=Costs(
                    cpu=cpu.get(pod, 0.0),
                    ram=ram.get(pod, 0.0),
                    gpu=gpu.get(pod, 0.0),
                    pv=volumes.get(pod, 0.0),
                    network=network.get(pod, 0.0),
                    load_balancer=balancers.get(pod, 0.0),
                ),
                egress=egress.get(pod, Egress()),
                usage=usage.get(pod, Usage()),
            )
            for pod in pods
        ]
        missing = () if nodes is not None else ("cpu", "ram", "gpu")
        if nodes is not None:
            used = Costs(cpu=math.fsum(cpu.values()), ram=math.fsum(ram.values()), gpu=math.fsum(gpu.values()))
            idle = _idle(nodes, used)
            allocations.append(Allocation(name=IDLE, start=start, end=end, costs=idle))
        return _Read(
            start=start, end=end, allocations=tuple(allocations), seen_seconds=share * (end - start), enough=enough,
            incomplete=self.incomplete, missing=missing + (("network",) if network_state == "missing" else ()),
            not_covered=(*NO_METRICS_OF, *(("network",) if network_state == "not_covered" else ())),
            warnings=tuple(dict.fromkeys([*self.notes, *self.chunk.warnings])),
        )  # fmt: skip

    async def _by_pod(self, query: str) -> dict[Pod, float]:
        return {
            (labels.get("namespace", ""), labels.get("pod", "")): value for labels, value in await self.chunk.ask(query)
        }

    async def _compute(self, component: str, amount: str, price: str, unit: str) -> dict[Pod, float]:
        """Cost of what was allocated on nodes, by pod; an amount without a price is told of."""
        tenant = self.tenant
        if amount not in self.chunk.intervals:
            if component != "gpu":
                self._untold(f"{component}: nobody wrote what was allocated")
            return {}
        amounts = f"({self.chunk.now(amount, 'namespace', 'pod', 'container', 'node')}{unit})"
        if price not in self.chunk.intervals:
            self._untold(f"{component}: some of it ran on nodes whose price is not known, and is not counted")
            return {}
        prices = self.chunk.now(price, "node")
        costs, without = await asyncio.gather(
            self._by_pod(
                self.chunk.integral(
                    promql.total(promql.priced(amounts, prices, tenant, "node"), tenant, "namespace", "pod"),
                    amount,
                    price,
                )
            ),
            self.chunk.ask(
                self.chunk.integral(
                    promql.total(promql.unpriced(amounts, prices, tenant, "node"), tenant), amount, price
                )
            ),
        )
        if any(value > 0 for _, value in without):
            self._untold(f"{component}: some of it ran on nodes whose price is not known, and is not counted")
        return costs

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
        parts = []
        for capacity, price, unit in (
            ("kube_node_status_capacity_cpu_cores", "node_cpu_hourly_cost", ""),
            ("kube_node_status_capacity_memory_bytes", "node_ram_hourly_cost", f" / {GIB}"),
            ("node_gpu_count", "node_gpu_hourly_cost", ""),
        ):
            value = 0.0
            if capacity in there and price in there:
                amounts = f"({self.chunk.now(capacity, 'node')}{unit})"
                rate = promql.total(promql.priced(amounts, self.chunk.now(price, "node"), tenant, "node"), tenant)
                value = math.fsum(v for _, v in await self.chunk.ask(self.chunk.integral(rate, capacity, price)))
            parts.append(value)
        whole = math.fsum(parts)
        if not parts[0] or not parts[1]:
            return _Nodes(usd, None)
        return _Nodes(usd, Costs(*(usd * part / whole for part in parts)))

    async def _volumes(self) -> dict[Pod, float]:
        """Cost of volumes by the pod that mounts them, else the namespace that claims them, else ``__unmounted__``."""
        there = self.chunk.intervals
        capacity, price = "kube_persistentvolume_capacity_bytes", "pv_hourly_cost"
        if capacity not in there or price not in there:
            if capacity in there or price in there:
                self._untold(
                    f"pv: volumes are there, and their {'price' if capacity in there else 'size'} is not known"
                )
            return {}
        sizes, prices = self.chunk.now(capacity, "persistentvolume"), volume_prices(self.chunk)
        rate = promql.priced(f"({sizes} / {GIB})", prices, self.tenant, "persistentvolume")
        without_price = promql.total(promql.unpriced(sizes, prices, self.tenant, "persistentvolume"), self.tenant)
        costs, without, claims, mounts = await asyncio.gather(
            self.chunk.ask(self.chunk.integral(rate, capacity, price)),
            self.chunk.ask(self.chunk.integral(without_price, capacity, price)),
            self.chunk.seen("kube_persistentvolumeclaim_info", "volumename", "namespace"),
            self.chunk.seen("pod_pvc_allocation", "persistentvolume", "namespace", "pod"),
        )
        if any(value > 0 for _, value in without):
            self._untold("pv: some volumes have no price, and are not counted")
        owners: dict[str, set[Pod]] = {}
        for labels in mounts:
            pod = (labels.get("namespace", ""), labels.get("pod", ""))
            owners.setdefault(labels.get("persistentvolume", ""), set()).add(pod)
        claimed = {labels.get("volumename", ""): labels.get("namespace", "") for labels in claims}
        by_pod: dict[Pod, list[float]] = {}
        for labels, usd in costs:
            volume = labels.get("persistentvolume", "")
            pods = owners.get(volume, set())
            namespace = claimed.get(volume, "")
            owner = ("__unmounted__", "__unmounted__")
            if len(pods) == 1:
                owner = next(iter(pods))
            elif namespace:
                owner = (namespace, "")
            by_pod.setdefault(owner, []).append(usd)
        return {pod: math.fsum(values) for pod, values in by_pod.items()}

    async def _network(self) -> tuple[dict[Pod, float], dict[Pod, Egress], Literal["ok", "missing", "not_covered"]]:
        """Bytes sent times the price of where they went."""
        tenant, seconds = self.tenant, self.chunk.seconds
        labels = ("namespace", "pod_name", "internet", "same_zone", "same_region", "sameZone", "sameRegion")
        sent = await self.chunk.ask(promql.increase("kubecost_pod_network_egress_bytes_total", tenant, labels, seconds))
        if not sent:
            return {}, {}, "not_covered"
        prices = await self.chunk.ask(
            " or ".join(
                promql.named(
                    reach,
                    f"max by ({tenant.by()}) (avg_over_time("
                    f"{promql.selector(f'kubecost_network_{reach}_egress_cost', tenant)}[{seconds}s]))",
                )
                for reach in ("internet", "region", "zone")
            )
        )
        price = {found["metric"]: value for found, value in prices}
        costs: dict[Pod, dict[str, float]] = {}
        for found, sent_bytes in sent:
            reach = _reach(found)
            if reach is None or not sent_bytes:
                continue
            if reach not in price:
                return {}, {}, "missing"
            one = costs.setdefault((found.get("namespace", ""), found.get("pod_name", "")), {})
            one[reach] = one.get(reach, 0.0) + sent_bytes / GIB * price[reach]
        egress = {pod: Egress(**parts) for pod, parts in costs.items()}
        return {pod: math.fsum(parts.values()) for pod, parts in costs.items()}, egress, "ok"

    async def _balancers(self) -> dict[Pod, float]:
        name = "kubecost_load_balancer_cost"
        if name not in self.chunk.intervals:
            return {}
        rate = promql.total(self.chunk.now(name, "namespace", "service_name", "ingress_ip"), self.tenant, "namespace")
        return {
            (labels.get("namespace", ""), ""): usd
            for labels, usd in await self.chunk.ask(self.chunk.integral(rate, name))
        }

    async def _usage(self) -> dict[Pod, Usage]:
        """Requests and usage in core-minutes and byte-minutes."""
        tenant, there = self.tenant, self.chunk.intervals
        requests, memory = "kube_pod_container_resource_requests", "container_memory_working_set_bytes"

        async def requested(resource: str) -> dict[Pod, float]:
            if requests not in there:
                return {}
            rate = promql.total(
                self.chunk.now(requests, "namespace", "pod", "container", resource=resource), tenant, "namespace", "pod"
            )
            return await self._by_pod(self.chunk.integral(rate, requests))

        async def resident() -> dict[Pod, float]:
            if memory not in there:
                return {}
            rate = promql.total(
                self.chunk.now(memory, "namespace", "pod", "container", container="!"), tenant, "namespace", "pod"
            )
            return await self._by_pod(self.chunk.integral(rate, memory))

        cpu_request, ram_request, ram_usage, cpu_seconds = await asyncio.gather(
            requested("cpu"),
            requested("memory"),
            resident(),
            self._by_pod(
                promql.increase(
                    "container_cpu_usage_seconds_total", tenant, ("namespace", "pod"), self.chunk.seconds, container="!"
                )
            ),
        )
        return {
            pod: Usage(
                cpu_request.get(pod, 0.0) * 60,
                cpu_seconds.get(pod, 0.0) / 60,
                ram_request.get(pod, 0.0) * 60,
                ram_usage.get(pod, 0.0) * 60,
            )
            for pod in {*cpu_request, *ram_request, *ram_usage, *cpu_seconds}
        }

    async def _owners(self) -> dict[Pod, tuple[str, str]]:
        """Controller kind and name of each pod, a ReplicaSet's Deployment in its place."""
        return await read_owners(self.chunk.ask, self.tenant, self.chunk.seconds)

    async def _labelled(self) -> dict[Pod, dict[str, str]]:
        if not self.labels:
            return {}
        return {
            (labels.get("namespace", ""), labels.get("pod", "")): {
                name.removeprefix("label_"): value for name, value in labels.items() if name.startswith("label_")
            }
            for labels in await self.chunk.seen("kube_pod_labels", "namespace", "pod", *self.labels)
        }


def volume_prices(chunk: Chunk) -> str:
    """USD per GiB and hour of each volume; older exporters name it ``volumename`` alone."""
    price, tenant = "pv_hourly_cost", chunk.tenant
    lookback = f"[{int(2 * chunk.intervals[price] * 1000) - 1}ms]"
    older = promql.selector(price, tenant, persistentvolume="")
    return (
        f"({chunk.now(price, 'persistentvolume', persistentvolume='!')} or "
        f"max by ({tenant.by('persistentvolume')}) "
        f'(label_replace(last_over_time({older}{lookback}), "persistentvolume", "$1", "volumename", "(.+)")))'
    )


Ask = Callable[[str], Awaitable[Samples]]


async def read_owners(ask: Ask, tenant: Tenant, seconds: int) -> dict[Pod, tuple[str, str]]:
    """Controller kind (lower case) and name of each pod seen in ``seconds``."""

    def seen(metric: str, *identity: str) -> str:
        return f"max by ({tenant.by(*identity)}) (max_over_time({promql.selector(metric, tenant)}[{seconds}s]))"

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
    """What nodes cost beyond what was allocated; by allocated shares where their capacities are not known."""
    whole = nodes.by_resource
    if whole is not None:
        return Costs(cpu=whole.cpu - used.cpu, ram=whole.ram - used.ram, gpu=whole.gpu - used.gpu)
    rest = nodes.total - used.total
    share = used.cpu / (used.cpu + used.ram) if used.cpu + used.ram else 1.0
    return Costs(cpu=rest * share, ram=rest * (1 - share))


def _reach(labels: Labels) -> str | None:
    """Where bytes went; None for what stays in its zone and costs nothing."""
    internet = labels.get("internet", "false")
    if internet == "true":
        return "internet"
    same_zone = labels.get("same_zone") or labels.get("sameZone") or "false"
    same_region = labels.get("same_region") or labels.get("sameRegion") or "false"
    return REACHES.get((internet, same_zone, same_region))
