"""Prices that the operator gives for clusters whose upstream has none (machines of one's own).

A price is used for a component only where the upstream prices none of it, and the source says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct, structs

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.columns import LINE, Allocations, exact
from metroculus.cost_model.components import COMPONENTS, Amounts, of_kind
from metroculus.cost_model.reading import AllocationReading, AllocationSet

AMOUNT_OF = {one.field: one.name for one in of_kind("amount")}
"""The measure of what is allocated of a component: core hours of cpu."""

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


def unpriced(rows: Allocations, prices: CustomPrices) -> dict[str, float]:
    """The given prices of components that the upstream measured in a set and did not price."""
    return {
        component: price
        for component, price in prices.by_component().items()
        if rows.line(AMOUNT_OF[component]).any() and not rows.line(component).any()
    }


def with_prices(
    reading: AllocationReading, nodes: Mapping[int, Amounts | None], prices: CustomPrices
) -> AllocationReading:
    """The reading with what had no price priced; idle is what the nodes had beyond what was allocated.

    Each set stands by itself: an upstream that is priced from one day on is priced by it from then on.

    Args:
        nodes: by the first second of a set, core, GiB and GPU hours of all nodes in its time; where they are not known
            a component that has idle is ``missing``.
    """
    sets, priced, unknown = [], set[str](), set[str]()
    for one in reading.sets:
        wanted = unpriced(one.columns, prices)
        if wanted:
            of_nodes = nodes.get(one.start)
            one = replace(one, allocations=_priced(one, wanted, of_nodes))
            unknown |= {name for name in wanted if name != "pv" and of_nodes is None}
        priced |= wanted.keys()
        sets.append(one)
    if not priced:
        return reading
    note = f"priced by the operator's own prices, for the source has none: {', '.join(sorted(priced))}"
    source = structs.replace(reading.source, warnings=(*reading.source.warnings, note))
    missing = tuple(sorted({*reading.missing, *unknown}))
    return structs.replace(reading, source=source, sets=tuple(sets), missing=missing)


def free_of_charge(rows: Allocations) -> tuple[str, ...]:
    """What nobody put a price on: cpu and memory of nodes at price 0 beside what is allocated of them, GPUs likewise.

    One of the two alone may be free: some price nodes by their cores.
    """
    compute = rows.line("core_hours").any() or rows.line("ram_gib_hours").any()
    if not compute or rows.line("cpu").any() or rows.line("ram").any():
        return ()
    gpu = rows.line("gpu_hours").any() and not rows.line("gpu").any()
    return ("cpu", "ram", "gpu") if gpu else ("cpu", "ram")


def without_free(reading: AllocationReading) -> AllocationReading:
    """The reading with what has no price as missing: a cluster is not free because nobody priced its nodes."""
    free = {name for one in reading.sets for name in free_of_charge(one.columns)} if reading.usable else set()
    if not free:
        return reading
    named = ", ".join(name for name in COMPONENTS if name in free)
    note = f"unpriced: {named}: the nodes have no price; give custom_prices with the account's source"
    source = structs.replace(reading.source, status="partial", warnings=(*reading.source.warnings, note))
    return structs.replace(reading, source=source, missing=tuple(sorted({*reading.missing, *free})))


def _priced(one: AllocationSet, wanted: Mapping[str, float], nodes: Amounts | None) -> Allocations:
    """Amounts times prices; idle rows take what is idle."""
    rows = one.columns
    allocated = {name: float(exact(rows.line(AMOUNT_OF[name]))) for name in wanted}
    idle = {name: getattr(nodes, name) - allocated[name] for name in wanted if nodes is not None and name != "pv"}
    if idle and not rows.is_special(IDLE).any():
        rows = Allocations.joined([rows, Allocations.of([Allocation(name=IDLE, start=one.start, end=one.end)])])
    measures = rows.measures.copy()
    is_idle = rows.is_special(IDLE)
    first = np.cumsum(is_idle) == 1  # of several idle rows one takes it
    for component, price in wanted.items():
        amounts = rows.line(AMOUNT_OF[component])
        own_idle = np.where(first, idle.get(component, 0.0), 0.0)
        measures[LINE[component]] = np.where(is_idle, own_idle, amounts) * price
    return rows.replaced(measures)
