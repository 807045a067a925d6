"""Every view of one world, asked as a caller would, held against the simulator's exact truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import fsum
from typing import Any

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, UNALLOCATED
from simulator.costs import UNMOUNTED, PodCost, node_costs, pod_costs, recorded, truth
from simulator.savings import categories
from simulator.world import HOUR, World
from tests.support import ACCOUNT, Metroculus
from tools.zones import UTC_ZONE, Zone

Json = dict[str, Any]

GROUPINGS: dict[str, Callable[[PodCost], str]] = {
    "controller": lambda pod: pod.container.controller if pod.container else "",
    "controllerKind": lambda pod: pod.container.kind if pod.container else "",
    "pod": lambda pod: pod.pod,
    "container": lambda pod: pod.container.name if pod.container else pod.pod,
    "node": lambda pod: pod.container.node.name if pod.container else "",
    "service": lambda pod: min(pod.container.services, default="") if pod.container else "",
    "label:team": lambda pod: pod.container.labels.get("team", "") if pod.container else "",
}
COMPONENTS = ("cpu_cost", "ram_cost", "gpu_cost", "pv_cost", "network_cost", "load_balancer_cost")


@dataclass(frozen=True)
class Figure:
    """One figure of one view."""

    view: str
    answer: float | None
    truth: float
    complete: bool
    """Whether the view says that it is whole."""
    interval_usd: float = 0.0
    """What one interval more or less of each thing that came or went in the window costs."""


@dataclass
class Asked:
    """A service with the world behind it.

    Args:
        adjusted: its upstream knows what the bills took off.
        interval: seconds by which a thing's time may be off that came or went in the window.
    """

    service: Metroculus
    world: World
    start: int
    end: int
    adjusted: bool
    managed: bool = True
    groupings: tuple[str, ...] = tuple(GROUPINGS)
    now: int = 0
    interval: int = 0
    zone: Zone = UTC_ZONE
    stored: tuple[int, int] | None = None
    """What is stored of the world."""
    saves: bool = False
    """Whether its upstream has a savings API."""

    def get(self, path: str, **query: Any) -> Json:
        dates = {"cloud_account_id": ACCOUNT, "start_date": self.start, "end_date": self.end}
        answer = self.service.get(path, **dates, **query)
        assert answer.status_code == 200, (path, query, answer.text)
        body: Json = answer.json()
        return body

    def costs(self, **query: Any) -> Json:
        return self.get("kubecost_cluster_costs", **query)

    def pods(self, start: int, end: int) -> list[PodCost]:
        clipped = recorded(self.world, start, end, self.now, covered=True)
        return [p for p in pod_costs(self.world, clipped, self.now, self.adjusted) if p.namespace != "__unmounted__"]

    def truth(self, start: int, end: int) -> Json:
        return truth(self.world, start, end, now=self.now, adjusted=self.adjusted)


def figures(asked: Asked) -> Iterator[Figure]:
    """Every figure of every view of the window."""
    slack = _interval_usd(asked)
    for figure in _figures(asked):
        yield replace(figure, interval_usd=slack)


def _figures(asked: Asked) -> Iterator[Figure]:
    yield from _statement(asked)
    for aggregate in asked.groupings:
        yield from _grouping(asked, aggregate, GROUPINGS[aggregate])
    yield from _filters(asked)
    yield from _points(asked)
    yield from _assets(asked)
    if asked.saves:
        yield from _savings(asked)
    if asked.stored is not None:
        yield from _expenses(asked, asked.stored)
        yield from _month(asked, asked.stored)


def _interval_usd(asked: Asked) -> float:
    """What one interval of everything that came or went within the window costs."""
    start, end, world = asked.start, asked.end, asked.world
    pods = [p for p in asked.pods(start, end) if p.container and (p.start > start or p.end < end)]
    rates = [p.total / (p.end - p.start) for p in pods]
    nodes = [n.usd_per_hour / HOUR for n in world.nodes if start < n.start < end or start < n.end < end]
    others = [b.usd_per_hour / HOUR for b in world.balancers if start < b.start < end]
    others += [v.gib * v.usd_per_gib_hour / HOUR for v in world.volumes if start < v.start < end or start < v.end < end]
    return asked.interval * fsum((*rates, *nodes, *others))


def _statement(asked: Asked) -> Iterator[Figure]:
    true = asked.truth(asked.start, asked.end)
    body = asked.costs(detail_level="pod")
    whole, summary = body["complete"], body["summary"]
    for name in COMPONENTS:
        yield Figure(f"statement {name}", summary[name], true["summary"][name], whole)
    if asked.managed:
        yield Figure("statement management_cost", summary["management_cost"], true["management_cost"], whole)
        yield Figure("statement total", body["total_cost"], true["total_cost"], whole)
    else:
        yield Figure("statement total", body["total_cost"], true["allocation_total"], whole)
    yield Figure("statement idle", body["idle_cost"], true["idle_cost"], whole)
    yield Figure("statement unallocated", body["unallocated_cost"], true["unmounted_cost"], whole)
    yield from _rows("namespace", body["breakdown_by_namespace"], true["namespaces"], whole)
    for name, value in true["efficiency"].items():
        yield Figure(f"efficiency {name}", (body["efficiency"] or {}).get(name), value, whole)
    pods = asked.pods(asked.start, asked.end)
    by_pod = _sums(pods, lambda pod: f"{pod.namespace}/{pod.pod}")
    yield from _rows("pod", body["breakdown_by_pod"], by_pod, whole)


def _rows(view: str, rows: list[Json], true: dict[str, float], whole: bool) -> Iterator[Figure]:
    answered = {row["name"]: row["total_cost"] for row in rows}
    for name in sorted({*answered, *true}):
        yield Figure(f"{view} {name}", answered.get(name, 0.0), true.get(name, 0.0), whole)


def _sums(pods: list[PodCost], key: Callable[[PodCost], str]) -> dict[str, float]:
    groups: dict[str, list[float]] = defaultdict(list)
    for pod in pods:
        groups[key(pod)].append(pod.total)
    return {name: fsum(parts) for name, parts in groups.items()}


def _grouping(asked: Asked, aggregate: str, key: Callable[[PodCost], str]) -> Iterator[Figure]:
    body = asked.costs(aggregate=aggregate)
    true = _sums(asked.pods(asked.start, asked.end), lambda pod: key(pod) or UNALLOCATED)
    yield from _rows(f"by {aggregate}", body["breakdown_by_aggregate"], true, body["complete"])


def _filters(asked: Asked) -> Iterator[Figure]:
    pods = asked.pods(asked.start, asked.end)
    keep: dict[str, tuple[Json, Callable[[PodCost], bool]]] = {
        "namespace shop": ({"k8s_namespace": "shop"}, lambda pod: pod.namespace == "shop"),
        "idle": ({"k8s_namespace": IDLE}, lambda pod: False),
    }
    if "node" in asked.groupings:
        keep["node node-1"] = (
            {"k8s_node": "node-1"},
            lambda pod: pod.container is not None and pod.container.node.name == "node-1",
        )
    if "service" in asked.groupings:
        keep["service web"] = (
            {"k8s_service": "web"},
            lambda pod: pod.container is not None and "web" in pod.container.services,
        )
    for name, (query, wanted) in keep.items():
        body = asked.costs(**query)
        true = fsum(pod.total for pod in pods if wanted(pod))
        if name == "idle":
            true = asked.truth(asked.start, asked.end)["idle_cost"]
        yield Figure(f"filter {name}", body["total_cost"], true, body["complete"])


def _points(asked: Asked) -> Iterator[Figure]:
    body = asked.costs(step="day", timezone=asked.zone.name)
    at = asked.start
    for point in body["data_points"]:
        until = min(asked.zone.period(at, "day")[1], asked.end)
        true = asked.truth(at, until)
        expected = true["total_cost"] if asked.managed else true["allocation_total"]
        yield Figure(f"day {point['start']}", point["total_cost"], expected, point["complete"])
        at = until
    points = body["data_points"]
    if body["complete"] and points:
        yield Figure("days are complete like the window", float(all(p["complete"] for p in points)), 1.0, True)


def _assets(asked: Asked) -> Iterator[Figure]:
    """Nodes by name: what took the place of a node under its name is told with it."""
    body = asked.get("kubecost_assets")
    there = recorded(asked.world, asked.start, asked.end, asked.now)
    true: dict[str, float] = defaultdict(float)
    for node in node_costs(asked.world, there, asked.now, asked.adjusted):
        true[node.node.name] += node.total
    rows: dict[str, float] = defaultdict(float)
    for node in body["nodes"]:
        rows[node["name"]] += node["total_cost"]
    for name in sorted({*true, *rows}):
        yield Figure(f"asset {name}", rows.get(name, 0.0), true.get(name, 0.0), body["complete"])


def _savings(asked: Asked) -> Iterator[Figure]:
    """An upstream's own categories are told as it tells them."""
    body = asked.get("kubecost_savings")
    true = categories(asked.world)
    for name in sorted({*true, *body["by_category"]}):
        yield Figure(f"savings {name}", body["by_category"].get(name), true.get(name, 0.0), True)
    yield Figure("savings", body["potential_savings"], fsum(true.values()), True)


