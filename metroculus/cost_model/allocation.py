"""Allocations: what one pod, container or namespace cost over one window; sets of them; sums, groups and coverage.

Money is USD (or the account's currency), unrounded. A cost here already holds its adjustment. Sums are compensated
(``math.fsum``), so that their order does not matter.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import fsum

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.efficiency import Efficiency, efficiency, weighted
from tools.window import Window

IDLE = "__idle__"
UNALLOCATED = "__unallocated__"
SPECIAL_NAMES = frozenset({IDLE, UNALLOCATED, "__unmounted__", "__shared__", "__external__", ""})
"""Cost of the cluster that no namespace owns; matched as the last part of a name (``cluster-one/__idle__``)."""

MANAGEMENT = "__management__"
"""What cluster management stands under where it is listed beside namespaces; no allocation has that name."""

COMPONENTS = ("cpu", "ram", "gpu", "pv", "network", "load_balancer", "shared", "external")

_LABEL_UNSAFE = re.compile(r"[-./]")


class Costs(Struct, frozen=True, array_like=True, gc=False):
    """USD by component, adjustments included."""

    cpu: float = 0.0
    ram: float = 0.0
    gpu: float = 0.0
    pv: float = 0.0
    network: float = 0.0
    load_balancer: float = 0.0
    shared: float = 0.0
    external: float = 0.0

    @property
    def total(self) -> float:
        return fsum(self.by_component())

    def by_component(self) -> tuple[float, ...]:
        return (
            self.cpu, self.ram, self.gpu, self.pv, self.network, self.load_balancer, self.shared, self.external,
        )  # fmt: skip

    @staticmethod
    def sum(many: Iterable[Costs]) -> Costs:
        columns = list(zip(*(costs.by_component() for costs in many), strict=True))
        return Costs(*(fsum(column) for column in columns)) if columns else Costs()

    def plus(self, *others: Costs) -> Costs:
        return Costs.sum((self, *others))


class Egress(Struct, frozen=True, array_like=True, gc=False):
    """Parts *of* the network cost, USD: what left to the internet, to other regions, to other zones."""

    internet: float = 0.0
    region: float = 0.0
    zone: float = 0.0


class Usage(Struct, frozen=True, array_like=True, gc=False):
    """Requests and usage as core-minutes and byte-minutes, so that they add."""

    cpu_request: float = 0.0
    cpu_usage: float = 0.0
    ram_request: float = 0.0
    ram_usage: float = 0.0

    def amounts(self) -> tuple[float, float, float, float]:
        return (self.cpu_request, self.cpu_usage, self.ram_request, self.ram_usage)

    @staticmethod
    def sum(many: Iterable[Usage]) -> Usage:
        columns = list(zip(*(usage.amounts() for usage in many), strict=True))
        return Usage(*(fsum(column) for column in columns)) if columns else Usage()


class Amounts(Struct, frozen=True, array_like=True, gc=False):
    """What was allocated: core hours, GiB hours of memory, GPU hours, GiB hours of volumes."""

    cpu: float = 0.0
    ram: float = 0.0
    gpu: float = 0.0
    pv: float = 0.0


class Allocation(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One pod, container, namespace… in one window.

    ``start`` and ``end`` (Unix seconds) are when it ran, not the window. ``unknown`` names the components that the
    source left out: they count as nothing in the sums, and whoever reads the sums must say so.
    """

    name: str
    namespace: str = ""
    controller: str = ""
    controller_kind: str = ""
    pod: str = ""
    container: str = ""
    node: str = ""
    cluster: str = ""
    services: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    start: int = 0
    end: int = 0
    costs: Costs = Costs()
    egress: Egress = Egress()
    usage: Usage = Usage()
    amounts: Amounts = Amounts()
    unknown: tuple[str, ...] = ()

    @property
    def special(self) -> str | None:
        """Which special entity this is, or None for what a namespace owns."""
        last = self.name.rsplit("/", 1)[-1]
        if last == IDLE:
            return IDLE
        if self.namespace in SPECIAL_NAMES:
            return self.namespace or (last if last in SPECIAL_NAMES else "")
        return None


class Filters(Struct, frozen=True):
    """What allocations must have; several values of one are alternatives. A special name is a namespace like any."""

    namespaces: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    services: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        return bool(self.namespaces or self.nodes or self.services)

    def keep_special(self, name: str) -> bool:
        """Whether cost that no namespace owns is asked for: it is on no node and behind no service."""
        return not (self.nodes or self.services) and (not self.namespaces or name in self.namespaces)

    def keep(self, allocation: Allocation) -> bool:
        """Whether an allocation of a namespace is asked for."""
        return (
            (not self.namespaces or allocation.namespace in self.namespaces)
            and (not self.nodes or allocation.node in self.nodes)
            and (not self.services or not set(self.services).isdisjoint(allocation.services))
        )


