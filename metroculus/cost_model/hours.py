"""Hours as they are kept: held against their control total, and brought to the sum of their own day.

Upstream rounds, and bills some things of an hour for longer than the hour: a day is truer than its hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, isclose

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import COMPONENTS, Allocation, Costs

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


def control(allocations: Sequence[Allocation], told: float) -> Control:
    """An hour's rows against the source's own total of the hour.

    What rounding alone explains is a residual and no disagreement.
    """
    figures = [usd for a in allocations for usd in a.costs.by_component()]
    total = fsum(figures)
    residual = told - total
    rounding = ROUNDING_USD / 2 * (len(figures) + len(COMPONENTS))
    apart = abs(residual)
    close = apart <= CONTROL_USD and apart <= CONTROL_SHARE * max(abs(total), abs(told))
    return Control(residual, close or apart <= rounding)


class Spread(Struct, frozen=True):
    """The hours of a day with the day's difference in them; ``usd`` is what each hour got of it."""

    hours: tuple[tuple[Allocation, ...], ...]
    usd: tuple[float, ...]
    reconciled: bool


def spread(hours: Sequence[Sequence[Allocation]], day: Costs) -> Spread:
    """Bring the hours of a day, all of them, to the day's own set, component by component.

    Each row of a component gets its share in proportion to its cost. Where a component is further apart than
    ``SPREAD_SHARE`` nothing is changed and the day is unreconciled.
    """
    rows = [a.costs.by_component() for hour in hours for a in hour]
    sums = Costs(*(fsum(row[n] for row in rows) for n in range(len(COMPONENTS)))).by_component()
    rounding = ROUNDING_USD / 2 * (len(rows) + len(COMPONENTS))
    factors: list[float] = []
    for have, want in zip(sums, day.by_component(), strict=True):
        difference = abs(want - have)
        within = difference <= SPREAD_SHARE * abs(have)
        if not within and difference > rounding:
            return Spread(tuple(tuple(hour) for hour in hours), (0.0,) * len(hours), False)
        factors.append(want / have if within and have and not isclose(want, have, rel_tol=1e-13) else 1.0)
    if all(factor == 1.0 for factor in factors):
        return Spread(tuple(tuple(hour) for hour in hours), (0.0,) * len(hours), True)
    scaled = tuple(tuple(_scaled(a, factors) for a in hour) for hour in hours)
    usd = tuple(_total(after) - _total(before) for before, after in zip(hours, scaled, strict=True))
    return Spread(scaled, usd, True)


def _scaled(allocation: Allocation, factors: Sequence[float]) -> Allocation:
    parts = allocation.costs.by_component()
    network = factors[COMPONENTS.index("network")]
    egress = allocation.egress
    if network != 1.0:
        egress = replace(
            egress, internet=egress.internet * network, region=egress.region * network, zone=egress.zone * network
        )
    return replace(
        allocation, costs=Costs(*(usd * factor for usd, factor in zip(parts, factors, strict=True))), egress=egress
    )


def _total(allocations: Sequence[Allocation]) -> float:
    return fsum(usd for a in allocations for usd in a.costs.by_component())
