"""The world in the words of the upstreams: allocation sets, assets and savings as JSON values.

Numbers are rounded to five decimals and NaN is null, as upstream (opencost ``core/pkg/opencost/allocation_json.go``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from simulator.costs import (
    UNMOUNTED,
    Idle,
    NodeCost,
    PodCost,
    by_machine,
    idle_cost,
    node_costs,
    pod_costs,
    recorded,
)
from simulator.world import GIB, HOUR, Volume, World, overlap, sanitized

Json = dict[str, Any]


def stamp(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rounded(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _ratio(usage: float, request: float, cost: float) -> float | None:
    """Usage over request, null (NaN) where neither is there."""
    if request:
        return rounded(usage / request)
    return None if not usage and not cost else 1.0 if usage else 0.0


def allocation_rows(
    world: World,
    start: int,
    end: int,
    now: int,
    *,
    adjusted: bool,
    aggregate: tuple[str, ...],
    with_idle: bool,
    idle_by_node: bool = False,
    balancer_drift_seconds: int = 0,
    tenancy_shared: bool = False,
    keep_filter: dict[str, str] | None = None,
) -> dict[str, Json]:
    """One set: everything allocated in the window, keyed as upstream keys it. Empty where nothing was recorded."""
    clipped = recorded(world, start, end, now)
    if not clipped.parts:
        return {}
    pods = pod_costs(world, clipped, now, adjusted)
    if balancer_drift_seconds:
        for balancer in world.balancers:
            for pod in pods:
                if pod.pod in balancer.pods and pod.load_balancer:
                    drift = balancer.usd_per_hour * balancer_drift_seconds / HOUR / len(balancer.pods)
                    pod.load_balancer += drift
    nodes = node_costs(world, clipped, now, adjusted)
    idle = idle_cost(world, nodes, pods, now, adjusted)
    groups: dict[str, list[PodCost]] = defaultdict(list)
    for pod in pods:
        if keep_filter and any(_property(pod, key) != value for key, value in keep_filter.items()):
            continue
        groups[_key(world, pod, aggregate)].append(pod)
    window = {"start": stamp(start), "end": stamp(end)}
    whole_hours = sum(b - a for a, b in clipped.parts) / HOUR
    shared = world.management_usd_per_hour * whole_hours / max(1, len(pods)) if tenancy_shared else 0.0
    rows = {
        key: _row(world, key, members, window, shared * len(members), bool(aggregate))
        for key, members in sorted(groups.items())
    }
    if with_idle:
        by_cluster = "cluster" in aggregate or (not aggregate and adjusted)
        name = f"{world.cluster_id}/__idle__" if by_cluster else "__idle__"
        rows = {name: _idle_row(world, name, idle, window, clipped.parts)} | rows
    return rows


def joined_rows(sets: list[dict[str, Json]]) -> dict[str, Json]:
    """What one upstream says of several clusters: rows of one name become one, without what they do not agree on."""
    rows: dict[str, Json] = {}
    for found in sets:
        for key, row in found.items():
            rows[key] = _added(rows[key], row) if key in rows else row
    return rows


_NOT_ADDED = {"cpuEfficiency", "ramEfficiency", "totalEfficiency", "minutes"}


def _added(one: Json, other: Json) -> Json:
    added = dict(one)
    for key, value in one.items():
        if isinstance(value, (int, float)) and key not in _NOT_ADDED:
            added[key] = rounded(value + (other[key] or 0))
    added["properties"] = {k: v for k, v in one["properties"].items() if other["properties"].get(k) == v}
    added["start"], added["end"] = min(one["start"], other["start"]), max(one["end"], other["end"])
    return added


def _property(pod: PodCost, name: str) -> str:
    container = pod.container
    if name == "namespace":
        return pod.namespace
    if name == "pod":
        return pod.pod
    if container is None:
        return ""
    return {
        "node": container.node.name,
        "controller": container.controller,
        "controllerKind": container.kind,
        "container": container.name,
    }.get(name, "")


def _key(world: World, pod: PodCost, aggregate: tuple[str, ...]) -> str:
    container = pod.container
    if not aggregate:
        node = container.node.name if container else ""
        name = container.name if container else UNMOUNTED
        return f"{world.cluster_id}/{node}/{pod.namespace}/{pod.pod}/{name}"
    return "/".join(_key_part(world, pod, part, len(aggregate) > 1) for part in aggregate)


def _key_part(world: World, pod: PodCost, part: str, several: bool) -> str:
    container = pod.container
    if part == "cluster":
        return world.cluster_id
    if part == "namespace":
        return pod.namespace
    if part == "pod":
        return pod.pod
    if part == "node":
        return container.node.name if container else ""
    if part == "container":
        return container.name if container else "__unmounted__"
    if part == "controllerKind":
        return container.kind if container else "__unallocated__"
    if part == "controller":
        if container is None:
            return "__unallocated__"
        return f"{container.kind}:{container.controller}" if several else container.controller
    if part == "service":
        return container.services[0] if container and container.services else "__unallocated__"
    if part.startswith("label:"):
        return _label(container.labels if container else {}, part[6:])
    if part.startswith("annotation:"):
        return "__unallocated__"
    return ""


def _label(labels: dict[str, str], name: str) -> str:
    return next((v for k, v in labels.items() if sanitized(k) == sanitized(name)), "__unallocated__")


def _common(values: Iterable[Any]) -> Any:
    """The one value that all have, or None."""
    found = list(values)
    return found[0] if all(v == found[0] for v in found) else None


def _properties(world: World, members: list[PodCost], aggregated: bool) -> Json:
    """What a row keeps: properties on which its parts agree; a row that is a sum never has services."""
    properties: Json = {"cluster": world.cluster_id}
    containers = [m.container for m in members]
    if any(c is None for c in containers):
        spaces = {m.namespace for m in members}
        if len(members) == 1:
            properties |= {"container": UNMOUNTED, "namespace": members[0].namespace, "pod": UNMOUNTED}
        elif len(spaces) == 1:
            properties["namespace"] = members[0].namespace
        return properties
    known = [c for c in containers if c is not None]
    for key, values in (
        ("node", [c.node.name for c in known]),
        ("container", [c.name for c in known]),
        ("controller", [c.controller for c in known]),
        ("controllerKind", [c.kind for c in known]),
        ("namespace", [c.namespace for c in known]),
        ("pod", [c.pod for c in known]),
        ("providerID", [c.node.provider_id for c in known]),
    ):
        value = _common(values)
        if value is not None:
            properties[key] = value
    services = _common([c.services for c in known])
    if services and not aggregated:
        properties["services"] = list(services)
    labels = dict(set.intersection(*[set(c.labels.items()) for c in known]))
    if labels:
        properties["labels"] = {sanitized(name): value for name, value in sorted(labels.items())}
    namespace = properties.get("namespace")
    if namespace:
        properties["namespaceLabels"] = world.namespace_labels[namespace]
    return properties


def _row(world: World, key: str, members: list[PodCost], window: Json, shared: float, aggregated: bool) -> Json:
    start, end = min(m.start for m in members), max(m.end for m in members)
    hours = (end - start) / HOUR
    total = math.fsum(m.total for m in members) + shared

    def add(name: str) -> float:
        return math.fsum(getattr(m, name) for m in members)

    cpu, ram = add("cpu"), add("ram")
    cpu_efficiency = _ratio(add("cpu_usage_hours"), add("cpu_request_hours"), cpu)
    ram_efficiency = _ratio(add("ram_usage_gib_hours"), add("ram_request_gib_hours"), ram)
    pvs: dict[str, tuple[float, float]] = {}
    for name, (gib_hours, usd) in ((name, value) for m in members for name, value in m.pvs.items()):
        known = pvs.get(name, (0.0, 0.0))
        pvs[name] = (known[0] + gib_hours, known[1] + usd)
    pv_gib_hours = math.fsum(gib_hours for gib_hours, _ in pvs.values())
    return {
        "name": key,
        "properties": _properties(world, members, aggregated),
        "window": window,
        "start": stamp(start),
        "end": stamp(end),
        "minutes": rounded((end - start) / 60),
        "cpuCores": rounded(add("cpu_core_hours") / hours),
        "cpuCoreRequestAverage": rounded(add("cpu_request_hours") / hours),
        "cpuCoreUsageAverage": rounded(add("cpu_usage_hours") / hours),
        "cpuCoreHours": rounded(add("cpu_core_hours")),
        "cpuCost": rounded(cpu),
        "cpuCostAdjustment": rounded(add("cpu_adjustment")),
        "cpuCostIdle": 0,
        "cpuEfficiency": cpu_efficiency,
        "gpuCount": rounded(add("gpu_hours") / hours),
        "gpuHours": rounded(add("gpu_hours")),
        "gpuCost": rounded(add("gpu")),
        "gpuCostAdjustment": 0,
        "gpuCostIdle": 0,
        **_network(members),
        "loadBalancerCost": rounded(add("load_balancer")),
        "loadBalancerCostAdjustment": rounded(add("load_balancer_adjustment")),
        "pvBytes": rounded(pv_gib_hours * GIB / hours),
        "pvByteHours": rounded(pv_gib_hours * GIB),
        "pvCost": rounded(add("pv")),
        "pvs": _volumes_of(world, pvs),
        "pvCostAdjustment": 0,
        "ramBytes": rounded(add("ram_gib_hours") * GIB / hours),
        "ramByteRequestAverage": rounded(add("ram_request_gib_hours") * GIB / hours),
        "ramByteUsageAverage": rounded(add("ram_usage_gib_hours") * GIB / hours),
        "ramByteHours": rounded(add("ram_gib_hours") * GIB),
        "ramCost": rounded(ram),
        "ramCostAdjustment": rounded(add("ram_adjustment")),
        "ramCostIdle": 0,
        "ramEfficiency": ram_efficiency,
        "externalCost": 0,
        "sharedCost": rounded(shared),
        "totalCost": rounded(total),
        "totalEfficiency": rounded(_weighted(cpu_efficiency, cpu, ram_efficiency, ram)),
        "lbAllocations": None,
    }


def _network(members: list[PodCost]) -> Json:
    def sent(reach: str) -> float | None:
        return rounded(math.fsum(m.egress.get(reach, 0.0) for m in members))

    return {
        "networkTransferBytes": rounded(math.fsum(m.egress_bytes for m in members)),
        "networkReceiveBytes": 0,
        "networkCost": rounded(math.fsum(m.network for m in members)),
        "networkCrossZoneCost": sent("zone"),
        "networkCrossRegionCost": sent("region"),
        "networkInternetCost": sent("internet"),
        "networkCostAdjustment": 0,
    }


def _weighted(cpu_efficiency: float | None, cpu: float, ram_efficiency: float | None, ram: float) -> float:
    """Both efficiencies by the cost of each; NaN where neither costs anything."""
    weight = cpu + ram
    return ((cpu_efficiency or 0.0) * cpu + (ram_efficiency or 0.0) * ram) / weight if weight else math.nan


def _volumes_of(world: World, pvs: dict[str, tuple[float, float]]) -> Json | None:
    return {
        f"cluster={world.cluster_id}:name={name}": {
            "byteHours": gib_hours * GIB,
            "cost": usd,
            "providerID": f"vol-{name}",
            "adjustment": 0,
        }
        for name, (gib_hours, usd) in pvs.items()
    } or None


def _idle_row(world: World, name: str, idle: Idle, window: Json, parts: tuple[tuple[int, int], ...]) -> Json:
    zeros = dict.fromkeys(
        [
            "cpuCores",
            "cpuCoreRequestAverage",
            "cpuCoreUsageAverage",
            "cpuCoreHours",
            "cpuCostIdle",
            "cpuEfficiency",
            "gpuCount",
            "gpuHours",
            "gpuCostAdjustment",
            "gpuCostIdle",
            "networkTransferBytes",
            "networkReceiveBytes",
            "networkCost",
            "networkCrossZoneCost",
            "networkCrossRegionCost",
            "networkInternetCost",
            "networkCostAdjustment",
            "loadBalancerCost",
            "loadBalancerCostAdjustment",
            "pvBytes",
            "pvByteHours",
            "pvCost",
            "pvCostAdjustment",
            "ramBytes",
            "ramByteRequestAverage",
            "ramByteUsageAverage",
            "ramByteHours",
            "ramCostIdle",
            "ramEfficiency",
            "externalCost",
            "sharedCost",
            "totalEfficiency",
        ],
        0,
    )
    return {
        "name": name,
        "properties": {"cluster": world.cluster_id},
        "window": window,
        "start": stamp(parts[0][0]),
        "end": stamp(parts[-1][1]),
        "minutes": rounded((parts[-1][1] - parts[0][0]) / 60),
        **zeros,
        "cpuCost": rounded(idle.cpu),
        "cpuCostAdjustment": rounded(idle.cpu_adjustment),
        "ramCost": rounded(idle.ram),
        "ramCostAdjustment": rounded(idle.ram_adjustment),
        "gpuCost": rounded(idle.gpu),
        "pvs": None,
        "totalCost": rounded(idle.total),
    }


def assets(
    world: World, start: int, end: int, now: int, *, adjusted: bool, with_management: bool, asset_types: set[str]
) -> dict[str, Json]:
    """The assets of one window, keyed as upstream keys them; an asset's ``totalCost`` holds its adjustment."""
    clipped = recorded(world, start, end, now)
    if not clipped.parts:
        return {}
    window = {"start": stamp(start), "end": stamp(end)}
    pods = pod_costs(world, clipped, now, adjusted)
    found: dict[str, Json] = {}

    def put(
        kind: str, category: str, name: str, provider_id: str, cost: float, since: int, until: int, **more: Any
    ) -> None:
        key = f"custom/__undefined__/__undefined__/{category}/{world.cluster_id}/{kind}/Kubernetes/{provider_id}/{name}"
        found[key] = {
            "type": kind,
            "properties": {
                "category": category,
                "provider": "custom",
                "service": "Kubernetes",
                "cluster": world.cluster_id,
                "name": name,
                "providerID": provider_id,
            },
            "labels": more.pop("labels", {}),
            "window": window,
            "start": stamp(since),
            "end": stamp(until),
            "minutes": (until - since) / 60,
            **more,
            "totalCost": round(cost, 6),
        }

    first, last = clipped.parts[0][0], clipped.parts[-1][1]
    for cost in by_machine(node_costs(world, clipped, now, adjusted)):
        _put_node(put, cost, pods)
    _put_volumes(put, world, pods, first, last)
    hours = sum(b - a for a, b in clipped.parts) / HOUR
    for balancer in world.balancers:
        there = sum(overlap(a, b, balancer.start, balancer.end) for a, b in clipped.parts) / HOUR
        if not there:
            continue
        credit = -balancer.credit_usd_per_hour * there if adjusted else 0.0
        put(
            "LoadBalancer", "Network", f"{balancer.namespace}/{balancer.service}", balancer.ip,
            balancer.usd_per_hour * there + credit, max(first, balancer.start), min(last, balancer.end),
            adjustment=credit, private=False, ip=balancer.ip,
        )  # fmt: skip
    if adjusted:
        put(
            "Network", "Network", f"{world.cluster_id}-network", "", math.fsum(p.network for p in pods), first, last,
            adjustment=0.0,
        )  # fmt: skip
    if with_management:
        usd = world.management_usd_per_hour * hours
        put("ClusterManagement", "Management", "cluster-management", "", usd, first, last)
    return {key: asset for key, asset in found.items() if not asset_types or asset["type"].lower() in asset_types}


