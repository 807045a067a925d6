"""Sets that are longer than an hour, cut into hours: nothing is lost, and nothing is told of time in which nothing ran."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metroculus.cost_model.allocation import IDLE, Allocation
from metroculus.cost_model.components import Amounts, Costs
from metroculus.cost_model.cutting import cut_into_hours
from metroculus.cost_model.reading import AllocationSet
from tools.window import DAY, HOUR


def pod(name: str, start: int, end: int, usd: float) -> Allocation:
    amounts = Amounts(cpu=1.0)
    return Allocation(
        name=name, namespace="shop", pod=name, start=start, end=end, costs=Costs(cpu=usd), amounts=amounts
    )


def idle(start: int, end: int, usd: float) -> Allocation:
    return Allocation(name=IDLE, start=start, end=end, costs=Costs(cpu=usd))


@given(st.lists(st.tuples(st.integers(0, DAY - 1), st.integers(60, DAY), st.floats(0.01, 100)), min_size=1, max_size=8))
def test_the_hours_of_a_day_cost_what_the_day_costs(runs):
    rows = [pod(f"p{n}", start, min(start + length, DAY), usd) for n, (start, length, usd) in enumerate(runs)]
    day = AllocationSet(0, DAY, [*rows, idle(0, DAY, 5.0)])
    hours = cut_into_hours([day], 0, DAY)
    ran = {hour for hour in range(0, DAY, HOUR) if any(row.start < hour + HOUR and row.end > hour for row in rows)}
    assert set(hours) == ran
    assert all((one.told_from, one.told_until) == (0, DAY) for one in hours.values())
    owned = sum(one.set.columns.take(one.set.columns.owned).total() for one in hours.values())
    assert owned == pytest.approx(sum(usd for _, _, usd in runs))
    idle_told = sum(one.set.columns.total() for one in hours.values()) - owned
    assert idle_told == pytest.approx(5.0)


def test_a_cluster_that_began_at_noon_has_no_morning():
    day = AllocationSet(0, DAY, [pod("web", DAY // 2, DAY, 12.0), idle(0, DAY, 6.0)])
    hours = cut_into_hours([day], 0, DAY)
    assert set(hours) == set(range(DAY // 2, DAY, HOUR))
    assert {round(one.set.columns.total(), 9) for one in hours.values()} == {1.5}


def test_an_hour_out_of_two_that_begin_at_half_past():
    half = HOUR // 2
    sets = [
        AllocationSet(half + n * HOUR, half + (n + 1) * HOUR, [pod("web", half + n * HOUR, half + (n + 1) * HOUR, n)])
        for n in range(3)
    ]
    hours = cut_into_hours(sets, 0, 4 * HOUR)
    assert {hour: (one.set.columns.total(), one.told_from, one.told_until) for hour, one in hours.items()} == {
        HOUR: (0.5, half, half + 2 * HOUR),
        2 * HOUR: (1.5, half + HOUR, half + 3 * HOUR),
    }, "the first and last hours are known for a half alone"


def test_a_job_of_minutes_is_in_its_own_hour():
    day = AllocationSet(0, DAY, [pod("web", 0, DAY, 24.0), pod("job", 5 * HOUR + 600, 5 * HOUR + 1200, 0.25)])
    hours = cut_into_hours([day], 0, DAY)
    assert {hour for hour, one in hours.items() if one.set.columns.total() > 1.1} == {5 * HOUR}
