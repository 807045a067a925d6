"""Savings: what could be had for less, from Kubecost's answers or worked out from usage.

Savings are not cost: that they are unknown never touches a statement's ``complete``. All money is USD a month of 730
hours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from typing import Any, Literal

import numpy as np
from msgspec import Struct

from metroculus.cost_model.assets import Asset
from metroculus.cost_model.columns import Allocations, sums_by
from tools.window import DAY

HOURS_A_MONTH = 730
CPU_UTILIZATION, RAM_UTILIZATION = 0.8, 0.85
FLOOR_CORES = 0.010
FLOOR_BYTES = 32 * 2**20
MIN_WINDOW_SECONDS = 3 * DAY
ABANDONED_AFTER_SECONDS = 7 * DAY
ABANDONED_CORES = 0.005
ABANDONED_BYTES = 2**20
GIB = 2**30
LEAST_HOURS = 1.0
"""What was there for less says nothing of a month."""
LOCAL = "__local__"
"""The storage class that upstreams give to a node's own disk."""
STILL_THERE_SECONDS = 600
"""A node that was last seen this long before the newest sight of any is gone."""

Kind = Literal["right_sizing", "under_provisioned", "abandoned_workload", "unclaimed_volume", "idle_node"]
Risk = Literal["low", "medium", "high"]


class Recommendation(Struct, frozen=True, kw_only=True):
    """One thing to do: what it saves a month, why, and how much could go wrong."""

    kind: Kind
    namespace: str = ""
    controller: str = ""
    controller_kind: str = ""
    container: str = ""
    name: str = ""
    resource: Literal["cpu", "memory", "storage", "node", "workload"]
    monthly_saving: float
    requested: float | None = None
    recommended: float | None = None
    freed: float | None = None
    """Cores, bytes or GiB that come free."""
    evidence: dict[str, Any] = {}
    risk: Risk = "medium"


class ContainerUsage(Struct, frozen=True, kw_only=True):
    """What the containers of one name under one controller asked for and used in a window."""

    namespace: str
    controller: str
    controller_kind: str
    container: str
    cpu_request: float
    """Cores, of one container."""
    cpu_p95: float
    ram_request: float
    """Bytes, of one container."""
    ram_max: float
    container_hours: float
    egress_bytes: float | None
    """What its pods sent in the window; None where nobody counted."""
    usd_per_core_hour: float
    usd_per_gib_hour: float


class FoundSavings(Struct, frozen=True, kw_only=True):
    """What a source told of a stretch of time, to be kept; what could be saved follows from it.

    ``usages`` where the source told how much was used: then sizes follow from how much of a request should be used.
    Else ``recommendations`` and ``by_category`` are the source's own.
    """

    window_seconds: int
    currency: str = ""
    """Of its money; empty where that was not told."""
    usages: tuple[ContainerUsage, ...] = ()
    recommendations: tuple[Recommendation, ...] = ()
    by_category: dict[str, float] | None = None
    unused: tuple[Recommendation, ...] = ()
    """Volumes that nobody claims and nodes that could go."""

    def sized(self, utilization: float | None = None) -> tuple[Recommendation, ...]:
        """What requests should be, and workloads that are abandoned."""
        if not self.usages:
            return self.recommendations
        return (
            *right_sizing(self.usages, self.window_seconds, utilization),
            *abandoned_workloads(self.usages, self.window_seconds),
        )

    def categories(self) -> dict[str, float]:
        """USD a month by category or kind."""
        return by_kind([*self.sized(), *self.unused]) if self.by_category is None else self.by_category


def target(usage: float, utilization: float, floor: float) -> float:
    """The request that would have been used to ``utilization``."""
    return max(usage / utilization, floor)


def monthly_saving(
    request: float, wanted: float, usd_per_unit_hour: float, container_hours: float, window_hours: float
) -> float:
    """USD a month, jobs and scaled workloads priced for the hours that they ran; negative: too little was asked for."""
    return (request - wanted) * usd_per_unit_hour * (container_hours / window_hours) * HOURS_A_MONTH


