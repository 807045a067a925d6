"""Allocations: what one pod, container or namespace cost over one window, as a row.

A row is what hand-worked cases and small answers are written in; sets of any size are columns
(``cost_model.columns``), which are made of rows and give rows back. Money is in the source's currency, unrounded; a
cost holds its adjustment.
"""

from __future__ import annotations

import re

from msgspec import Struct

from metroculus.cost_model.components import COMPONENTS, Amounts, Costs, Egress, Usage
from metroculus.cost_model.efficiency import Efficiency, efficiency, weighted

__all__ = ["COMPONENTS", "Allocation", "Amounts", "Costs", "Egress", "Filters", "Group", "Usage"]

IDLE = "__idle__"
UNALLOCATED = "__unallocated__"
SPECIAL_NAMES = frozenset({IDLE, UNALLOCATED, "__unmounted__", "__shared__", "__external__", ""})
"""Cost of the cluster that no namespace owns; matched as the last part of a name (``cluster-one/__idle__``)."""

MANAGEMENT = "__management__"
"""The name of cluster management where it is listed beside namespaces; no allocation has that name."""

_LABEL_UNSAFE = re.compile(r"[-./]")


def last_part(name: str) -> str:
    """What stands behind the last slash of a name."""
    return name.rsplit("/", 1)[-1]


class Allocation(Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One pod, container, namespace… in one window.

    ``start`` and ``end`` (Unix seconds) are when it ran, not the window. ``unknown`` names the measures that the source
    left out: they count as nothing in the sums, and whoever reads the sums must say so.
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
    pods: tuple[str, ...] = ()
    """Of a row that is a namespace's sum: the names of its pods, so that they can be counted."""

    @property
    def special(self) -> str | None:
        """Which special entity this is, or None for what a namespace owns."""
        return special_name(self.name, self.namespace)


def special_name(name: str, namespace: str) -> str | None:
    """The special entity that a row with these names is, or None for what a namespace owns."""
    last = last_part(name)
    if last == IDLE:
        return IDLE
    if namespace in SPECIAL_NAMES:
        return namespace or (last if last in SPECIAL_NAMES else "")
    return None


class Filters(Struct, frozen=True):
    """What allocations must have; several values of one are alternatives. A special name is a namespace like any."""

    namespaces: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    properties: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Other properties by name, ``label:x`` among them, with their values; empty is of what lacks it."""
    clusters: tuple[str, ...] = ()
    """The account's own, where what is stored may hold others': they narrow what is read, and nothing that is shown."""

    @property
    def names(self) -> tuple[str, ...]:
        """The properties that rows are filtered by beside their namespace, node and services."""
        return tuple(name for name, _ in self.properties)

    @property
    def any(self) -> bool:
        return bool(self.namespaces) or self.owned_only

    @property
    def owned_only(self) -> bool:
        """Whether cost that no namespace owns is left out: it has no service and no label, and no pod on a node."""
        return bool(self.nodes or self.services or self.properties)

    def keep_special(self, name: str) -> bool:
        """Whether cost that no namespace owns is asked for."""
        return not self.owned_only and (not self.namespaces or name in self.namespaces)


class Group(Struct, frozen=True):
    """Many allocations as one: sums of costs and usage, counts, the hull of when they ran.

    ``unknown`` names the measures of usage that some of them lack.
    """

    costs: Costs
    usage: Usage
    pods: int
    minutes: float
    unknown: frozenset[str] = frozenset()

    @property
    def efficiency(self) -> Efficiency:
        """From sums of requests and usage, never a mean of ratios."""
        cpu = (
            None
            if self.unknown & {"cpu_usage", "cpu_request"}
            else efficiency(self.usage.cpu_usage, self.usage.cpu_request, self.costs.cpu)
        )
        ram = (
            None
            if self.unknown & {"ram_usage", "ram_request"}
            else efficiency(self.usage.ram_usage, self.usage.ram_request, self.costs.ram)
        )
        return Efficiency(cpu, ram, weighted(cpu, self.costs.cpu, ram, self.costs.ram))

    def average(self, measure: str) -> float | None:
        """A request or usage in cores or bytes, over the minutes of the hull; None where it is unknown."""
        if measure in self.unknown:
            return None
        amount: float = getattr(self.usage, measure)
        return amount / self.minutes if self.minutes else 0.0


def as_prometheus_spells(label: str) -> str:
    """A Kubernetes label's name in metrics: ``-``, ``.`` and ``/`` become ``_``."""
    return _LABEL_UNSAFE.sub("_", label)


def value_of(labels: dict[str, str], name: str) -> str:
    """A label's value by either spelling of its name, of several the first in order; empty where there is none."""
    if name in labels:
        return labels[name]
    clean = as_prometheus_spells(name)
    return next((labels[key] for key in sorted(labels) if as_prometheus_spells(key) == clean), "")
