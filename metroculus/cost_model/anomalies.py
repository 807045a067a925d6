"""Hours that cost far more than such hours do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from math import fsum
from statistics import median

from msgspec import Struct

from tools.window import DAY, HOUR

WEEK = 7 * DAY
LOOK_BACK_SECONDS = 35 * DAY
"""Five weeks, so that a month's first day has another one to be held against."""
DEVIATIONS = 5.0
SMALLEST_DEVIATION = 0.01
"""Of the median: cost that never moves has no deviation at all."""
FEW = 3
FEW_FACTOR = 1.5
"""With fewer hours to be held against than ``FEW``, so many times the dearest of them."""
RISE = 0.5
"""Over the mean of the day before, and over its median: one hour of credits takes the mean down."""
SMALLEST_RISE = 0.01
"""Of money: less is no spike of anything."""
FIRST_DAY_BEGINS, FIRST_DAY_ENDS = 14 * HOUR, 36 * HOUR
"""Before and after midnight UTC: somewhere it is a month's first day."""
HOURS_NEEDED = 18
"""Of the day before."""


class Spike(Struct, frozen=True, kw_only=True):
    """An hour that is one: what it cost, what such hours cost, and the mean of the day before."""

    hour: int
    total: float
    typical: float
    limit: float
    mean_before: float


def spikes(totals: Mapping[int, float], hours: Iterable[int]) -> list[Spike]:
    """Which hours are spikes.

    An hour is held against the same hour of the week and the ones beside it, where clocks may have been changed; and
    on a month's first day against other first days.

    Args:
        totals: of hours that are whole and known, by first second; ``LOOK_BACK_SECONDS`` before the first and more.
    """
    found = []
    for hour in hours:
        if hour not in totals:
            continue
        before = [totals[h] for h in range(hour - DAY, hour, HOUR) if h in totals]
        if len(before) < HOURS_NEEDED:
            continue
        mean = fsum(before) / len(before)
        limits = [limit for limit in (_limit(totals, hour, beside) for beside in (-HOUR, 0, HOUR)) if limit is not None]
        if not limits:
            continue
        typical, limit = max(limits, key=lambda one: one[1])
        firsts = _other_firsts(totals, hour)
        if firsts is not None:
            if not firsts:
                continue  # a first day of a month that nothing can be held against
            limit = max(limit, FEW_FACTOR * max(firsts))
        before_it = max(mean, median(before))
        rise = totals[hour] - before_it
        if totals[hour] > limit and rise > RISE * abs(before_it) and rise >= SMALLEST_RISE:
            found.append(Spike(hour=hour, total=totals[hour], typical=typical, limit=limit, mean_before=mean))
    return found


def _other_firsts(totals: Mapping[int, float], hour: int) -> list[float] | None:
    """Where an hour is of a month's first day, in whatever zone: what the same one of months before cost, else None.

    The hours beside it count, where clocks may have been changed.
    """
    near = datetime.fromtimestamp(hour + FIRST_DAY_BEGINS, UTC).replace(day=1, hour=0)
    since = hour - int(near.timestamp())
    if not -FIRST_DAY_BEGINS <= since < FIRST_DAY_ENDS:
        return None
    start, found = near, []
    while hour - start.timestamp() < LOOK_BACK_SECONDS:
        start = (start - timedelta(days=1)).replace(day=1)
        at = int(start.timestamp()) + since
        found += [totals[one] for one in (at - HOUR, at, at + HOUR) if one in totals]
    return found


def _limit(totals: Mapping[int, float], hour: int, beside: int) -> tuple[float, float] | None:
    """What such an hour costs, and what it may cost; None where there was none."""
    weeks = range(hour - LOOK_BACK_SECONDS, hour, WEEK)
    samples = [totals[at + beside] for at in weeks if at + beside in totals]
    if not samples:
        return None
    middle = median(samples)
    if len(samples) < FEW:
        return middle, FEW_FACTOR * max(samples)
    deviation = median(abs(usd - middle) for usd in samples)
    return middle, middle + DEVIATIONS * max(deviation, SMALLEST_DEVIATION * abs(middle))