def _expenses(asked: Asked, stored: tuple[int, int]) -> Iterator[Figure]:
    start, end = max(asked.start, stored[0]), min(asked.end, stored[1])
    dates = {"cloud_account_id": ACCOUNT, "start_date": start, "end_date": end}
    true = asked.truth(start, end)
    special = {
        IDLE: true["idle_cost"], UNMOUNTED: true["unmounted_cost"], MANAGEMENT: true["management_cost"]
    }  # fmt: skip
    for key in ("namespace", "node", "service", "label:team", "pod"):
        body = asked.service.get("k8s_expenses", **dates, group_by=key).json()
        if key == "namespace":
            owned = dict(true["namespaces"])
        else:
            owned = _sums(asked.pods(start, end), lambda pod, of=GROUPINGS[key]: of(pod) or UNALLOCATED)  # type: ignore[misc]
        for name, usd in special.items():  # a volume that is claimed and not mounted is __unmounted__ by pod, too
            owned[name] = owned.get(name, 0.0) + usd
        rows = [{"name": row[key], "total_cost": row["total_cost"]} for row in body["expenses"]]
        yield from _rows(f"expenses by {key}", rows, owned, body["complete"])
    body = asked.service.get("k8s_expenses", **dates, group_by="day", timezone=asked.zone.name).json()
    yield Figure(
        "expenses by day", fsum(row["total_cost"] for row in body["expenses"]), true["total_cost"], body["complete"]
    )


def _month(asked: Asked, stored: tuple[int, int]) -> Iterator[Figure]:
    """The running month is not over: what is known of it is what is stored, where all of that is known."""
    found = asked.service.get("k8s_monthly", cloud_account_id=ACCOUNT, months="1").json()["months"][-1]
    whole = asked.get("k8s_expenses")["complete"] if stored[1] == asked.end else True
    yield Figure("month to date", found["costs"]["known_cost"], asked.truth(*stored)["total_cost"], whole)
