"""What the world cost, exactly: the truth that every answer is held against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import fsum

from simulator.world import GIB, HOUR, RECONCILED_AFTER_SECONDS, Container, Node, World, integral, overlap

REACHES = ("internet", "region", "zone")
UNMOUNTED = "__unmounted__"


@dataclass
class PodCost:
    """One container over one stretch; USD at list price, with what reconciliation adds beside it."""

    container: Container | None
    namespace: str
    pod: str
    start: int
    end: int
    cpu: float = 0.0
    ram: float = 0.0
    gpu: float = 0.0
    cpu_adjustment: float = 0.0
    ram_adjustment: float = 0.0
    pv: float = 0.0
    load_balancer: float = 0.0
    load_balancer_adjustment: float = 0.0
    egress: dict[str, float] = field(default_factory=dict)
    egress_bytes: float = 0.0
    pvs: dict[str, tuple[float, float]] = field(default_factory=dict)
    """volume -> (GiB hours, USD)"""
    cpu_core_hours: float = 0.0
    ram_gib_hours: float = 0.0
    gpu_hours: float = 0.0
    cpu_request_hours: float = 0.0
    cpu_usage_hours: float = 0.0
    ram_request_gib_hours: float = 0.0
    ram_usage_gib_hours: float = 0.0

    @property
    def network(self) -> float:
        return fsum(self.egress.values())

    @property
    def total(self) -> float:
        return fsum(
            (
                self.cpu,
                self.ram,
                self.gpu,
                self.cpu_adjustment,
                self.ram_adjustment,
                self.pv,
                self.load_balancer,
                self.load_balancer_adjustment,
                self.network,
            )
        )


@dataclass(frozen=True)
class Clipped:
    """What was recorded of the world in one window: stretches without holes, nothing after ``now``."""

    start: int
    end: int
    parts: tuple[tuple[int, int], ...]
    containers: tuple[tuple[int, int], ...]
    """The stretches in which containers were recorded, too."""


def recorded(world: World, start: int, end: int, now: int, covered: bool = False) -> Clipped:
    """What was recorded.

    Args:
        covered: of nodes, too, only the stretches in which containers were recorded: what may count as known.
    """
    since, until = max(start, world.start), min(end, world.end, now)
    parts = _without([(since, until)] if since < until else [], world.holes)
    containers = _without(parts, world.blind)
    return Clipped(start, end, tuple(containers if covered else parts), tuple(containers))


def _without(parts: list[tuple[int, int]], holes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    for first, last in holes:
        cut = []
        for a, b in parts:
            cut += [(a, min(b, first)), (max(a, last), b)]
        parts = [(a, b) for a, b in cut if a < b]
    return parts


def reconciled_until(now: int) -> int:
    """Hours that began before this carry their adjustment."""
    stamp = now - RECONCILED_AFTER_SECONDS
    return stamp - stamp % HOUR


def _split_reconciled(start: int, end: int, now: int, adjusted: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    edge = min(max(reconciled_until(now), start), end) if adjusted else start
    return (start, edge), (edge, end)


def pod_costs(world: World, clipped: Clipped, now: int, adjusted: bool) -> list[PodCost]:
    """One entry a container that ran, volumes without a pod under ``__unmounted__``.

    Args:
        adjusted: with the adjustments that Kubecost knows (those whose bill has arrived by ``now``).
    """
    costs: list[PodCost] = []
    by_pod: dict[tuple[str, str], list[PodCost]] = {}
    for container in world.containers:
        ran = [(max(a, container.start), min(b, container.end)) for a, b in clipped.containers]
        ran = [(a, b) for a, b in ran if a < b]
        if not ran:
            continue
        cost = PodCost(container, container.namespace, container.pod, ran[0][0], ran[-1][1])
        for a, b in ran:
            _add_compute(cost, container, a, b, now, adjusted, world.discount)
        costs.append(cost)
        parts = by_pod.setdefault((container.namespace, container.pod), [cost])
        if parts[-1].end <= cost.start and parts[0].container is not None and parts[0].container.name == container.name:
            parts.append(cost)  # the pod goes on elsewhere
    _add_volumes(world, clipped, costs, by_pod)
    for balancer in world.balancers:
        hours = _hours(clipped, balancer.start, balancer.end)
        for pod in balancer.pods:
            behind = by_pod.get((balancer.namespace, pod), []) if hours else []
            for owner, part in _over_time(behind, balancer.start, balancer.end):
                share = hours * part / len(balancer.pods)
                owner.load_balancer += balancer.usd_per_hour * share
                if adjusted:
                    owner.load_balancer_adjustment -= balancer.credit_usd_per_hour * share
    for flow in world.egress:
        hours = _hours(clipped, flow.start, flow.end)
        senders = by_pod.get((flow.namespace, flow.pod), []) if hours else []
        for sender, part in _over_time(senders, flow.start, flow.end):
            gib = flow.gib_per_hour * hours * part
            sender.egress[flow.reach] = sender.egress.get(flow.reach, 0.0) + gib * world.usd_per_gib[flow.reach]
            sender.egress_bytes += gib * GIB
    return costs


def _add_compute(
    cost: PodCost, container: Container, start: int, end: int, now: int, adjusted: bool, discount: float
) -> None:
    node = container.node
    core_hours = integral(container.cpu_allocation_at, start, end)
    gib_hours = integral(container.ram_allocation_gib_at, start, end)
    hours = (end - start) / HOUR
    cost.cpu_core_hours += core_hours
    cost.ram_gib_hours += gib_hours
    cost.gpu_hours += container.gpus * hours
    cost.cpu += core_hours * node.usd_per_core_hour
    cost.ram += gib_hours * node.usd_per_gib_hour
    cost.gpu += container.gpus * hours * node.usd_per_gpu_hour
    (since, edge), _ = _split_reconciled(start, end, now, adjusted)
    cost.cpu_adjustment -= discount * integral(container.cpu_allocation_at, since, edge) * node.usd_per_core_hour
    cost.ram_adjustment -= discount * integral(container.ram_allocation_gib_at, since, edge) * node.usd_per_gib_hour
    cost.cpu_request_hours += container.cpu_request * hours
    cost.ram_request_gib_hours += container.ram_request_gib * hours
    cost.cpu_usage_hours += integral(container.cpu_usage_at, start, end)
    cost.ram_usage_gib_hours += integral(container.ram_usage_gib_at, start, end)


def _over_time(parts: list[PodCost], start: int, end: int) -> list[tuple[PodCost, float]]:
    """A pod's stretches with the share that each is of its time within ``[start, end)``."""
    shared = [overlap(part.start, part.end, start, end) for part in parts]
    if not any(shared):
        return [(part, 1.0) for part in parts[:1]]
    return [(part, seconds / sum(shared)) for part, seconds in zip(parts, shared, strict=True) if seconds]


