"""Prices that the operator gives for clusters whose upstream has none (machines of one's own).

A price is used for a component only where the upstream prices none of it, and the source says so.
"""

from __future__ import annotations

from math import fsum
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, Allocation, Amounts
from metroculus.cost_model.statement import AllocationReading

Price = Annotated[float, Meta(ge=0, le=1e6)]


class CustomPrices(Struct, frozen=True, forbid_unknown_fields=True):
    """USD per core and hour, per GiB of memory and hour, per GPU and hour, per GiB of storage and hour."""

    core_hour: Price | None = None
    ram_gib_hour: Price | None = None
    gpu_hour: Price | None = None
    storage_gib_hour: Price | None = None

    def by_component(self) -> dict[str, float]:
        given = {"cpu": self.core_hour, "ram": self.ram_gib_hour, "gpu": self.gpu_hour, "pv": self.storage_gib_hour}
        return {component: price for component, price in given.items() if price is not None}


def unpriced(reading: AllocationReading, prices: CustomPrices) -> dict[str, float]:
    """The given prices of components that the upstream measured and did not price."""
    allocations = list(reading.allocations())
    return {
        component: price
        for component, price in prices.by_component().items()
        if any(getattr(a.amounts, component) for a in allocations)
        and not any(getattr(a.costs, component) for a in allocations)
    }


def with_prices(reading: AllocationReading, nodes: Amounts | None, prices: CustomPrices) -> AllocationReading:
    """The reading with what had no price priced; idle is what the nodes had beyond what was allocated.

    Args:
        nodes: core, GiB and GPU hours of all nodes in the window; None where they are not known, and then a component
            that has idle is ``missing``.
    """
    wanted = unpriced(reading, prices)
    if not wanted:
        return reading
    allocated = {name: fsum(getattr(a.amounts, name) for a in reading.allocations()) for name in wanted}
    idle = {name: getattr(nodes, name) - allocated[name] for name in wanted if nodes is not None and name != "pv"}
    sets = []
    for number, one in enumerate(reading.sets):
        priced = [_priced(a, wanted, idle if number == 0 else {}) for a in one.allocations]
        if number == 0 and idle and not any(a.special == IDLE for a in priced):
            bare = Allocation(name=IDLE, start=one.start, end=one.end)
            priced.append(_priced(bare, wanted, idle))
        sets.append(replace(one, allocations=tuple(priced)))
    unknown = () if nodes is not None else tuple(c for c in wanted if c != "pv")
    note = f"priced by the operator's own prices, for the source has none: {', '.join(sorted(wanted))}"
    source = replace(reading.source, warnings=(*reading.source.warnings, note))
    return replace(reading, source=source, sets=tuple(sets), missing=(*reading.missing, *unknown))


def _priced(allocation: Allocation, wanted: dict[str, float], idle: dict[str, float]) -> Allocation:
    amounts = idle if allocation.special == IDLE else {c: getattr(allocation.amounts, c) for c in wanted}
    costs = {component: amounts.get(component, 0.0) * price for component, price in wanted.items()}
    return replace(allocation, costs=replace(allocation.costs, **costs))
