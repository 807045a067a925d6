"""Hours as they are kept: held against their control total, and brought to the sum of their own day.

Upstream rounds, and bills some things of an hour for longer than the hour: a day is truer than its hours.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
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
    apart = abs(residual)
    close = apart <= CONTROL_USD and apart <= CONTROL_SHARE * max(abs(total), abs(told))
    return Control(residual, close or apart <= _rounding(len(figures)))


class Spread(Struct, frozen=True):
    """The hours of a day with the day's difference in them; ``usd`` is what each hour got of it."""

    hours: tuple[tuple[Allocation, ...], ...]
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
    counts = Counter(owner(allocation) for hour in hours for allocation in hour)
    have = {name: costs.by_component() for name, costs in by_owner(chain.from_iterable(hours)).items()}
    wanted = Costs.sum(day.values()).by_component()
    rows = sum(map(len, hours))
    kept = Spread(tuple(tuple(hour) for hour in hours), (0.0,) * len(hours), True)
    for told, want in zip(_sums(have.values()), wanted, strict=True):
        if abs(want - told) > SPREAD_SHARE * abs(told) and abs(want - told) > _rounding(rows):
            return replace(kept, reconciled=False)
    said = {name: day[name].by_component() if name in day else sums for name, sums in have.items()}
    factors = {
        name: [_factor(told, want, _rounding(counts[name])) for told, want in zip(sums, said[name], strict=True)]
        for name, sums in have.items()
    }
    after = _sums([usd * factor for usd, factor in zip(have[name], factors[name], strict=True)] for name in have)
    last = [_factor(told, want, _rounding(rows)) for told, want in zip(after, wanted, strict=True)]
    factors = {name: [a * b for a, b in zip(own, last, strict=True)] for name, own in factors.items()}
    if all(factor == 1.0 for own in factors.values() for factor in own):
        return kept
    scaled = tuple(tuple(_scaled(a, factors[owner(a)]) for a in hour) for hour in hours)
    usd = tuple(_total(new) - _total(old) for old, new in zip(hours, scaled, strict=True))
    return Spread(scaled, usd, True)


def owner(allocation: Allocation) -> str:
    """Whose cost it is: a namespace's, or a special entity's."""
    return allocation.namespace if allocation.special is None else allocation.special


def by_owner(allocations: Iterable[Allocation]) -> dict[str, Costs]:
    """Sums of costs by owner."""
    owned: dict[str, list[Costs]] = defaultdict(list)
    for allocation in allocations:
        owned[owner(allocation)].append(allocation.costs)
    return {name: Costs.sum(costs) for name, costs in owned.items()}


def _sums(many: Iterable[Sequence[float]]) -> list[float]:
    return [fsum(column) for column in zip(*many, strict=True)] or [0.0] * len(COMPONENTS)


def _rounding(figures: int) -> float:
    """What rounding each of some figures, and each of a control total's, can come to."""
    return ROUNDING_USD / 2 * (figures + len(COMPONENTS))


def _factor(have: float, want: float, rounding: float) -> float:
    """What brings one sum to another, where they are near enough."""
    near = abs(want - have) <= max(SPREAD_SHARE * abs(have), rounding)
    return want / have if have and want and near and not isclose(want, have, rel_tol=1e-13) else 1.0


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