def _add_volumes(
    world: World, clipped: Clipped, costs: list[PodCost], by_pod: dict[tuple[str, str], list[PodCost]]
) -> None:
    """Each to the pods that mount it, else to the namespace that claims it, else to nobody."""
    unmounted: dict[str, PodCost] = {}
    for volume in world.volumes:
        hours = _hours(clipped, volume.start, volume.end)
        if not hours:
            continue
        owners = [by_pod[volume.namespace, pod] for pod in volume.pods if (volume.namespace, pod) in by_pod]
        if not owners:
            namespace = volume.namespace if volume.claim else UNMOUNTED
            if namespace not in unmounted:
                first, last = clipped.parts[0][0], clipped.parts[-1][1]
                unmounted[namespace] = PodCost(None, namespace, UNMOUNTED, first, last)
                costs.append(unmounted[namespace])
            owners = [[unmounted[namespace]]]
        shares = [
            (owner, part / len(owners))
            for parts in owners
            for owner, part in _over_time(parts, volume.start, volume.end)
        ]
        for owner, share in shares:
            gib_hours = volume.gib * hours * share
            usd = gib_hours * volume.usd_per_gib_hour
            known = owner.pvs.get(volume.name, (0.0, 0.0))
            owner.pv += usd
            owner.pvs[volume.name] = (known[0] + gib_hours, known[1] + usd)