def right_sizing(
    usages: Iterable[ContainerUsage], window_seconds: int, utilization: float | None = None
) -> list[Recommendation]:
    """What requests should be, dearest first; what asked for too little is reported and not netted off.

    Args:
        utilization: share of a request that should be used; by default 0.8 of cpu and 0.85 of memory.
    """
    window_hours = window_seconds / 3600
    found = []
    for one in usages:
        cpu = target(one.cpu_p95, utilization or CPU_UTILIZATION, FLOOR_CORES)
        ram = target(one.ram_max, utilization or RAM_UTILIZATION, FLOOR_BYTES)
        for resource, request, wanted, price, unit in (
            ("cpu", one.cpu_request, cpu, one.usd_per_core_hour, 1.0),
            ("memory", one.ram_request, ram, one.usd_per_gib_hour, GIB),
        ):
            if not request:
                continue
            saving = monthly_saving(request / unit, wanted / unit, price, one.container_hours, window_hours)
            found.append(
                Recommendation(
                    kind="right_sizing" if saving >= 0 else "under_provisioned",
                    namespace=one.namespace,
                    controller=one.controller,
                    controller_kind=one.controller_kind,
                    container=one.container,
                    name=f"{one.namespace}/{one.controller}/{one.container}",
                    resource="cpu" if resource == "cpu" else "memory",
                    monthly_saving=saving,
                    requested=request,
                    recommended=wanted,
                    freed=request - wanted,
                    evidence={
                        "window_seconds": window_seconds,
                        "usage": one.cpu_p95 if resource == "cpu" else one.ram_max,
                        "statistic": "p95" if resource == "cpu" else "max",
                        "usd_per_unit_hour": price,
                        "container_hours": one.container_hours,
                    },
                    risk="low" if resource == "cpu" else "medium",
                )
            )
    return sorted(found, key=lambda r: (-r.monthly_saving, r.name, r.resource))


def abandoned_workloads(usages: Iterable[ContainerUsage], window_seconds: int) -> list[Recommendation]:
    """Workloads that hardly used a core and sent hardly a byte for a week, each at what its requests cost."""
    if window_seconds < ABANDONED_AFTER_SECONDS:
        return []
    workloads: dict[tuple[str, str, str], list[ContainerUsage]] = defaultdict(list)
    for one in usages:
        workloads[(one.namespace, one.controller_kind, one.controller)].append(one)
    found = []
    for (namespace, kind, controller), members in sorted(workloads.items()):
        sent = [one.egress_bytes or 0.0 for one in members]
        busy = any(one.cpu_p95 > ABANDONED_CORES for one in members) or max(sent) > ABANDONED_BYTES
        if busy or kind in ("daemonset", "job"):
            continue
        monthly = fsum(
            (one.cpu_request * one.usd_per_core_hour + one.ram_request / GIB * one.usd_per_gib_hour)
            * (one.container_hours * 3600 / window_seconds)
            * HOURS_A_MONTH
            for one in members
        )
        counted = all(one.egress_bytes is not None for one in members)
        found.append(
            Recommendation(
                kind="abandoned_workload",
                namespace=namespace,
                controller=controller,
                controller_kind=kind,
                name=f"{namespace}/{controller}",
                resource="workload",
                monthly_saving=monthly,
                evidence={
                    "window_seconds": window_seconds,
                    "cpu_p95": max(one.cpu_p95 for one in members),
                    "egress_bytes": max(sent) if counted else None,
                },
                risk="medium" if counted else "high",
            )
        )
    return found


def unclaimed_volumes(assets: Iterable[Asset]) -> list[Recommendation]:
    """Volumes that nobody claims, at what they cost in the window, carried to a month; a node's own disk is none."""
    known = list(assets)
    nodes = {asset.name for asset in known if asset.type == "node"}
    return [
        Recommendation(
            kind="unclaimed_volume",
            name=disk.name,
            resource="storage",
            monthly_saving=disk.total_cost / disk.hours * HOURS_A_MONTH,
            freed=None if disk.storage_bytes is None else disk.storage_bytes / GIB,
            evidence={"hours": disk.hours, "storage_class": disk.storage_class},
            risk="high",
        )
        for disk in known
        if disk.type == "disk"
        and not disk.claim_name
        and disk.storage_class != LOCAL
        and disk.name not in nodes
        and disk.hours >= LEAST_HOURS
        and disk.total_cost > 0
    ]