class AllocationSet(Struct, frozen=True):
    """What a source said of ``[start, end)``; no allocations at all means that it knows nothing of it."""

    start: int
    end: int
    allocations: tuple[Allocation, ...] = ()
    quarantined: int = 0
    """Rows that could not be read, and are not in the sums."""
    disagreement: float = 0.0
    """USD by which the source's own totals differ from the sum of their parts."""
    seconds: int | None = None
    """Time that it tells of, where that is known apart from the allocations: stored ones are sums of many hours."""

    def covered(self, until: int) -> int:
        """Seconds before ``until`` in which anything ran or stood idle."""
        if self.seconds is not None:
            return max(0, min(self.seconds, until - self.start))
        edge = min(self.end, until)
        spans = sorted((max(a.start, self.start), min(a.end, edge)) for a in self.allocations)
        return sum(b - a for a, b in union(spans))


def union(spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The stretches that sorted spans cover together; empty and reversed ones cover nothing."""
    open_start: int | None = None
    open_end = 0
    for start, end in spans:
        if start >= end:
            continue
        if open_start is None or start > open_end:
            if open_start is not None:
                yield open_start, open_end
            open_start, open_end = start, end
        else:
            open_end = max(open_end, end)
    if open_start is not None:
        yield open_start, open_end


def coverage(sets: Iterable[AllocationSet], window: Window) -> float | None:
    """Share of a window's final time that the sets tell of; None where nothing that was asked for is final yet."""
    if not window.final_seconds:
        return None
    covered = sum(one.covered(window.final_until) for one in sets)
    return min(1.0, covered / window.final_seconds)


class Group(Struct, frozen=True):
    """Many allocations as one: sums of costs and usage, counts, the hull of when they ran."""

    costs: Costs
    usage: Usage
    pods: int
    minutes: float

    @property
    def efficiency(self) -> Efficiency:
        """From sums of requests and usage, never a mean of ratios."""
        cpu = efficiency(self.usage.cpu_usage, self.usage.cpu_request, self.costs.cpu)
        ram = efficiency(self.usage.ram_usage, self.usage.ram_request, self.costs.ram)
        return Efficiency(cpu, ram, weighted(cpu, self.costs.cpu, ram, self.costs.ram))

    def average(self, minutes_of: float) -> float:
        """Core-minutes or byte-minutes over the minutes of the hull."""
        return minutes_of / self.minutes if self.minutes else 0.0


def add(allocations: Sequence[Allocation]) -> Group:
    """Many allocations as one, whichever windows they are of."""
    start = min((a.start for a in allocations), default=0)
    end = max((a.end for a in allocations), default=0)
    return Group(
        Costs.sum(a.costs for a in allocations),
        Usage.sum(a.usage for a in allocations),
        len({(a.namespace, a.pod) for a in allocations if a.pod}),
        max(0, end - start) / 60,
    )


def as_prometheus_spells(label: str) -> str:
    """A Kubernetes label's name in metrics: ``-``, ``.`` and ``/`` become ``_``."""
    return _LABEL_UNSAFE.sub("_", label)


def _labelled(labels: dict[str, str], name: str) -> str:
    """A label by either spelling."""
    if name in labels:
        return labels[name]
    clean = as_prometheus_spells(name)
    return next((value for key, value in labels.items() if as_prometheus_spells(key) == clean), "")


def _property(name: str) -> Callable[[Allocation], str]:
    if name.startswith("label:"):
        return lambda a: _labelled(a.labels, name[len("label:") :])
    if name.startswith("annotation:"):
        return lambda a: _labelled(a.annotations, name[len("annotation:") :])
    if name == "service":
        return lambda a: min(a.services, default="")
    attribute = {"controllerKind": "controller_kind"}.get(name, name)
    return lambda a: str(getattr(a, attribute))


def group(allocations: Iterable[Allocation], aggregate: Sequence[str]) -> dict[tuple[str, ...], list[Allocation]]:
    """Allocations by the properties of ``aggregate``, in order of their keys; what lacks one is ``__unallocated__``."""
    properties = [_property(name) for name in aggregate]
    members: dict[tuple[str, ...], list[Allocation]] = defaultdict(list)
    for allocation in allocations:
        members[tuple(read(allocation) or UNALLOCATED for read in properties)].append(allocation)
    return dict(sorted(members.items()))


def share_idle(allocations: Sequence[Allocation], idle: Costs) -> tuple[list[Costs], Costs]:
    """Spread idle cpu, ram and gpu over allocations by their cost of each, each resource by itself.

    Returns:
        the costs of each allocation with its share, and what could not be spread because nobody has that resource.
    """
    spread: dict[str, list[float]] = {}
    kept = {"cpu": idle.cpu, "ram": idle.ram, "gpu": idle.gpu}
    for resource in ("cpu", "ram", "gpu"):
        weights = [max(0.0, getattr(a.costs, resource)) for a in allocations]
        whole = fsum(weights)
        if whole > 0:
            spread[resource] = [kept[resource] * (weight / whole) for weight in weights]
            kept[resource] = 0.0
    shared = [
        a.costs.plus(Costs(**{resource: shares[number] for resource, shares in spread.items()}))
        for number, a in enumerate(allocations)
    ]
    return shared, replace(idle, **kept)
