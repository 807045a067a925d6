"""What a window expression means, and what it becomes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.window import (
    DAY,
    HOUR,
    MAX_SPAN_SECONDS,
    Window,
    WindowError,
    iso,
    normalise,
    parse_rfc3339,
    parse_window,
)

WEDNESDAY = parse_rfc3339("2026-11-18T10:03:00Z") or 0


@pytest.mark.parametrize(
    ("window", "start", "end"),
    [
        ("7d", "2026-11-12T00:00:00Z", "2026-11-18T10:00:00Z"),
        ("1d", "2026-11-18T00:00:00Z", "2026-11-18T10:00:00Z"),
        ("2w", "2026-11-05T00:00:00Z", "2026-11-18T10:00:00Z"),
        ("24h", "2026-11-17T10:00:00Z", "2026-11-18T10:00:00Z"),
        ("15m", "2026-11-18T09:00:00Z", "2026-11-18T10:00:00Z"),
        ("today", "2026-11-18T00:00:00Z", "2026-11-18T10:00:00Z"),
        ("yesterday", "2026-11-17T00:00:00Z", "2026-11-18T00:00:00Z"),
        ("week", "2026-11-15T00:00:00Z", "2026-11-18T10:00:00Z"),
        ("lastweek", "2026-11-08T00:00:00Z", "2026-11-15T00:00:00Z"),
        ("month", "2026-11-01T00:00:00Z", "2026-11-18T10:00:00Z"),
        ("lastmonth", "2026-10-01T00:00:00Z", "2026-11-01T00:00:00Z"),
        ("2026-03-01T00:00:00Z,2026-03-08T00:00:00Z", "2026-03-01T00:00:00Z", "2026-03-08T00:00:00Z"),
        ("1795046400,1795219200", "2026-11-19T00:00:00Z", None),
    ],
)
def test_a_window_means_what_opencost_means(window, start, end):
    now = WEDNESDAY if end else 1795219200 + DAY
    found = parse_window(now, window=window)
    assert iso(found.start) == start
    if end:
        assert iso(found.end) == end


def test_january_looks_back_over_the_year_and_february_knows_leap_years():
    january = parse_rfc3339("2028-03-01T00:30:00Z") or 0
    assert iso(parse_window(january, window="lastmonth").start) == "2028-02-01T00:00:00Z"
    assert parse_window(january, window="lastmonth").seconds == 29 * DAY
    new_year = parse_rfc3339("2027-01-01T12:00:00Z") or 0
    assert iso(parse_window(new_year, window="lastmonth").start) == "2026-12-01T00:00:00Z"


def test_the_hour_that_runs_and_the_one_that_settles_are_not_final():
    at_ten_past = parse_window(WEDNESDAY + 7 * 60, window="today")
    assert iso(at_ten_past.final_until) == "2026-11-18T09:00:00Z"
    at_twenty_past = parse_window(WEDNESDAY + 17 * 60, window="today")
    assert iso(at_twenty_past.final_until) == "2026-11-18T10:00:00Z"


def test_a_window_in_the_past_is_final_to_its_end():
    found = parse_window(WEDNESDAY, window="yesterday")
    assert found.final_until == found.end


def test_the_first_minutes_of_a_day_are_a_window_too():
    midnight = WEDNESDAY - WEDNESDAY % DAY
    for seconds in (0, 1, 299):
        found = parse_window(midnight + seconds, window="today")
        assert found.seconds == 300


@pytest.mark.parametrize(
    ("start", "end", "named"),
    [(10, 20, ("start_date",)), (-100, -100, ("start_date", "end_date")), (-100, -200, ("start_date", "end_date")),
     (-401 * DAY, 0, ("start_date", "end_date"))],
)  # fmt: skip
def test_a_window_that_is_reversed_empty_too_long_or_in_the_future_is_refused(start, end, named):
    now = 10**9
    with pytest.raises(WindowError) as refusal:
        normalise(now + start, now + end, now, "start_date", "end_date")
    assert refusal.value.params == named


stamps = st.integers(0, 2**32 - 1)


@given(stamps, stamps, st.integers(86400, 2**32))
def test_a_normalised_window_holds_what_was_asked_in_whole_hours(start, end, now):
    try:
        found = normalise(start, end, now, "start_date", "end_date")
    except WindowError:
        assert start >= end or start > now or min(end, now) - start > MAX_SPAN_SECONDS
        return
    assert found.start % HOUR == 0 and found.start <= start
    assert found.start < found.end <= max(now, found.start + 300)
    assert found.end >= min(end, now - 300)
    assert found.start <= found.final_until <= found.end
    assert found.final_until % HOUR == 0


@given(st.integers(0, 10**9), st.integers(1, 40 * DAY))
def test_days_of_a_window_are_its_parts(start, seconds):
    window = Window.past(start, start + seconds)
    parts = list(window.days())
    assert parts[0][0] == window.start and parts[-1][1] == window.end
    assert all(a[1] == b[0] for a, b in zip(parts, parts[1:], strict=False))
    assert all(a // DAY == (b - 1) // DAY for a, b in parts)