def living(assets: Iterable[Asset]) -> list[Asset]:
    """The nodes that were still there when any was last seen; one that does not say when is taken to be."""
    nodes = [asset for asset in assets if asset.type == "node"]
    newest = max((node.last_seen for node in nodes if node.last_seen is not None), default=0)
    return [node for node in nodes if node.last_seen is None or node.last_seen > newest - STILL_THERE_SECONDS]


def idle_nodes(assets: Iterable[Asset], requested: Mapping[str, tuple[float, float]]) -> list[Recommendation]:
    """Nodes whose requests fit into what the others have free, dearest first, each counted once.

    Args:
        requested: by node, core-hours and byte-hours requested in the window.
    """
    nodes = [node for node in living(assets) if node.hours >= LEAST_HOURS]
    used = {}
    for node in nodes:
        core_hours, byte_hours = requested.get(node.name, (0.0, 0.0))
        used[node.name] = (core_hours / node.hours, byte_hours / node.hours)
    free = {node.name: _free(node, used[node.name]) for node in nodes}
    cores_left, bytes_left = (fsum(one[place] for one in free.values()) for place in (0, 1))
    remaining = len(nodes)
    found = []
    for node in sorted(nodes, key=lambda one: (-one.total_cost / one.hours, one.name)):
        (cores, ram), (own_cores, own_ram) = used[node.name], free[node.name]
        cores_after, bytes_after = cores_left - own_cores - cores, bytes_left - own_ram - ram
        if node.gpu_count or node.cpu_cores is None or node.ram_bytes is None or remaining == 1:
            continue
        if cores_after < 0 or bytes_after < 0:
            continue
        cores_left, bytes_left, remaining = cores_after, bytes_after, remaining - 1
        found.append(
            Recommendation(
                kind="idle_node",
                name=node.name,
                resource="node",
                monthly_saving=node.total_cost / node.hours * HOURS_A_MONTH,
                freed=node.cpu_cores,
                evidence={"requested_cores": cores, "requested_bytes": ram, "hours": node.hours},
                risk="high",
            )
        )
    return found


def _free(node: Asset, used: tuple[float, float]) -> tuple[float, float]:
    """Cores and bytes that nobody requests; an overcommitted node has none to give."""
    return max(0.0, (node.cpu_cores or 0.0) - used[0]), max(0.0, (node.ram_bytes or 0.0) - used[1])


def by_kind(recommendations: Sequence[Recommendation]) -> dict[str, float]:
    """USD a month by kind; a workload that is abandoned is not counted for its size as well."""
    abandoned = {
        (r.namespace, r.controller_kind, r.controller) for r in recommendations if r.kind == "abandoned_workload"
    }
    sums: dict[str, list[float]] = defaultdict(list)
    for one in recommendations:
        counted_twice = one.kind == "right_sizing" and (one.namespace, one.controller_kind, one.controller) in abandoned
        if one.kind != "under_provisioned" and not counted_twice:
            sums[one.kind].append(max(0.0, one.monthly_saving))
    return {kind: fsum(sums[kind]) for kind in sorted(sums)}


def requested_by_node(allocations: Allocations) -> dict[str, tuple[float, float]]:
    """Core-hours and byte-hours requested on each node."""
    requested = np.stack([allocations.line("cpu_request"), allocations.line("ram_request")])
    nodes, sums = sums_by(allocations.texts["node"], requested)
    return {
        node: (core_minutes / 60, byte_minutes / 60)
        for node, (core_minutes, byte_minutes) in zip(nodes, sums.T.tolist(), strict=True)
        if node
    }
