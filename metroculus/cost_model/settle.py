"""Hours as they are kept: held against their control total, and brought to the sum of their own day.

Upstream rounds, and bills some things of an hour for longer than the hour: a day is truer than its hours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import fsum

import numpy as np
from msgspec import Struct

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.columns import COSTS, LINE, Allocations, Coded, Floats, Ints, by_owner, sums_by
from metroculus.cost_model.components import COMPONENTS, Costs, of_kind

ROUNDING_USD = 1e-5
"""Upstream rounds each figure to five decimals."""

CONTROL_USD = 0.01
CONTROL_SHARE = 0.01
"""An hour further than either from its control total is unreconciled."""

SPREAD_SHARE = 0.10
"""A day may differ from its hours by this much of an owner's component, and the hours follow it."""
ANY_SHARE = 1e12
"""For hours that follow their day whatever the difference is; finite, so that it can be multiplied by 0."""
LEAST_ROUNDINGS = 100
"""An owner's component follows its day only above this multiple of the possible rounding error."""


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
    """The hours of a day with the day's difference in them; ``usd`` is what each hour got of it.

    ``residuals`` is what the day says beyond the hours by owner and component, where the hours could not follow it.
    """

    hours: tuple[Allocations, ...]
    usd: tuple[float, ...]
    residuals: Mapping[tuple[str, str], float] = {}

    @property
    def reconciled(self) -> bool:
        return not self.residuals

    @property
    def bound(self) -> float:
        """USD by which the hours may be wrong together."""
        return fsum(map(abs, self.residuals.values()))


def follow(hours: Sequence[Sequence[Allocation]], loose: Sequence[bool], day: Mapping[str, Costs]) -> Spread:
    """``spread`` of a day of which some hours are no more than estimates, or cannot be asked for again.

    Those take all that the day says beyond the others, however much it is.

    Args:
        loose: whether each hour is such a one.
    """
    if not any(loose):
        return spread(hours, day)
    firm = by_owner(Allocations.joined(Allocations.of(hour) for hour, one in zip(hours, loose, strict=True) if not one))
    rest = less(day, firm)
    followed = spread([hour for hour, one in zip(hours, loose, strict=True) if one], rest, limit=ANY_SHARE)
    changed, added = iter(followed.hours), iter(followed.usd)
    return Spread(
        tuple(next(changed) if one else Allocations.of(hour) for hour, one in zip(hours, loose, strict=True)),
        tuple(next(added) if one else 0.0 for one in loose),
        followed.residuals,
    )


def less(day: Mapping[str, Costs], part: Mapping[str, Costs]) -> dict[str, Costs]:
    """What a day says beyond a part of it, by owner."""
    nothing = Costs()
    return {
        owner: Costs(
            *(
                all_of_it - some
                for all_of_it, some in zip(
                    day.get(owner, nothing).by_component(), part.get(owner, nothing).by_component(), strict=True
                )
            )
        )
        for owner in {**day, **part}
    }


def spread(hours: Sequence[Sequence[Allocation]], day: Mapping[str, Costs], limit: float = SPREAD_SHARE) -> Spread:
    """Bring the hours of a day, all of them, to the day's own set: each owner and component by itself.

    A row gets of its owner's difference in proportion to what it costs, whatever its sign. Where the day is further
    from the hours than ``limit``, or the hours come to so little that rounding is felt, they stay as they are
    and the difference is a residual. Nothing of one owner is ever charged to another.

    Args:
        day: what the day says, by owner: a namespace, or the name of a special entity.
        limit: share of an owner's component.
    """
    each = [Allocations.of(hour) for hour in hours]
    everything = Allocations.joined(each)
    owners = everything.owner
    names, have = sums_by(owners, everything.costs)
    place = {name: number for number, name in enumerate(names)}
    column = Coded(owners.map(lambda name: place.get(name, 0), np.int32), names).codes
    told = np.array([day.get(name, Costs()).by_component() for name in names], dtype=np.float64).reshape(
        -1, have.shape[0]
    )
    _, sizes = sums_by(owners, np.abs(everything.costs))
    rounding = _rounding(np.bincount(column, minlength=len(names)))
    shares = _shares(have, told.T, sizes, rounding, limit)
    residuals = _residuals(names, have, told.T, shares, day, rounding)
    if not shares.any():
        return Spread(tuple(each), (0.0,) * len(each), residuals)
    scaled = everything.replaced(_scaled(everything.measures, shares[:, column]))
    edges = np.cumsum([0, *map(len, each)]).tolist()
    after = tuple(scaled[first:last] for first, last in pairwise(edges))
    usd = tuple(new.total() - old.total() for new, old in zip(after, each, strict=True))
    return Spread(after, usd, residuals)


def _shares(have: Floats, told: Floats, sizes: Floats, rounding: Floats, limit: float) -> Floats:
    """By component and owner, what each row gets per USD of its size; 0 where nothing is spread."""
    apart = told - have
    close = (np.abs(apart) <= limit * np.abs(have)) & (told * have >= 0.0)  # a cost never becomes a credit
    usable = (np.abs(have) > LEAST_ROUNDINGS * rounding) & close
    differs = np.abs(apart) > 1e-13 * np.maximum(np.abs(told), np.abs(have))
    return np.divide(apart, sizes, out=np.zeros_like(have), where=usable & differs)


def _residuals(
    names: Sequence[str], have: Floats, told: Floats, shares: Floats, day: Mapping[str, Costs], rounding: Floats
) -> dict[tuple[str, str], float]:
    """What is left between the day and its hours, rounding apart; owners that only the day knows among them."""
    apart = np.where(shares == 0, told - have, 0.0)
    felt = np.abs(apart) > np.maximum(rounding, 1e-13 * np.abs(have))
    left = {(names[owner], COMPONENTS[line]): float(apart[line, owner]) for line, owner in np.argwhere(felt).tolist()}
    for name in day.keys() - set(names):
        lacking = zip(COMPONENTS, day[name].by_component(), strict=True)
        left |= {(name, component): usd for component, usd in lacking if abs(usd) > float(_rounding(0))}
    return left


def _scaled(measures: Floats, shares: Floats) -> Floats:
    """Costs with their share of the day's difference, and each part of a cost with that cost's."""
    scaled = measures.copy()
    scaled[COSTS] += shares * np.abs(measures[COSTS])
    for part in of_kind("part"):
        line = LINE[part.name]
        scaled[line] += shares[LINE[part.part_of]] * np.abs(measures[line])
    return scaled


def control_rounding(figures: int) -> float:
    """What rounding each of some figures can come to, USD."""
    return float(_rounding(figures))


def _rounding(figures: int | Ints) -> Floats:
    """What rounding each of some figures, and each of a control total's, can come to."""
    return np.asarray(ROUNDING_USD / 2 * (np.asarray(figures) + len(COMPONENTS)), dtype=np.float64)
