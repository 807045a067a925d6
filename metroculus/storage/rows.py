"""One allocation of one hour, as it goes into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import MANAGEMENT, Allocation, as_prometheus_spells

BLOCK_ROWS = 50_000
"""Rows in one insert: one block of the engine, some tens of megabytes on the way."""


class NodeKind(Struct, frozen=True):
    """What a node is, from assets."""

    instance_type: str = ""
    zone: str = ""


UNKNOWN_NODE = NodeKind()


class Line(Struct, frozen=True, array_like=True, gc=False):
    """A row of ``k8s_allocations`` but for its account; what no namespace owns stands under its special name."""

    hour: int
    batch: int
    owned: bool
    management: float
    instance_type: str
    zone: str
    allocation: Allocation


def lines_of(
    hour: int,
    batch: int,
    allocations: Sequence[Allocation],
    management: float | None,
    nodes: Mapping[str, NodeKind],
) -> Iterator[Line]:
    """The rows of one batch."""
    for allocation in allocations:
        special = allocation.special
        stored = _spelled(allocation)
        if special is not None:
            stored = replace(stored, namespace=special)
        kind = nodes.get(allocation.node, UNKNOWN_NODE)
        yield Line(hour, batch, special is None, 0.0, kind.instance_type, kind.zone, stored)
    if management is not None:
        row = Allocation(name=MANAGEMENT, namespace=MANAGEMENT, start=hour, end=hour + 3600)
        yield Line(hour, batch, False, management, "", "", row)


def _spelled(allocation: Allocation) -> Allocation:
    """Labels and annotations are found by either spelling of their names."""
    labels, annotations = _either(allocation.labels), _either(allocation.annotations)
    if labels is allocation.labels and annotations is allocation.annotations:
        return allocation
    return replace(allocation, labels=labels, annotations=annotations)


def _either(named: dict[str, str]) -> dict[str, str]:
    spelled = {as_prometheus_spells(name): value for name, value in named.items()}
    return named if spelled.keys() <= named.keys() else spelled | named


Flat = tuple[object, ...]


def flat(account: str, line: Line) -> Flat:
    """A row's values in the order of ``schema.ALLOCATIONS``."""
    a = line.allocation
    c, e, u, m = a.costs, a.egress, a.usage, a.amounts
    return (
        account, line.hour, line.batch, int(line.owned), a.cluster, a.namespace, a.controller, a.controller_kind, a.pod,
        a.container, a.node, line.instance_type, line.zone, list(a.services), list(a.labels), list(a.labels.values()),
        list(a.annotations), list(a.annotations.values()), a.start, a.end,
        c.cpu, c.ram, c.gpu, c.pv, c.network, c.load_balancer, c.shared, c.external, line.management,
        e.internet, e.region, e.zone, u.cpu_request, u.cpu_usage, u.ram_request, u.ram_usage, m.cpu, m.ram, m.gpu, m.pv,
    )  # fmt: skip
