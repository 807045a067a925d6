"""Prices that the operator gives for clusters whose upstream has none (machines of one's own).

A price is used for a component only where the upstream prices none of it, and the source says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct, structs

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.columns import LINE, Allocations, exact
from metroculus.cost_model.components import Amounts, of_kind
from metroculus.cost_model.reading import AllocationReading

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


def unpriced(reading: AllocationReading, prices: CustomPrices) -> dict[str, float]:
    """The given prices of components that the upstream measured and did not price."""
    allocations = reading.allocations()
    return {
        component: price
        for component, price in prices.by_component().items()
        if allocations.line(AMOUNT_OF[component]).any() and not allocations.line(component).any()
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
    everything = reading.allocations()
    allocated = {name: float(exact(everything.line(AMOUNT_OF[name]))) for name in wanted}
    idle = {name: getattr(nodes, name) - allocated[name] for name in wanted if nodes is not None and name != "pv"}
    sets = []
    for number, one in enumerate(reading.sets):
        columns = one.columns
        if number == 0 and idle and not columns.is_special(IDLE).any():
            bare = Allocation(name=IDLE, start=one.start, end=one.end)
            columns = Allocations.joined([columns, Allocations.of([bare])])
        sets.append(replace(one, allocations=_priced(columns, wanted, idle if number == 0 else {})))
    unknown = () if nodes is not None else tuple(c for c in wanted if c != "pv")
    note = f"priced by the operator's own prices, for the source has none: {', '.join(sorted(wanted))}"
    source = structs.replace(reading.source, warnings=(*reading.source.warnings, note))
    return structs.replace(reading, source=source, sets=tuple(sets), missing=(*reading.missing, *unknown))


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
    unpriced = free_of_charge(reading.allocations()) if reading.usable else ()
    if not unpriced:
        return reading
    note = f"unpriced: {', '.join(unpriced)}: the nodes have no price; give custom_prices with the account's source"
    source = structs.replace(reading.source, status="partial", warnings=(*reading.source.warnings, note))
    return structs.replace(reading, source=source, missing=tuple(sorted({*reading.missing, *unpriced})))


def _priced(allocations: Allocations, wanted: dict[str, float], idle: dict[str, float]) -> Allocations:
    """Amounts times prices; idle rows take what is idle."""
    measures = allocations.measures.copy()
    is_idle = allocations.is_special(IDLE)
    for component, price in wanted.items():
        amounts = allocations.line(AMOUNT_OF[component])
        measures[LINE[component]] = np.where(is_idle, idle.get(component, 0.0), amounts) * price
    return allocations.replaced(measures)
