"""One allocation of one hour, as it goes into the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, SPECIAL_NAMES, Allocation, as_prometheus_spells

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
        kind = nodes.get(allocation.node, UNKNOWN_NODE)
        if allocation.namespace in SPECIAL_NAMES or allocation.name.endswith(IDLE):
            special = allocation.special
            stored = allocation if special is None else replace(allocation, namespace=special)
            yield Line(hour, batch, special is None, 0.0, kind.instance_type, kind.zone, _spelled(stored))
        else:
            yield Line(hour, batch, True, 0.0, kind.instance_type, kind.zone, _spelled(allocation))
    if management is not None:
        row = Allocation(name=MANAGEMENT, namespace=MANAGEMENT, start=hour, end=hour + 3600)
        yield Line(hour, batch, False, management, "", "", row)


_PLAIN: set[str] = set()
"""Names that Prometheus spells as they are: they are few, and asked about millions of times."""
_PLAIN_KEPT = 65_536


def _spelled(allocation: Allocation) -> Allocation:
    """Labels and annotations are found by either spelling of their names."""
    labels, annotations = allocation.labels, allocation.annotations
    if labels.keys() <= _PLAIN and annotations.keys() <= _PLAIN:
        return allocation
    return replace(allocation, labels=_either(labels), annotations=_either(annotations))


def _either(named: dict[str, str]) -> dict[str, str]:
    spelled = {name: as_prometheus_spells(name) for name in named}
    if len(_PLAIN) < _PLAIN_KEPT:
        _PLAIN.update(name for name, plain in spelled.items() if name == plain)
    return {plain: named[name] for name, plain in spelled.items()} | named


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
