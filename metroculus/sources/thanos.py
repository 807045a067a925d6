"""Thanos Query (or a Prometheus): instant and range queries for one tenant, and what a cluster cost by its metrics.

The tenant's label is put into every selector by construction, stands in every ``by``, and every series that comes back
must carry it, or the answer is refused.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from metroculus.cost_model import promql
from metroculus.cost_model.allocation import IDLE, Allocation, AllocationSet, Costs, Egress, Usage
from metroculus.cost_model.promql import Tenant
from metroculus.cost_model.statement import AllocationReading, ManagementReading, Source, Status
from metroculus.sources.errors import BadAnswer
from metroculus.sources.http import Deadline, SourceHttp, Upstream
from tools.window import Window

GIB = 2**30
MAX_SERIES = 200_000
RESOLUTIONS = ("0s", "5m", "1h")
REACHES = {
    ("true", "", ""): "internet",
    ("false", "false", "false"): "region",
    ("false", "false", "true"): "zone",
}


class _Sample(Struct, array_like=True):
    at: float
    value: str


class _VectorEntry(Struct):
    metric: dict[str, str]
    value: _Sample


class _MatrixEntry(Struct):
    metric: dict[str, str]
    values: list[_Sample]


class _Vector(Struct, tag_field="resultType", tag="vector"):
    result: list[_VectorEntry]


class _Matrix(Struct, tag_field="resultType", tag="matrix"):
    result: list[_MatrixEntry]


class _VectorAnswer(Struct, tag_field="status", tag="success"):
    data: _Vector
    warnings: list[str] = []


class _MatrixAnswer(Struct, tag_field="status", tag="success"):
    data: _Matrix
    warnings: list[str] = []


_VECTOR = msgspec.json.Decoder(_VectorAnswer)
_MATRIX = msgspec.json.Decoder(_MatrixAnswer)

Labels = Mapping[str, str]
A = TypeVar("A", _VectorAnswer, _MatrixAnswer)


Seen = tuple[float, bool, list[str]]
"""Seconds of a stretch in which the exporter was alive, whether that is enough, and what the querier warned of."""


class Series(Struct, frozen=True):
    """One series of a range query: labels as stored, ``[[Unix seconds, value], …]``."""

    labels: dict[str, str]
    values: tuple[tuple[float, float], ...]


@dataclass
class Chunk:
    """One stretch being read: its queries share a resolution and collect warnings."""

    start: int
    end: int
    resolution: str = RESOLUTIONS[0]
    intervals: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> int:
        return self.end - self.start

    def step(self, *metrics: str) -> int:
        """The finer step of the metrics that are there."""
        return min(promql.step_for(self.intervals[name]) for name in metrics if name in self.intervals)

    def now(self, tenant: Tenant, metric: str, *identity: str, **labels: str) -> str:
        """A metric's current value, one a thing."""
        return promql.current(metric, tenant, identity, self.intervals[metric], **labels)

    def integral(self, rate: str, *metrics: str) -> str:
        """A rate made of ``metrics``, over the stretch."""
        return promql.integral(rate, self.seconds, self.step(*metrics))


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


