"""Where a month is going: what is booked, and for each hour that is left the mean of its hour of the week."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import fsum, sqrt
from typing import Literal

from msgspec import Struct

from tools.window import DAY, HOUR

WEEK_HOURS = 7 * 24
LOOK_BACK_SECONDS = 28 * DAY
WEEKLY_FROM_SECONDS = 14 * DAY
"""With less history than this there is no hour of the week to speak of, and the plain mean is taken."""

BAND = (0.1, 0.9)
MIN_DAYS_OF_BAND = 3

Method = Literal["hour_of_week", "mean", "none"]


class Projection(Struct, frozen=True, kw_only=True):
    """USD of a whole month: ``low`` to ``high`` holds it four times in five, None where there is too little history."""

    total_cost: float | None
    low: float | None
    high: float | None
    method: Method
    hours_left: int


def project(hours: Mapping[int, float], booked: float, remaining: Sequence[int]) -> Projection:
    """What a month will have cost.

    Args:
        hours: total of each whole hour of the last four weeks, by its first second; gaps are left out.
        booked: what is stored of the month, USD.
        remaining: first seconds of the hours of the month that are still to come.
    """
    if not remaining:
        return Projection(total_cost=booked, low=booked, high=booked, method="none", hours_left=0)
    if not hours:
        return Projection(total_cost=None, low=None, high=None, method="none", hours_left=len(remaining))
    weekly = max(hours) + HOUR - min(hours) >= WEEKLY_FROM_SECONDS
    by_hour = _by_hour_of_week(hours) if weekly else {}
    typical = {hour: trimmed_mean(values) for hour, values in by_hour.items()}
    mean = fsum(hours.values()) / len(hours)
    total = booked + fsum(typical.get(hour_of_week(hour), mean) for hour in remaining)
    spread = _spread(hours, by_hour)
    low = high = None
    if spread is not None:
        days = sqrt(len(remaining) / 24)
        low, high = total + min(0.0, spread[0]) * days, total + max(0.0, spread[1]) * days
        low = min(max(low, booked), total)
    return Projection(
        total_cost=total, low=low, high=high, method="hour_of_week" if weekly else "mean", hours_left=len(remaining)
    )


def hour_of_week(stamp: int) -> int:
    """0 to 167, UTC."""
    return stamp // HOUR % WEEK_HOURS


def trimmed_mean(values: Iterable[float]) -> float:
    """Without the smallest and the largest, where there are more than two."""
    ranked = sorted(values)
    kept = ranked[1:-1] if len(ranked) > 2 else ranked
    return fsum(kept) / len(kept)


def _by_hour_of_week(hours: Mapping[int, float]) -> dict[int, list[float]]:
    by_hour: dict[int, list[float]] = defaultdict(list)
    for hour, usd in hours.items():
        by_hour[hour_of_week(hour)].append(usd)
    return by_hour


def _spread(hours: Mapping[int, float], weekly: Mapping[int, list[float]]) -> tuple[float, float] | None:
    """The tenth and the ninetieth percentile of what whole days cost beyond what was to be expected of them.

    What is to be expected of a day is reckoned without that day, or it would always look well foreseen.

    Args:
        weekly: the hours by hour of the week; empty where there are too few for that.
    """
    days: dict[int, dict[int, float]] = defaultdict(dict)
    for hour, usd in hours.items():
        days[hour - hour % DAY][hour] = usd
    whole = [inside for inside in days.values() if len(inside) == 24]
    if len(whole) < MIN_DAYS_OF_BAND:
        return None
    everything = fsum(hours.values())
    residuals = []
    for inside in whole:
        booked = fsum(inside.values())
        mean = (everything - booked) / (len(hours) - 24) if len(hours) > 24 else booked / 24
        expected = []
        for hour, usd in inside.items():
            others = list(weekly.get(hour_of_week(hour), ()))
            if others:
                others.remove(usd)  # a day has each hour of the week once
            expected.append(trimmed_mean(others) if others else mean)
        residuals.append(booked - fsum(expected))
    return quantile(residuals, BAND[0]), quantile(residuals, BAND[1])


def quantile(values: Sequence[float], share: float) -> float:
    """Linear between ranks."""
    ranked = sorted(values)
    at = share * (len(ranked) - 1)
    below = int(at)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (at - below)


def unknown_cost_bound(hours: Mapping[int, float], partly_known: Mapping[int, float]) -> float | None:
    """How much more hours may have cost than is known of them, by the dearest of their hour of the week.

    The last day that is known counts, too: what began lately has no hour of the week before.

    Args:
        hours: total of each whole hour of the last four weeks, by its first second.
        partly_known: what is known of each hour that is not whole; 0 of one that is missing.

    Returns:
        None where no hour of the week bounds them.
    """
    if not partly_known:
        return 0.0
    if not hours:
        return None
    dearest = max(hours.values())
    lately = max(usd for _, usd in sorted(hours.items())[-24:])
    by_hour = {hour: max(lately, *values) for hour, values in _by_hour_of_week(hours).items()}
    return fsum(max(0.0, by_hour.get(hour_of_week(hour), dearest) - usd) for hour, usd in partly_known.items())
