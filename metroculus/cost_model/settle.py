"""Hours as they are kept: held against their control total, and brought to the sum of their own day.

Upstream rounds, and bills some things of an hour for longer than the hour: a day is truer than its hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.columns import COSTS, LINE, Allocations, Coded, Floats, Ints, exact, sums_by
from metroculus.cost_model.components import COMPONENTS, Costs, of_kind

ROUNDING_USD = 1e-5
"""Upstream rounds each figure to five decimals."""

CONTROL_USD = 0.01
CONTROL_SHARE = 0.01
"""An hour further than either from its control total is unreconciled."""

SPREAD_SHARE = 0.10
"""A day may differ from its hours by this much of a component, and the hours follow it."""


class Control(Struct, frozen=True):
    """``residual``: what the control total has beyond the rows, USD."""

    residual: float
    reconciled: bool


def control(rows: Sequence[Allocation], expected: float) -> Control:
    """An hour's rows against the source's own total of the hour.

    What rounding alone explains is a residual and no disagreement.
    """
    allocations = Allocations.of(rows)
    total = allocations.total()
    residual = expected - total
    apart = abs(residual)
    close = apart <= CONTROL_USD and apart <= CONTROL_SHARE * max(abs(total), abs(expected))
    return Control(residual, close or apart <= float(_rounding(allocations.costs.size)))


class Spread(Struct, frozen=True):
    """The hours of a day with the day's difference in them; ``usd`` is what each hour got of it."""

    hours: tuple[Allocations, ...]
    usd: tuple[float, ...]
    reconciled: bool


def spread(hours: Sequence[Sequence[Allocation]], day: Mapping[str, Costs]) -> Spread:
    """Bring the hours of a day, all of them, to the day's own set, component by component.

    Each row of a component gets its share in proportion to its cost: first within its owner, so that namespaces add up
    to what the day says of them, then within the cluster for what no owner could take. Where a component of the cluster
    is further apart than ``SPREAD_SHARE`` nothing is changed and the day is unreconciled.

    Args:
        day: what the day says, by owner: a namespace, or the name of a special entity.
    """
    each = [Allocations.of(hour) for hour in hours]
    kept = Spread(tuple(each), (0.0,) * len(each), True)
    everything = Allocations.joined(each)
    wanted = np.array(Costs.sum(day.values()).by_component())
    whole = exact(everything.costs, 1).astype(np.float64) if len(everything) else np.zeros(len(COMPONENTS))
    apart = np.abs(wanted - whole)
    if np.any((apart > SPREAD_SHARE * np.abs(whole)) & (apart > _rounding(len(everything)))):
        return replace(kept, reconciled=False)
    factors = _factors(everything, day, wanted)
    if np.all(factors == 1.0):
        return kept
    scaled = everything.replaced(_scaled(everything.measures, factors))
    edges = np.cumsum([0, *map(len, each)]).tolist()
    after = tuple(scaled[first:last] for first, last in pairwise(edges))
    return Spread(after, tuple(new.total() - old.total() for new, old in zip(after, each, strict=True)), True)


def _factors(everything: Allocations, day: Mapping[str, Costs], wanted: Floats) -> Floats:
    """By component and row, what brings it to the day."""
    owners = everything.owner
    names, have = sums_by(owners, everything.costs)
    place = {name: number for number, name in enumerate(names)}
    column = Coded(owners.map(lambda name: place.get(name, 0), np.int32), names).codes
    expected = have.copy()
    for number, name in enumerate(names):
        if name in day:
            expected[:, number] = day[name].by_component()
    own = _factor(have, expected, _rounding(np.bincount(column, minlength=len(names))))
    last = _factor(exact(have * own, 1).astype(np.float64), wanted, _rounding(len(everything)))
    return np.asarray((own * last[:, None])[:, column], dtype=np.float64)


def _factor(have: Floats, want: Floats, rounding: Floats) -> Floats:
    """What brings sums to others, where they are near enough; 1 elsewhere."""
    apart = np.abs(want - have)
    near = apart <= np.maximum(SPREAD_SHARE * np.abs(have), rounding)
    differs = apart > 1e-13 * np.maximum(np.abs(want), np.abs(have))
    usable = (have != 0) & (want != 0) & near & differs
    return np.divide(want, have, out=np.ones_like(have), where=usable)


def _scaled(measures: Floats, factors: Floats) -> Floats:
    """Costs by their factors, and each part of a cost by that cost's."""
    scaled = measures.copy()
    scaled[COSTS] *= factors
    for part in of_kind("part"):
        scaled[LINE[part.name]] *= factors[LINE[part.part_of]]
    return scaled


def _rounding(figures: int | Ints) -> Floats:
    """What rounding each of some figures, and each of a control total's, can come to."""
    return np.asarray(ROUNDING_USD / 2 * (np.asarray(figures) + len(COMPONENTS)), dtype=np.float64)