class ThanosSource:
    """One querier, shared by all accounts.

    Args:
        label: the tenant's label; empty for a Prometheus of one cluster's own.
        clock: Unix seconds, for ``fetched_at``.
    """

    def __init__(self, http: SourceHttp, upstream: Upstream, label: str, clock: Callable[[], float]) -> None:
        self._http = http
        self._upstream = upstream
        self._label = label
        self._clock = clock

    def tenant(self, account: str) -> Tenant:
        return Tenant(self._label, account if self._label else "")

    async def query(
        self, tenant: Tenant, query: str, at: float, deadline: Deadline, resolution: str = RESOLUTIONS[0]
    ) -> tuple[list[tuple[Labels, float]], list[str]]:
        """An instant query: labels and finite values, and what the querier warned of.

        Raises:
            SourceError: also where a series is another tenant's, or stands twice.
        """
        params = {"query": query, "time": f"{at:.3f}", **self._flags(resolution)}
        answer = await self._ask("/api/v1/query", params, tenant, deadline, _VECTOR)
        found: dict[tuple[tuple[str, str], ...], tuple[Labels, float]] = {}
        for entry in answer.data.result:
            self._check(tenant, entry.metric)
            key = tuple(sorted(entry.metric.items()))
            if key in found:
                raise BadAnswer("the metrics source answered with the same series twice")
            found[key] = (entry.metric, _finite(entry.value.value))
        return list(found.values()), [text[:200] for text in answer.warnings]

    async def query_range(
        self, tenant: Tenant, query: str, start: int, end: int, step: int, deadline: Deadline
    ) -> tuple[list[Series], list[str]]:
        """A range query; samples that are not finite are left out.

        Raises:
            SourceError
        """
        params = {"query": query, "start": str(start), "end": str(end), "step": str(step), **self._flags("0s")}
        answer = await self._ask("/api/v1/query_range", params, tenant, deadline, _MATRIX)
        series = []
        for entry in answer.data.result:
            self._check(tenant, entry.metric)
            values = ((sample.at, float(sample.value)) for sample in entry.values)
            series.append(Series(entry.metric, tuple(pair for pair in values if math.isfinite(pair[1]))))
        return series, [text[:200] for text in answer.warnings]

    def _flags(self, resolution: str) -> dict[str, str]:
        return {"dedup": "true", "partial_response": "false", "max_source_resolution": resolution}

    async def _ask(
        self, path: str, params: Mapping[str, str], tenant: Tenant, deadline: Deadline, decoder: msgspec.json.Decoder[A]
    ) -> A:
        headers = dict(self._upstream.headers) | ({"THANOS-TENANT": tenant.value} if tenant.label else {})
        upstream = Upstream(
            self._upstream.name, self._upstream.url, headers, self._upstream.ca, trusted=self._upstream.trusted
        )
        body = await self._http.get(upstream, path, params, deadline)
        try:
            answer = decoder.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise BadAnswer("the metrics source answered with something that is not its JSON") from None
        if len(answer.data.result) > MAX_SERIES:
            raise BadAnswer(f"the metrics source answered with more than {MAX_SERIES} series")
        return answer

    def _check(self, tenant: Tenant, labels: Labels) -> None:
        if tenant.label and labels.get(tenant.label) != tenant.value:
            raise BadAnswer("the metrics source answered with a series that is not the account's")

    async def chunk_query(
        self, chunk: Chunk, tenant: Tenant, query: str, deadline: Deadline
    ) -> list[tuple[Labels, float]]:
        found, warnings = await self.query(tenant, query, chunk.end - 0.001, deadline, chunk.resolution)
        chunk.warnings += warnings
        return found

    async def open_chunk(self, start: int, end: int, tenant: Tenant, deadline: Deadline) -> Chunk:
        """A stretch with the intervals of its series, at the finest resolution that has any."""
        chunk = Chunk(start, end)
        for resolution in RESOLUTIONS:
            chunk.resolution = resolution
            parts = [
                promql.named(f"hourly:{name}", promql.samples_an_hour(name, tenant, chunk.seconds)) for name in GAUGES
            ]
            parts += [promql.named(f"in_all:{name}", promql.samples(name, tenant, chunk.seconds)) for name in GAUGES]
            counts = await asyncio.gather(
                *(self.chunk_query(chunk, tenant, " or ".join(parts[i::4]), deadline) for i in range(4))
            )
            by_name = {labels["metric"]: value for found in counts for labels, value in found}
            if by_name:
                break
        for name in GAUGES:
            in_all = by_name.get(f"in_all:{name}")
            if in_all:
                hourly = by_name.get(f"hourly:{name}", 0.0)
                chunk.intervals[name] = promql.interval_of(hourly, in_all, chunk.seconds)
        return chunk

    async def coverage(self, chunk: Chunk, tenant: Tenant, deadline: Deadline) -> tuple[float, bool]:
        """Share of the stretch in which the exporter was alive, and whether that is enough."""
        best, enough = 0.0, False
        for name in promql.HEARTBEATS:
            if name not in chunk.intervals:
                continue
            step = promql.step_for(chunk.intervals[name])
            query = promql.seen_steps(name, tenant, chunk.intervals[name], chunk.seconds)
            for _, count in await self.chunk_query(chunk, tenant, query, deadline):
                share = min(1.0, count * step / chunk.seconds)
                if share >= best:
                    best, enough = share, share >= promql.coverage_threshold(chunk.seconds, step)
        return best, enough

    async def management(self, account: str, window: Window, deadline: Deadline) -> ManagementReading:
        """Cluster management by the integral of its rate; heartbeat and no such series is 0.

        Raises:
            SourceError
        """
        tenant = self.tenant(account)
        name = "kubecost_cluster_management_cost"

        async def read(start: int, end: int) -> tuple[float, float, bool, list[str]]:
            chunk = await self.open_chunk(start, end, tenant, deadline)
            share, enough = await self.coverage(chunk, tenant, deadline)
            usd = 0.0
            if name in chunk.intervals:
                interval = chunk.intervals[name]
                query = promql.integral(
                    promql.total(promql.current(name, tenant, (), interval), tenant),
                    chunk.seconds,
                    promql.step_for(interval),
                )
                usd = math.fsum(value for _, value in await self.chunk_query(chunk, tenant, query, deadline))
            return usd, share * chunk.seconds, enough, chunk.warnings

        parts = await asyncio.gather(*(read(start, end) for start, end in window.days()))
        source = self.source_of(window, [(seen, enough, warnings) for _, seen, enough, warnings in parts])
        known = source.status in ("ok", "partial")
        return ManagementReading(source=source, usd=math.fsum(p[0] for p in parts) if known else None)

    def source_of(self, window: Window, parts: Sequence[Seen], partial: bool = False) -> Source:
        """What became of asking, out of what each stretch said."""
        seen = math.fsum(seconds for seconds, _, _ in parts)
        warnings = tuple(dict.fromkeys(text for _, _, texts in parts for text in texts))
        status: Status = "ok"
        if seen == 0:
            status = "no_data"
        elif partial or warnings or not all(enough for _, enough, _ in parts):
            status = "partial"
        share = min(1.0, seen / window.seconds)
        return Source(name="thanos", status=status, fetched_at=int(self._clock()), coverage=share, warnings=warnings)

    async def allocation(
        self, account: str, window: Window, deadline: Deadline, labels: Sequence[str] = ()
    ) -> AllocationReading:
        """What the cluster cost by its metrics alone, pod by pod, with idle.

        Args:
            labels: pod labels that rows must carry, as stored (``label_team``).

        Raises:
            SourceError
        """
        tenant = self.tenant(account)
        readings = await asyncio.gather(
            *(_ChunkReader(self, tenant, deadline, labels).read(start, end) for start, end in window.days())
        )
        absent = sorted({name for one in readings for name in one.missing})
        uncovered = sorted(set.intersection(*(set(one.not_covered) for one in readings)) - set(absent))
        notes = [text for one in readings for text in one.warnings]
        source = self.source_of(
            window,
            [(one.seen_seconds, one.enough, []) for one in readings],
            partial=bool(notes or absent) or any(one.incomplete for one in readings),
        )
        alive = any(one.allocations for one in readings)
        if source.status != "no_data" and not alive:
            source = msgspec.structs.replace(source, status="no_data")
        source = msgspec.structs.replace(source, warnings=tuple(dict.fromkeys(notes)))
        sets = tuple(AllocationSet(one.start, one.end, one.allocations) for one in readings if one.allocations)
        return AllocationReading(
            source=source,
            sets=sets if source.status != "no_data" else (),
            missing=tuple(absent),
            not_covered=tuple(uncovered),
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

    def __init__(self, source: ThanosSource, tenant: Tenant, deadline: Deadline, labels: Sequence[str]) -> None:
        self.source = source
        self.tenant = tenant
        self.deadline = deadline
        self.labels = labels
        self.notes: list[str] = []
        self.incomplete = False

    async def read(self, start: int, end: int) -> _Read:
        self.chunk = await self.source.open_chunk(start, end, self.tenant, self.deadline)
        share, enough = await self.source.coverage(self.chunk, self.tenant, self.deadline)
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
            not_covered=("network",) if network_state == "not_covered" else (),
            warnings=tuple(dict.fromkeys([*self.notes, *self.chunk.warnings])),
        )  # fmt: skip

    async def ask(self, query: str) -> list[tuple[Labels, float]]:
        return await self.source.chunk_query(self.chunk, self.tenant, query, self.deadline)

    def _now(self, metric: str, *identity: str, **labels: str) -> str:
        return self.chunk.now(self.tenant, metric, *identity, **labels)

    def _integral(self, rate: str, *metrics: str) -> str:
        return self.chunk.integral(rate, *metrics)

    async def _by_pod(self, query: str, pod_label: str = "pod") -> dict[Pod, float]:
        return {
            (labels.get("namespace", ""), labels.get(pod_label, "")): value for labels, value in await self.ask(query)
        }

    async def _compute(self, component: str, amount: str, price: str, unit: str) -> dict[Pod, float]:
        """Cost of what was allocated on nodes, by pod; an amount without a price is told of."""
        tenant = self.tenant
        if amount not in self.chunk.intervals:
            return {}
        amounts = f"({self._now(amount, 'namespace', 'pod', 'container', 'node')}{unit})"
        if price not in self.chunk.intervals:
            self._unpriced(component)
            return {}
        prices = self._now(price, "node")
        costs, without = await asyncio.gather(
            self._by_pod(
                self._integral(
                    promql.total(promql.priced(amounts, prices, tenant, "node"), tenant, "namespace", "pod"),
                    amount,
                    price,
                )
            ),
            self.ask(
                self._integral(promql.total(promql.unpriced(amounts, prices, tenant, "node"), tenant), amount, price)
            ),
        )
        if any(value > 0 for _, value in without):
            self._unpriced(component)
        return costs

    def _unpriced(self, component: str) -> None:
        self.incomplete = True
        self.notes.append(f"{component}: some of it ran on nodes whose price is not known, and is not counted")

    async def _nodes(self) -> _Nodes | None:
        """What all nodes cost, by resource, adding up to their total price; None where that is not known."""
        there, tenant = self.chunk.intervals, self.tenant
        if "node_total_hourly_cost" not in there:
            return None
        total = self._integral(
            promql.total(self._now("node_total_hourly_cost", "node"), tenant), "node_total_hourly_cost"
        )
        usd = math.fsum(value for _, value in await self.ask(total))
        parts = []
        for capacity, price, unit in (
            ("kube_node_status_capacity_cpu_cores", "node_cpu_hourly_cost", ""),
            ("kube_node_status_capacity_memory_bytes", "node_ram_hourly_cost", f" / {GIB}"),
            ("node_gpu_count", "node_gpu_hourly_cost", ""),
        ):
            value = 0.0
            if capacity in there and price in there:
                amounts = f"({self._now(capacity, 'node')}{unit})"
                rate = promql.total(promql.priced(amounts, self._now(price, "node"), tenant, "node"), tenant)
                value = math.fsum(v for _, v in await self.ask(self._integral(rate, capacity, price)))
            parts.append(value)
        whole = math.fsum(parts)
        if not parts[0] or not parts[1]:
            return _Nodes(usd, None)
        return _Nodes(usd, Costs(*(usd * part / whole for part in parts)))

    async def _volumes(self) -> dict[Pod, float]:
        """Cost of volumes by the pod that mounts them, else the namespace that claims them, else ``__unmounted__``."""
        there, tenant = self.chunk.intervals, self.tenant
        capacity, price = "kube_persistentvolume_capacity_bytes", "pv_hourly_cost"
        if capacity not in there or price not in there:
            return {}
        rate = volume_rate(self.chunk, tenant)
        costs, claims, mounts = await asyncio.gather(
            self.ask(self._integral(rate, capacity, price)),
            self._seen("kube_persistentvolumeclaim_info", "volumename", "namespace"),
            self._seen("pod_pvc_allocation", "persistentvolume", "namespace", "pod"),
        )
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

    async def _seen(self, metric: str, *identity: str) -> list[Labels]:
        """The label sets of a metric that was there at any time of the stretch."""
        there = f"max_over_time({promql.selector(metric, self.tenant)}[{self.chunk.seconds}s])"
        return [labels for labels, _ in await self.ask(f"max by ({self.tenant.by(*identity)}) ({there})")]

    async def _network(self) -> tuple[dict[Pod, float], dict[Pod, Egress], Literal["ok", "missing", "not_covered"]]:
        """Bytes sent times the price of where they went."""
        tenant, seconds = self.tenant, self.chunk.seconds
        labels = ("namespace", "pod_name", "internet", "same_zone", "same_region", "sameZone", "sameRegion")
        sent = await self.ask(promql.increase("kubecost_pod_network_egress_bytes_total", tenant, labels, seconds))
        if not sent:
            return {}, {}, "not_covered"
        prices = await self.ask(
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
        rate = promql.total(self._now(name, "namespace", "service_name", "ingress_ip"), self.tenant, "namespace")
        return {(labels.get("namespace", ""), ""): usd for labels, usd in await self.ask(self._integral(rate, name))}

    async def _usage(self) -> dict[Pod, Usage]:
        """Requests and usage in core-minutes and byte-minutes."""
        tenant, there = self.tenant, self.chunk.intervals
        requests, memory = "kube_pod_container_resource_requests", "container_memory_working_set_bytes"

        async def requested(resource: str) -> dict[Pod, float]:
            if requests not in there:
                return {}
            rate = promql.total(
                self._now(requests, "namespace", "pod", "container", resource=resource), tenant, "namespace", "pod"
            )
            return await self._by_pod(self._integral(rate, requests))

        async def resident() -> dict[Pod, float]:
            if memory not in there:
                return {}
            rate = promql.total(
                self._now(memory, "namespace", "pod", "container", container="!"), tenant, "namespace", "pod"
            )
            return await self._by_pod(self._integral(rate, memory))

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
        return await read_owners(self.ask, self.tenant, self.chunk.seconds)

    async def _labelled(self) -> dict[Pod, dict[str, str]]:
        if not self.labels:
            return {}
        return {
            (labels.get("namespace", ""), labels.get("pod", "")): {
                name.removeprefix("label_"): value for name, value in labels.items() if name.startswith("label_")
            }
            for labels in await self._seen("kube_pod_labels", "namespace", "pod", *self.labels)
        }


def volume_rate(chunk: Chunk, tenant: Tenant) -> str:
    """USD per hour of each volume; older exporters name it ``volumename`` alone."""
    capacity, price = "kube_persistentvolume_capacity_bytes", "pv_hourly_cost"
    lookback = f"[{int(2 * chunk.intervals[price] * 1000) - 1}ms]"
    older = promql.selector(price, tenant, persistentvolume="")
    prices = (
        f"({chunk.now(tenant, price, 'persistentvolume', persistentvolume='!')} or "
        f"max by ({tenant.by('persistentvolume')}) "
        f'(label_replace(last_over_time({older}{lookback}), "persistentvolume", "$1", "volumename", "(.+)")))'
    )
    amounts = f"({chunk.now(tenant, capacity, 'persistentvolume')} / {GIB})"
    return promql.priced(amounts, prices, tenant, "persistentvolume")


Ask = Callable[[str], Awaitable[list[tuple[Labels, float]]]]


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


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadAnswer("the metrics source answered with a value that is no number")
    return value