def _hours(clipped: Clipped, start: int, end: int) -> float:
    return sum(overlap(a, b, start, end) for a, b in clipped.parts) / HOUR


@dataclass(frozen=True)
class NodeCost:
    node: Node
    hours: float
    first: int
    last: int
    cpu: float
    ram: float
    gpu: float
    adjustment: float

    @property
    def total(self) -> float:
        return fsum((self.cpu, self.ram, self.gpu, self.adjustment))


def node_costs(world: World, clipped: Clipped, now: int, adjusted: bool) -> list[NodeCost]:
    """One entry a node that was there; ``adjustment`` is over cpu and ram together."""
    costs = []
    for node in world.nodes:
        ran = [(max(a, node.start), min(b, node.end)) for a, b in clipped.parts]
        ran = [(a, b) for a, b in ran if a < b]
        if not ran:
            continue
        hours = sum(b - a for a, b in ran) / HOUR
        reconciled = sum(overlap(a, b, a, max(a, reconciled_until(now))) for a, b in ran) / HOUR if adjusted else 0.0
        cpu, ram = node.cores * node.usd_per_core_hour, node.ram_gib * node.usd_per_gib_hour
        costs.append(
            NodeCost(
                node,
                hours,
                ran[0][0],
                ran[-1][1],
                cpu * hours,
                ram * hours,
                node.gpus * node.usd_per_gpu_hour * hours,
                -world.discount * (cpu + ram) * reconciled,
            )
        )
    return costs


def by_machine(costs: list[NodeCost]) -> list[NodeCost]:
    """One entry a machine, whose price may have changed meanwhile; another machine of the same name is another."""
    machines: dict[tuple[str, str], NodeCost] = {}
    for cost in costs:
        key = (cost.node.name, cost.node.provider_id)
        known = machines.get(key)
        machines[key] = cost if known is None else _with(known, cost)
    return list(machines.values())


def _with(one: NodeCost, later: NodeCost) -> NodeCost:
    return NodeCost(
        later.node,
        one.hours + later.hours,
        min(one.first, later.first),
        max(one.last, later.last),
        one.cpu + later.cpu,
        one.ram + later.ram,
        one.gpu + later.gpu,
        one.adjustment + later.adjustment,
    )


@dataclass(frozen=True)
class Idle:
    cpu: float
    ram: float
    gpu: float
    cpu_adjustment: float
    ram_adjustment: float

    @property
    def total(self) -> float:
        return fsum((self.cpu, self.ram, self.gpu, self.cpu_adjustment, self.ram_adjustment))


def idle_cost(world: World, nodes: list[NodeCost], pods: list[PodCost], now: int, adjusted: bool) -> Idle:
    """What the nodes cost beyond what was allocated on them."""
    cpu_adjustment = ram_adjustment = 0.0
    for cost in nodes:
        list_price = cost.cpu + cost.ram
        share = cost.adjustment / list_price if list_price else 0.0
        cpu_adjustment += cost.cpu * share
        ram_adjustment += cost.ram * share
    return Idle(
        fsum(n.cpu for n in nodes) - fsum(p.cpu for p in pods),
        fsum(n.ram for n in nodes) - fsum(p.ram for p in pods),
        fsum(n.gpu for n in nodes) - fsum(p.gpu for p in pods),
        cpu_adjustment - fsum(p.cpu_adjustment for p in pods),
        ram_adjustment - fsum(p.ram_adjustment for p in pods),
    )


