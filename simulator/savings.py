"""Kubecost's savings answers, in both shapes that Kubecost has had, and the detail of request sizing."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from simulator.world import GIB, Container, World

HOURS_A_MONTH = 730
TARGET_CPU, TARGET_RAM = 0.8, 0.85
FLOOR_CORES, FLOOR_GIB = 0.01, 0.03125


def _long_lived(world: World) -> list[Container]:
    return [c for c in world.containers if c.kind != "job"]


def request_sizing(world: World) -> dict[str, Any]:
    """``/model/savings/requestSizingV2``: no envelope, capital keys, as Kubecost 2 and 3 answer."""
    groups: dict[tuple[str, str, str, str], list[Container]] = defaultdict(list)
    for container in _long_lived(world):
        groups[(container.namespace, container.kind, container.controller, container.name)].append(container)
    recommendations: list[dict[str, Any]] = []
    for (namespace, kind, controller, name), members in sorted(groups.items()):
        peak = 1 + max(members[0].daily, 0.0)
        cpu_use, ram_use = members[0].cpu_usage * peak, members[0].ram_usage_gib * peak
        target_cpu = max(cpu_use / TARGET_CPU, FLOOR_CORES)
        target_ram = max(ram_use / TARGET_RAM, FLOOR_GIB)
        cpu = sum(max(0.0, m.cpu_request - target_cpu) * m.node.usd_per_core_hour for m in members) * HOURS_A_MONTH
        ram = sum(max(0.0, m.ram_request_gib - target_ram) * m.node.usd_per_gib_hour for m in members) * HOURS_A_MONTH
        if cpu + ram <= 0:
            continue
        recommendations.append(
            {
                "clusterID": world.cluster_id,
                "namespace": namespace,
                "controllerKind": kind,
                "controllerName": controller,
                "containerName": name,
                "monthlySavings": {"cpu": round(cpu, 5), "memory": round(ram, 5), "total": round(cpu + ram, 5)},
                "normalizedRecommendedRequest": {
                    "cpuInMilliCores": round(target_cpu * 1000, 3),
                    "memoryInMiB": round(target_ram * 1024, 3),
                },
                "normalizedLatestKnownRequest": {
                    "cpuInMilliCores": round(members[0].cpu_request * 1000, 3),
                    "memoryInMiB": round(members[0].ram_request_gib * 1024, 3),
                },
                "normalizedAverageUsage": {
                    "cpuInMilliCores": round(members[0].cpu_usage * 1000, 3),
                    "memoryInMiB": round(members[0].ram_usage_gib * 1024, 3),
                },
                "normalizedMaxUsage": {
                    "cpuInMilliCores": round(cpu_use * 1000, 3),
                    "memoryInMiB": round(ram_use * 1024, 3),
                },
            }
        )
    return {
        "TotalMonthlySavings": round(sum(r["monthlySavings"]["total"] for r in recommendations), 5),
        "Count": len(recommendations),
        "Recommendations": recommendations,
    }


def categories(world: World) -> dict[str, float]:
    """USD a month that each category would save."""
    sizing = request_sizing(world)["TotalMonthlySavings"]
    idlebots = [c for c in world.containers if c.controller == "idlebot"]
    abandoned = sum(
        c.cpu_request * c.node.usd_per_core_hour + c.ram_request_gib * c.node.usd_per_gib_hour for c in idlebots
    )
    orphaned = sum(v.gib * v.usd_per_gib_hour for v in world.volumes if not v.claim)
    return {
        "requestSizing": sizing,
        "abandonedWorkloads": round(abandoned * HOURS_A_MONTH, 5),
        "unclaimedVolumes": round(orphaned * HOURS_A_MONTH, 5),
    }


def overview(world: World, version: int) -> dict[str, Any]:
    """``/model/savings``: by cluster with states (1 and 2), or by category with a time of refresh (3)."""
    found: dict[str, float] = categories(world)
    if version >= 3:
        return {
            "code": 200,
            "data": {
                "cluster": "",
                "profile": "HighAvailability",
                **{
                    {"requestSizing": "containerRequestSizing"}.get(name, name): {
                        "savingsPerMonth": usd,
                        "lastRefresh": "2026-07-17T15:02:20Z",
                    }
                    for name, usd in found.items()
                },
            },
            "meta": {"isWarm": True},
        }
    mine: dict[str, Any] = {name: {"state": "ready", "value": usd} for name, usd in found.items()}
    mine["clusterSizing"] = {"state": "computing", "value": 99999.0}
    other = {"requestSizing": {"state": "ready", "value": 77777.0}}
    return {"code": 200, "data": {"another-cluster": other, world.cluster_id: mine}}


def abandoned_workloads(world: World) -> list[dict[str, Any]]:
    """``/model/savings/abandonedWorkloads``: a bare list of pods."""
    return [
        {
            "pod": c.pod,
            "namespace": c.namespace,
            "node": c.node.name,
            "clusterId": world.cluster_id,
            "clusterName": "",
            "owners": [{"name": c.controller, "kind": c.kind}],
            "ingressBytesPerSecond": 0.0,
            "egressBytesPerSecond": 0.0,
            "requests": {"cpuCores": c.cpu_request, "ramBytes": c.ram_request_gib * GIB},
            "usage": {"cpuCores": c.cpu_usage, "ramBytes": c.ram_usage_gib * GIB},
            "monthlySavings": round(
                (c.cpu_request * c.node.usd_per_core_hour + c.ram_request_gib * c.node.usd_per_gib_hour)
                * HOURS_A_MONTH,
                5,
            ),
        }
        for c in world.containers
        if c.controller == "idlebot"
    ]


def unclaimed_volumes(world: World) -> dict[str, Any]:
    """``/model/savings/unclaimedVolumes``."""
    volumes: list[dict[str, Any]] = [
        {
            "monthlyCost": round(v.gib * v.usd_per_gib_hour * HOURS_A_MONTH, 5),
            "volumeName": v.name,
            "properties": {"category": "Storage", "cluster": world.cluster_id, "name": v.name},
        }
        for v in world.volumes
        if not v.claim
    ]
    monthly = round(sum(v["monthlyCost"] for v in volumes), 5)
    return {"code": 200, "data": {"count": len(volumes), "monthlyCost": monthly, "volumes": volumes}}