def _put_volumes(put: Any, world: World, pods: list[PodCost], first: int, last: int) -> None:
    spans: dict[str, tuple[int, int]] = {}
    newest: dict[str, Volume] = {}
    for volume in world.volumes:
        if volume.start < last and volume.end > first:
            since, until = spans.get(volume.name, (volume.start, volume.end))
            spans[volume.name] = (min(since, volume.start), max(until, volume.end))
            newest[volume.name] = volume
    for name, volume in newest.items():
        shares = [pod.pvs[name] for pod in pods if name in pod.pvs]
        if not shares:
            continue
        gib_hours, usd = (math.fsum(share[place] for share in shares) for place in (0, 1))
        put(
            "Disk", "Storage", name, f"vol-{name}", usd, max(spans[name][0], first), min(spans[name][1], last),
            storageClass=volume.storage_class, volumeName=name if volume.claim else "", claimName=volume.claim,
            claimNamespace=volume.namespace, **_disk(volume, gib_hours),
        )  # fmt: skip
    for disk in world.boot_disks:
        seconds = overlap(first, last, disk.start, disk.end)
        if seconds:
            gib_hours = disk.gib * seconds / HOUR
            put(
                "Disk", "Storage", disk.name, f"vol-{disk.name}", gib_hours * disk.usd_per_gib_hour,
                max(disk.start, first), min(disk.end, last), storageClass="__local__", volumeName="", claimName="",
                claimNamespace="", **_disk(disk, gib_hours),
            )  # fmt: skip