def truth(
    world: World, start: int | None = None, end: int | None = None, now: int | None = None, adjusted: bool = False
) -> dict[str, object]:
    """What the cluster cost in ``[start, end)``, USD, by component, namespace, workload and special entity."""
    start = world.start if start is None else start
    end = world.end if end is None else end
    now = world.end if now is None else now
    clipped = recorded(world, start, end, now, covered=True)
    pods = pod_costs(world, clipped, now, adjusted)
    nodes = node_costs(world, clipped, now, adjusted)
    idle = idle_cost(world, nodes, pods, now, adjusted)
    management = world.management_usd_per_hour * sum(b - a for a, b in clipped.parts) / HOUR
    summary = {
        "cpu_cost": fsum([p.cpu + p.cpu_adjustment for p in pods] + [idle.cpu, idle.cpu_adjustment]),
        "ram_cost": fsum([p.ram + p.ram_adjustment for p in pods] + [idle.ram, idle.ram_adjustment]),
        "gpu_cost": fsum([p.gpu for p in pods] + [idle.gpu]),
        "pv_cost": fsum(p.pv for p in pods),
        "network_cost": fsum(p.network for p in pods),
        "load_balancer_cost": fsum(p.load_balancer + p.load_balancer_adjustment for p in pods),
    }
    namespaces: dict[str, list[PodCost]] = defaultdict(list)
    workloads: dict[str, list[PodCost]] = defaultdict(list)
    for pod in pods:
        namespaces[pod.namespace].append(pod)
        if pod.container:
            workloads[f"{pod.namespace}/{pod.container.kind}/{pod.container.controller}"].append(pod)
        elif pod.namespace != UNMOUNTED:
            workloads[f"{pod.namespace}/__unallocated__/__unallocated__"].append(pod)
    return {
        "cluster_id": world.cluster_id,
        "start": start,
        "end": end,
        "adjusted": adjusted,
        "allocation_total": fsum(summary.values()),
        "management_cost": management,
        "total_cost": fsum([*summary.values(), management]),
        "summary": summary,
        "idle_cost": idle.total,
        "unmounted_cost": fsum(p.total for p in namespaces.get("__unmounted__", [])),
        "namespaces": {
            name: fsum(p.total for p in entries) for name, entries in sorted(namespaces.items()) if name[0] != "_"
        },
        "pod_counts": {
            name: len({p.pod for p in entries if p.container})
            for name, entries in sorted(namespaces.items())
            if name[0] != "_"
        },
        "workloads": {name: fsum(p.total for p in entries) for name, entries in sorted(workloads.items())},
        "nodes": {
            name: fsum(n.total for n in nodes if n.node.name == name) for name in sorted({n.node.name for n in nodes})
        },
        "covered_seconds": sum(b - a for a, b in clipped.parts),
        "volumes": {
            name: fsum(p.pvs[name][1] for p in pods if name in p.pvs)
            for name in sorted({name for p in pods for name in p.pvs})
        },
        "efficiency": _efficiency(pods),
        "network": {reach: fsum(p.egress.get(reach, 0.0) for p in pods) for reach in REACHES},
        "rounded_figures": 8 * (len(pods) + 2),
    }


def _efficiency(pods: list[PodCost]) -> dict[str, float]:
    real = [p for p in pods if p.container]
    cpu = _ratio(fsum(p.cpu_usage_hours for p in real), fsum(p.cpu_request_hours for p in real))
    ram = _ratio(fsum(p.ram_usage_gib_hours for p in real), fsum(p.ram_request_gib_hours for p in real))
    cpu_cost = fsum(p.cpu + p.cpu_adjustment for p in real)
    ram_cost = fsum(p.ram + p.ram_adjustment for p in real)
    weight = cpu_cost + ram_cost
    return {
        "cpu_efficiency": cpu,
        "ram_efficiency": ram,
        "total_efficiency": (cpu * cpu_cost + ram * ram_cost) / weight if weight else 0.0,
    }


def _ratio(usage: float, request: float) -> float:
    return usage / request if request else float(usage > 0)
