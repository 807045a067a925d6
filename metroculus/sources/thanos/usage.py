"""Usage of containers and what kube-state-metrics says of quotas, requests and nodes, out of Thanos."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from msgspec import Struct

from metroculus.cost_model.savings import ContainerUsage
from metroculus.sources.source import Metadata, NodeSpecification, Quota, WorkloadResources
from metroculus.sources.thanos import promql
from metroculus.sources.thanos.client import Labels, Querier, Samples
from metroculus.sources.thanos.costs import Ask, read_owners
from tools.deadline import Deadline
from tools.window import Window

NOW_SECONDS = 600
"""How far back "now" reaches."""

Who = tuple[str, str, str]


def _who(labels: Labels) -> Who:
    return labels.get("namespace", ""), labels.get("pod", ""), labels.get("container", "")


class _Containers(Struct, frozen=True):
    """What the metrics say of each container of a window."""

    hours: dict[Who, float]
    cpu_p95: dict[Who, float]
    ram_max: dict[Who, float]
    cpu_request: dict[Who, float]
    ram_request: dict[Who, float]
    node: dict[Who, str]
    cpu_price: dict[str, float]
    """USD per core and hour, by node."""
    ram_price: dict[str, float]
    owners: dict[tuple[str, str], tuple[str, str]]
    sent: dict[tuple[str, str], float]
    """Bytes by namespace and pod; empty where nobody counted."""


async def _containers(thanos: Querier, account: str, window: Window, deadline: Deadline) -> _Containers:
    """Raises: SourceError"""
    tenant, seconds = thanos.tenant(account), window.seconds
    by = tenant.by("namespace", "pod", "container")

    async def ask(query: str) -> list[tuple[Labels, float]]:
        found, _ = await thanos.query(tenant, query, window.end - 0.001, deadline)
        return found

    async def by_container(query: str) -> dict[Who, float]:
        return {_who(labels): value for labels, value in await ask(f"max by ({by}) ({query})")}

    def over(metric: str, function: str, **labels: str) -> str:
        return f"{function}({promql.selector(metric, tenant, **labels)}[{seconds}s])"

    rate = f"rate({promql.selector('container_cpu_usage_seconds_total', tenant, container='!')}[10m])"
    allocation = promql.selector("container_cpu_allocation", tenant)
    there, placed = f"max by ({by}) ({allocation})", tenant.by("namespace", "pod", "container", "node")
    cpu, ram, cpu_request, ram_request, hours = await asyncio.gather(
        by_container(f"quantile_over_time(0.95, {rate}[{seconds}s:10m])"),
        by_container(over("container_memory_working_set_bytes", "max_over_time", container="!")),
        by_container(over("kube_pod_container_resource_requests", "max_over_time", resource="cpu")),
        by_container(over("kube_pod_container_resource_requests", "max_over_time", resource="memory")),
        by_container(f"count_over_time(({there})[{seconds}s:10m]) / 6"),
    )
    egress = promql.increase("kubecost_pod_network_egress_bytes_total", tenant, ("namespace", "pod_name"), seconds)
    nodes, cpu_price, ram_price, owners, sent = await asyncio.gather(
        ask(f"max by ({placed}) (max_over_time({allocation}[{seconds}s]))"),
        _by_node(ask, f"max by ({tenant.by('node')}) ({over('node_cpu_hourly_cost', 'avg_over_time')})"),
        _by_node(ask, f"max by ({tenant.by('node')}) ({over('node_ram_hourly_cost', 'avg_over_time')})"),
        read_owners(ask, tenant, seconds),
        ask(egress),
    )
    return _Containers(
        hours=hours,
        cpu_p95=cpu,
        ram_max=ram,
        cpu_request=cpu_request,
        ram_request=ram_request,
        node={_who(labels): labels.get("node", "") for labels, _ in nodes},
        cpu_price=cpu_price,
        ram_price=ram_price,
        owners=owners,
        sent={(labels.get("namespace", ""), labels.get("pod_name", "")): value for labels, value in sent},
    )


async def container_usages(thanos: Querier, account: str, window: Window, deadline: Deadline) -> list[ContainerUsage]:
    """Requests, cpu at the 95th percentile and memory at its maximum, by controller and container.

    Raises:
        SourceError
    """
    seen = await _containers(thanos, account, window, deadline)
    groups: dict[tuple[str, str, str, str], list[Who]] = defaultdict(list)
    for who in seen.hours:
        kind, controller = seen.owners.get(who[:2], ("", who[1]))
        groups[(who[0], kind, controller, who[2])].append(who)

    def largest(values: dict[Who, float], members: list[Who]) -> float:
        return max(values.get(who, 0.0) for who in members)

    return [
        ContainerUsage(
            namespace=namespace,
            controller=controller,
            controller_kind=kind,
            container=container,
            cpu_request=largest(seen.cpu_request, members),
            cpu_p95=largest(seen.cpu_p95, members),
            ram_request=largest(seen.ram_request, members),
            ram_max=largest(seen.ram_max, members),
            container_hours=sum(seen.hours[who] for who in members),
            egress_bytes=sum(seen.sent.get(who[:2], 0.0) for who in members) if seen.sent else None,
            usd_per_core_hour=_mean(members, seen.node, seen.cpu_price, seen.hours),
            usd_per_gib_hour=_mean(members, seen.node, seen.ram_price, seen.hours),
        )
        for (namespace, kind, controller, container), members in sorted(groups.items())
    ]


async def _by_node(ask: Ask, query: str) -> dict[str, float]:
    return {labels.get("node", ""): value for labels, value in await ask(query)}


def _mean(members: list[Who], node_of: dict[Who, str], price: dict[str, float], hours: dict[Who, float]) -> float:
    """Mean price of where the containers ran, by their hours."""
    whole = sum(hours[who] for who in members)
    return sum(price.get(node_of.get(who, ""), 0.0) * hours[who] for who in members) / whole if whole else 0.0


async def metadata(thanos: Querier, account: str, at: float, deadline: Deadline) -> Metadata:
    """Quotas, workloads' requests and limits, and nodes, within the ten minutes before ``at``.

    Raises:
        SourceError
    """
    tenant = thanos.tenant(account)

    async def seen(metric: str, *identity: str, **labels: str) -> list[tuple[Labels, float]]:
        there = f"last_over_time({promql.selector(metric, tenant, **labels)}[{NOW_SECONDS}s])"
        found, _ = await thanos.query(tenant, f"max by ({tenant.by(*identity)}) ({there})", at, deadline)
        return found

    async def ask(query: str) -> list[tuple[Labels, float]]:
        return (await thanos.query(tenant, query, at, deadline))[0]

    container = ("namespace", "pod", "container", "resource")
    quotas, requests, limits, owners = await asyncio.gather(
        seen("kube_resourcequota", "namespace", "resourcequota", "resource", "type"),
        seen("kube_pod_container_resource_requests", *container),
        seen("kube_pod_container_resource_limits", *container),
        read_owners(ask, tenant, NOW_SECONDS),
    )
    nodes, cores, ram, spot, gpus, labels = await asyncio.gather(
        seen("node_total_hourly_cost", "node", "instance_type", "provider_id"),
        seen("kube_node_status_capacity_cpu_cores", "node"),
        seen("kube_node_status_capacity_memory_bytes", "node"),
        seen("kubecost_node_is_spot", "node"),
        seen("node_gpu_count", "node"),
        seen("kube_node_labels", "node", "label_topology_kubernetes_io_zone"),
    )
    return Metadata(
        _quotas(quotas), _workloads(requests, limits, owners), _nodes(nodes, cores, ram, spot, gpus, labels)
    )


def _quotas(found: Samples) -> tuple[Quota, ...]:
    values: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for labels, value in found:
        key = (labels.get("namespace", ""), labels.get("resourcequota", ""), labels.get("resource", ""))
        values[key][labels.get("type", "")] = value
    return tuple(Quota(*key, kinds.get("hard"), kinds.get("used")) for key, kinds in sorted(values.items()))


def _workloads(
    requests: Samples, limits: Samples, owners: dict[tuple[str, str], tuple[str, str]]
) -> tuple[WorkloadResources, ...]:
    sums: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    pods: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for what, found in (("request", requests), ("limit", limits)):
        for labels, value in found:
            pod = labels.get("pod", "")
            kind, controller = owners.get((labels.get("namespace", ""), pod), ("", pod))
            key = (labels.get("namespace", ""), controller, kind)
            pods[key].add(pod)
            name = f"{labels.get('resource', '')}_{what}"
            sums[key][name] = sums[key].get(name, 0.0) + value
    return tuple(
        WorkloadResources(
            *key,
            len(pods[key]),
            one.get("cpu_request"),
            one.get("cpu_limit"),
            one.get("memory_request"),
            one.get("memory_limit"),
        )
        for key, one in sorted(sums.items())
    )


def _nodes(
    nodes: Samples, cores: Samples, ram: Samples, spot: Samples, gpus: Samples, labels: Samples
) -> tuple[NodeSpecification, ...]:
    def by_node(found: Samples) -> dict[str, float]:
        return {one.get("node", ""): value for one, value in found}

    cores_of, ram_of, spot_of, gpus_of = map(by_node, (cores, ram, spot, gpus))
    zones = {one.get("node", ""): one.get("label_topology_kubernetes_io_zone", "") for one, _ in labels}
    types = {one.get("node", ""): one for one, _ in nodes}
    return tuple(
        NodeSpecification(
            name=name,
            instance_type=types.get(name, {}).get("instance_type", ""),
            zone=zones.get(name, ""),
            provider_id=types.get(name, {}).get("provider_id", ""),
            spot=bool(spot_of[name]) if name in spot_of else None,
            cpu_cores=cores_of.get(name),
            ram_bytes=ram_of.get(name),
            gpu_count=gpus_of.get(name),
        )
        for name in sorted({*types, *cores_of})
    )