def _disk(volume: Volume, gib_hours: float) -> Json:
    return {
        "byteHours": gib_hours * GIB,
        "bytes": volume.gib * GIB,
        "byteHoursUsed": None,
        "byteUsageMax": None,
        "breakdown": {"idle": 1, "other": 0, "system": 0, "user": 0},
        "adjustment": 0.0,
    }


def _put_node(put: Any, cost: NodeCost, pods: list[PodCost]) -> None:
    node = cost.node
    mine = [p for p in pods if p.container and p.container.node.provider_id == node.provider_id]
    cpu_used = math.fsum(p.cpu_usage_hours for p in mine) / (node.cores * cost.hours)
    ram_used = math.fsum(p.ram_usage_gib_hours for p in mine) / (node.ram_gib * cost.hours)
    put(
        "Node",
        "Compute",
        node.name,
        node.provider_id,
        cost.total,
        cost.first,
        cost.last,
        labels={
            "node_kubernetes_io_instance_type": node.instance_type,
            "topology_kubernetes_io_zone": node.zone,
        },
        nodeType=node.instance_type,
        cpuCores=node.cores,
        ramBytes=node.ram_gib * GIB,
        cpuCoreHours=node.cores * cost.hours,
        ramByteHours=node.ram_gib * GIB * cost.hours,
        GPUHours=node.gpus * cost.hours,
        cpuBreakdown={"idle": 1 - cpu_used, "other": 0, "system": 0, "user": cpu_used},
        ramBreakdown={"idle": 1 - ram_used, "other": 0, "system": 0, "user": ram_used},
        preemptible=1.0 if node.spot else 0.0,
        discount=0.0,
        cpuCost=round(cost.cpu, 6),
        gpuCost=round(cost.gpu, 6),
        gpuCount=node.gpus,
        ramCost=round(cost.ram, 6),
        adjustment=round(cost.adjustment, 6),
        overhead={"CpuOverheadFraction": 0, "RamOverheadFraction": 0, "OverheadCostFraction": 0},
    )
