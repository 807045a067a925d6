"""Prices that the operator gives for clusters whose upstream has none (machines of one's own).

A price is used for a component only where the upstream prices none of it, and the source says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct, structs

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.columns import LINE, Allocations, exact
from metroculus.cost_model.components import COMPONENTS, of_kind
from metroculus.cost_model.reading import AllocationReading, AllocationSet, AssetsReading, NodeCosts

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


def unpriced(rows: Allocations, prices: CustomPrices, apart: bool = False) -> set[str]:
    """Components of nodes that the operator prices and the rows of some cluster do not.

    Args:
        apart: whether rows are of several clusters.
    """
    given = [name for name in prices.by_component() if name != "pv"]
    return {name for part in _clusters(rows, apart) for name in given if not part.line(name).any()}


def with_prices(
    reading: AllocationReading, assets: Sequence[AssetsReading | None], prices: CustomPrices, apart: bool = False
) -> AllocationReading:
    """The reading with what had no price priced; idle is what the nodes had beyond what was allocated.

    Each set stands by itself, and each cluster in it: what its source prices from one day on keeps that price.
    Where the source tells no idle, all of it is worked out.

    Args:
        assets: those of the time of each set; without them a component that has idle is ``missing``.
        apart: whether rows are of several clusters.
    """
    tells_idle = reading.has_idle()
    sets, priced, unknown = [], set[str](), set[str]()
    for one, known in zip(reading.sets, assets, strict=True):
        parts = []
        for rows in _clusters(one.columns, apart):
            cluster = rows.texts["cluster"].list()[0] if apart else ""
            own = known.of_cluster(cluster) if known is not None and apart else known
            part = _Part(rows, own, prices)
            parts.append(part.rows_with_prices(one, cluster, tells_idle))
            priced |= part.wanted.keys()
            unknown |= part.unknown
        sets.append(replace(one, allocations=Allocations.joined(parts)))
    if not priced and tells_idle:
        return reading
    warnings = (*reading.source.warnings, *([priced_note(priced)] if priced else []))
    missing = tuple(sorted({*reading.missing, *unknown}))
    source = structs.replace(reading.source, warnings=warnings)
    return structs.replace(reading, source=source, sets=tuple(sets), missing=missing)


class _Part:
    """The rows of one cluster in one set, and what the operator's prices make of them."""

    def __init__(self, rows: Allocations, assets: AssetsReading | None, prices: CustomPrices) -> None:
        self._rows = rows
        self._assets = assets
        hours = assets.node_hours() if assets is not None else None
        self._hours = hours
        self.wanted = {
            name: price
            for name, price in prices.by_component().items()
            if not rows.line(name).any()
            and (rows.line(AMOUNT_OF[name]).any() or (name != "pv" and hours is not None and getattr(hours, name)))
        }
        self.unknown = {name for name in self.wanted if name != "pv" and hours is None}

    def rows_with_prices(self, one: AllocationSet, cluster: str, tells_idle: bool) -> Allocations:
        """Amounts times prices, and idle."""
        rows = self._rows
        idle = self._idle(tells_idle)
        if idle and not rows.is_special(IDLE).any():
            bare = Allocation(name=IDLE, cluster=cluster, start=one.start, end=one.end)
            rows = Allocations.joined([rows, Allocations.of([bare])])
        measures = rows.measures.copy()
        is_idle = rows.is_special(IDLE)
        for name, price in self.wanted.items():
            measures[LINE[name]] = np.where(is_idle, 0.0, rows.line(AMOUNT_OF[name]) * price)
        first = np.flatnonzero(is_idle)[:1]  # of several idle rows one takes it
        for name, usd in idle.items():
            measures[LINE[name], first] = usd
        return rows.replaced(measures)

    def _idle(self, tells_idle: bool) -> dict[str, float]:
        """USD by component; of those that the source prices only where it tells no idle itself."""
        rows, idle = self._rows, dict[str, float]()
        if self._hours is not None:
            for name, price in self.wanted.items():
                if name != "pv":
                    allocated = float(exact(rows.line(AMOUNT_OF[name])))
                    idle[name] = (getattr(self._hours, name) - allocated) * price
        if tells_idle:
            return idle
        nodes = self._assets.management().nodes if self._assets is not None else None
        for name in NodeCosts.__struct_fields__:
            if name not in self.wanted and nodes is None:
                self.unknown.add(name)
            elif name not in self.wanted and nodes is not None:
                idle[name] = getattr(nodes, name) - float(exact(rows.line(name)))
        return idle


def unpriced_nodes(rows: Allocations) -> tuple[str, ...]:
    """What nobody put a price on: cpu and memory of nodes at price 0 beside what is allocated of them, GPUs likewise.

    One of the two alone may be free: some price nodes by their cores.
    """
    told = np.asarray(rows.measures.any(axis=1))
    allocated = {name for name, amount in AMOUNT_OF.items() if told[LINE[amount]]}
    return without_price(allocated, {name for name in AMOUNT_OF if told[LINE[name]]})


def without_price(allocated: Collection[str], priced: Collection[str]) -> tuple[str, ...]:
    """Of nodes' components, by which of them are allocated and which have a price, those that nobody put a price on."""
    compute = ("cpu", "ram")
    if not any(name in allocated for name in compute) or any(name in priced for name in compute):
        return ()
    return (*compute, "gpu") if "gpu" in allocated and "gpu" not in priced else compute


def priced_note(components: Iterable[str]) -> str:
    """What is said of components that the operator's prices are used for."""
    return f"priced by the operator's own prices, for the source has none: {', '.join(sorted(components))}"


def unpriced_note(components: Collection[str]) -> str:
    """What is said of components that have no price."""
    named = ", ".join(name for name in COMPONENTS if name in components)
    return f"unpriced: {named}: the nodes have no price; give custom_prices with the account's source"


def mark_unpriced(reading: AllocationReading, apart: bool = False) -> AllocationReading:
    """The reading with what has no price as missing: a cluster is not free because nobody priced its nodes.

    Args:
        apart: whether rows are of several clusters, each of which must have a price.
    """
    if not reading.usable:
        return reading
    free = {name for one in reading.sets for name in unpriced_components(one.columns, apart)}
    if not free:
        return reading
    warnings = (*reading.source.warnings, unpriced_note(free))
    source = structs.replace(reading.source, status="partial", warnings=warnings)
    return structs.replace(reading, source=source, missing=tuple(sorted({*reading.missing, *free})))


def unpriced_components(rows: Allocations, apart: bool) -> set[str]:
    """What of any cluster has no price."""
    return {name for part in _clusters(rows, apart) for name in unpriced_nodes(part)}


def _clusters(rows: Allocations, apart: bool) -> list[Allocations]:
    """Rows that are priced together: those of each cluster, where they are of several."""
    return rows.by_cluster() if apart else [rows]
