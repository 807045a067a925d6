"""Projections on series whose answer is known."""

from math import fsum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metroculus.cost_model.trend import hour_of_week, project, quantile, trimmed_mean
from tests.support import DAY, END, HOUR

MONTH_END = 1796083200  # 2026-12-01
LEFT = range(END, MONTH_END, HOUR)


def series(days, price):
    return {hour: price(hour) for hour in range(END - days * DAY, END, HOUR)}


def weekly(hour):
    return 10.0 if hour_of_week(hour) % 24 in range(8, 18) else 2.0


@pytest.mark.parametrize(("days", "method"), [(28, "hour_of_week"), (14, "hour_of_week"), (13, "mean"), (1, "mean")])
def test_a_series_that_repeats_itself_is_foreseen(days, method):
    found = project(series(days, weekly), 100.0, LEFT)
    assert found.method == method
    assert found.total_cost == pytest.approx(100.0 + fsum(weekly(hour) for hour in LEFT))
    assert found.hours_left == len(LEFT) == 240


def test_a_series_that_never_varies_has_no_band():
    found = project(series(28, lambda hour: 3.0), 50.0, LEFT)
    assert found.low == pytest.approx(found.total_cost) == pytest.approx(found.high)


def test_one_odd_week_does_not_carry_over():
    hours = series(28, weekly)
    for hour in range(END - 7 * DAY, END - 6 * DAY, HOUR):
        hours[hour] *= 50
    assert project(hours, 0.0, LEFT).total_cost == pytest.approx(fsum(weekly(hour) for hour in LEFT))


def test_days_that_vary_widen_the_band():
    def noisy(hour):
        return weekly(hour) * (1.2 if hour // DAY % 2 else 0.8)

    found = project(series(28, noisy), 0.0, LEFT)
    assert found.low < found.total_cost < found.high


def test_nothing_left_and_nothing_known():
    assert project({}, 12.0, []).total_cost == 12.0
    nothing = project({}, 12.0, LEFT)
    assert (nothing.total_cost, nothing.low, nothing.high, nothing.method) == (None, None, None, "none")


def test_too_few_days_have_no_band():
    found = project(series(2, weekly), 0.0, LEFT)
    assert found.low is None and found.high is None and found.total_cost is not None


def test_helpers():
    assert trimmed_mean([1.0, 100.0, 3.0, 5.0]) == 4.0
    assert trimmed_mean([1.0, 3.0]) == 2.0
    assert quantile([0.0, 1.0, 2.0, 3.0, 4.0], 0.1) == pytest.approx(0.4)


@given(st.dictionaries(st.integers(0, 671), st.floats(0, 1e6), min_size=1), st.floats(0, 1e6), st.integers(0, 744))
def test_whatever_the_past_the_band_holds_the_projection(past, booked, left):
    hours = {END - (n + 1) * HOUR: usd for n, usd in past.items()}
    found = project(hours, booked, range(END, END + left * HOUR, HOUR))
    assert found.total_cost is not None and found.total_cost >= booked * (1 - 1e-12)
    if found.low is not None and found.high is not None:
        assert found.low <= found.total_cost <= found.high
