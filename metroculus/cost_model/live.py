"""What a cluster costs an hour at one moment, by namespace: a rate, which is never added to costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum

from msgspec import Struct
from msgspec.structs import astuple, replace

from metroculus.cost_model.prices import CustomPrices, priced_note, unpriced_note, without_price

NODE_COSTS = ("cpu", "ram", "gpu")
COSTS = (*NODE_COSTS, "pv", "network", "load_balancer")
"""What a namespace costs an hour, by component; they add up to its total."""
USAGE = ("cpu_request", "cpu_usage", "ram_request", "ram_usage", "network_sent")
"""Cores, bytes of memory, and bytes a second that leave their zone or not."""
ALLOCATED = {"cpu": "cores", "ram": "ram_gib", "gpu": "gpus", "pv": "pv_gib"}
"""By component, the amount that its price is for."""


class NamespaceRate(Struct, frozen=True, gc=False):
    """One namespace at one moment: money an hour, usage, and what is allocated."""

    namespace: str
    cpu: float = 0.0
    ram: float = 0.0
    gpu: float = 0.0
    pv: float = 0.0
    network: float = 0.0
    load_balancer: float = 0.0
    cpu_request: float = 0.0
    cpu_usage: float = 0.0
    ram_request: float = 0.0
    ram_usage: float = 0.0
    network_sent: float = 0.0
    cores: float = 0.0
    ram_gib: float = 0.0
    gpus: float = 0.0
    pv_gib: float = 0.0

    @property
    def total(self) -> float:
        return fsum(getattr(self, name) for name in COSTS)


class ClusterRate(Struct, frozen=True, kw_only=True):
    """What is of a cluster as a whole at one moment."""

    idle: float | None
    """What nodes cost an hour beyond what is allocated on them; None where that is not known."""
    management: float | None
    capacity: dict[str, float] = {}
    """Cores, GiB of memory and GPUs that the nodes have."""
    missing: tuple[str, ...] = ()
    """Components that should be told and are not, or not wholly."""
    not_covered: tuple[str, ...] = ()
    """Components that nobody writes, and usage that nobody writes."""
    notes: tuple[str, ...] = ()
    """Why something is missing."""
    partial: bool = False
    """Whether the querier warned of its answer, or a cluster of the account's is not in it."""
    currency: str = ""


class LivePoint(ClusterRate, frozen=True, kw_only=True):
    """A cluster at one moment."""

    at: int
    """Unix seconds."""
    sums: NamespaceRate
    """Of all namespaces."""
    namespaces: tuple[NamespaceRate, ...] = ()

    @property
    def complete(self) -> bool:
        return not (self.missing or self.partial)

    @property
    def unknown(self) -> frozenset[str]:
        """Components and usage of which nothing is known: they are no zeros."""
        told = {name for name in self.missing if getattr(self.sums, name, 0.0)}
        return frozenset({*self.missing, *self.not_covered} - told)

    @property
    def total(self) -> float | None:
        """What is known of it; None where neither cpu nor memory is."""
        if {"cpu", "ram"} <= self.unknown:
            return None
        return fsum([self.sums.total, self.idle or 0.0, self.management or 0.0])


def priced_point(point: LivePoint, prices: CustomPrices | None) -> LivePoint:
    """The point with the operator's prices for what has none; what nobody prices is missing, and no zero.

    A price is used for a component only where none of it is priced (``cost_model.prices``).
    """
    given = prices.by_component() if prices is not None else {}
    allocated = {name: getattr(point.sums, of) for name, of in ALLOCATED.items()}
    priced = {name for name in ALLOCATED if getattr(point.sums, name)}
    wanted = {
        name: price
        for name, price in given.items()
        if name not in priced and (allocated[name] or point.capacity.get(ALLOCATED[name]))
    }
    free = set(without_price({name for name, amount in allocated.items() if amount}, priced)) - wanted.keys()
    notes, idle = list(point.notes), point.idle
    rows = tuple(
        replace(one, **{name: getattr(one, ALLOCATED[name]) * price for name, price in wanted.items()})
        for one in point.namespaces
    )
    missing = {*point.missing, *free}
    if wanted:
        notes.append(priced_note(wanted))
        idle = _idle(point, allocated, wanted)
        missing = (missing - wanted.keys() - {"idle"}) | ({"idle"} if idle is None else set())
    if free:
        notes.append(unpriced_note(free))
        idle = None
    return replace(
        point, sums=summed(rows), namespaces=rows, idle=idle, missing=tuple(sorted(missing)), notes=tuple(notes)
    )


def _idle(point: LivePoint, allocated: Mapping[str, float], prices: Mapping[str, float]) -> float | None:
    """What nodes cost beyond what is allocated on them, with some components at prices of the operator's own."""
    priced = point.idle
    if priced is None:  # of what the operator does not price there must be nothing
        others = [name for name in NODE_COSTS if name not in prices]
        if any(allocated[name] or point.capacity.get(ALLOCATED[name]) for name in others):
            return None
        priced = 0.0
    spare = []
    for name in prices.keys() & set(NODE_COSTS):
        whole = point.capacity.get(ALLOCATED[name])
        if whole is None:
            return None
        spare.append((whole - allocated[name]) * prices[name])
    return fsum([priced, *spare])


def joined(points: Sequence[LivePoint]) -> LivePoint:
    """Clusters of one account at one moment as one; namespaces of the same name are added up."""
    if len(points) == 1:
        return points[0]
    capacity: dict[str, float] = {}
    for one in points:
        for name, amount in one.capacity.items():
            capacity[name] = capacity.get(name, 0.0) + amount
    rows = _added(row for one in points for row in one.namespaces)
    return LivePoint(
        at=points[0].at,
        sums=summed(rows),
        namespaces=rows,
        idle=_sum(one.idle for one in points),
        management=_sum(one.management for one in points),
        capacity=capacity,
        missing=_names(one.missing for one in points),
        not_covered=_names(one.not_covered for one in points),
        notes=tuple(dict.fromkeys(note for one in points for note in one.notes)),
        partial=any(one.partial for one in points),
    )


def _added(rows: Iterable[NamespaceRate]) -> tuple[NamespaceRate, ...]:
    """Rows by namespace, in order; several of one name as their sum."""
    parts: dict[str, list[NamespaceRate]] = {}
    for row in rows:
        parts.setdefault(row.namespace, []).append(row)
    return tuple(several[0] if len(several) == 1 else summed(several, name) for name, several in sorted(parts.items()))


def summed(rows: Sequence[NamespaceRate], namespace: str = "") -> NamespaceRate:
    """Rows added up."""
    numbers = [astuple(row)[1:] for row in rows]
    return NamespaceRate(namespace, *map(fsum, zip(*numbers, strict=True)))


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one of them is not known."""
    known = list(values)
    return None if None in known else fsum(value for value in known if value is not None)


def _names(several: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for one in several for name in one}))


def rows_of(measures: Mapping[str, Mapping[str, float]]) -> tuple[NamespaceRate, ...]:
    """Rows out of what was measured, by measure and namespace."""
    names = sorted({name for one in measures.values() for name in one})
    return tuple(
        NamespaceRate(
            namespace=name, **{measure: values[name] for measure, values in measures.items() if name in values}
        )
        for name in names
    )
