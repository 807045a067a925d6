"""Local days, weeks and months as stretches of whole UTC hours."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tools.window import DAY, HOUR, WindowError, parse_rfc3339, parse_window
from tools.zones import Zone, zone_names, zone_of

# Zones that change clocks at midnight (Beirut, Havana, Cairo), by half an hour (Lord Howe), that lie off the hour
# (Kolkata, Kathmandu, St. John's), on either side of the date line (Kiritimati, Pago Pago), and those of the case below.
ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "America/St_Johns", "Asia/Beirut", "America/Havana", "Africa/Cairo", "Pacific/Kiritimati", "Pacific/Pago_Pago",
    "America/Sao_Paulo", "Pacific/Chatham",
)  # fmt: skip
zones = st.sampled_from(ZONES).map(zone_of)
hours = st.integers(parse_rfc3339("2024-01-01T00:00:00Z"), parse_rfc3339("2027-12-31T00:00:00Z")).map(
    lambda stamp: stamp - stamp % HOUR
)


def at(text: str) -> int:
    stamp = parse_rfc3339(text)
    assert stamp is not None
    return stamp


@given(zones, hours, st.sampled_from(("hour", "day", "week", "month")))
def test_periods_tile_and_each_hour_is_of_one(zone, stamp, length):
    start, end = zone.period(stamp, length)
    assert start <= stamp < end
    assert start % HOUR == 0
    assert end % HOUR == 0
    assert zone.period(start, length) == (start, end)
    assert zone.period(end - 1, length) == (start, end)
    assert zone.period(end, length)[0] == end


@given(zones, hours)
def test_a_day_begins_less_than_an_hour_before_local_midnight(zone, stamp):
    start, _ = zone.period(stamp, "day")
    assert 0 <= zone.midnight(zone.day(stamp)) - start < HOUR


@given(zones, hours, st.integers(1, 400))
@example(zone_of("Asia/Beirut"), 1_711_800_000 - 1_711_800_000 % HOUR, 3)
def test_offsets_lead_to_the_same_days(zone, start, days):
    found = zone.whole_offsets(start, start + days * DAY)
    for stamp in range(start, start + days * DAY, 7 * HOUR):
        offset = next(seconds for since, seconds in reversed(found) if since <= stamp)
        assert date(1970, 1, 1) + timedelta(days=(stamp + offset) // DAY) == zone.day(stamp)


@pytest.mark.parametrize(
    ("name", "day", "hours_of_it"),
    [
        ("Europe/Berlin", "2026-03-29", 23), ("Europe/Berlin", "2026-10-25", 25), ("Europe/Berlin", "2026-10-26", 24),
        ("Asia/Beirut", "2026-03-29", 23), ("America/Havana", "2026-11-01", 25), ("Asia/Kolkata", "2026-03-29", 24),
    ],
)  # fmt: skip
def test_days_on_which_clocks_change_have_23_or_25_hours(name, day, hours_of_it):
    start = zone_of(name).first_hour(date.fromisoformat(day))
    assert (zone_of(name).period(start, "day")[1] - start) // HOUR == hours_of_it


@pytest.mark.parametrize(
    ("window", "name", "start", "end"),
    [
        ("today", "Europe/Berlin", "2026-11-17T23:00:00Z", "2026-11-18T10:00:00Z"),
        ("yesterday", "America/New_York", "2026-11-17T05:00:00Z", "2026-11-18T05:00:00Z"),
        ("7d", "Asia/Tokyo", "2026-11-11T15:00:00Z", "2026-11-18T10:00:00Z"),
        ("lastweek", "Europe/Berlin", "2026-11-07T23:00:00Z", "2026-11-14T23:00:00Z"),
        ("lastmonth", "Europe/Berlin", "2026-09-30T22:00:00Z", "2026-10-31T23:00:00Z"),
        ("month", "Asia/Kolkata", "2026-10-31T18:00:00Z", "2026-11-18T10:00:00Z"),
        ("yesterday", "Asia/Kolkata", "2026-11-16T18:00:00Z", "2026-11-17T18:00:00Z"),
        ("2026-11-16T00:00:00+05:30,2026-11-17T00:00:00+05:30", "Asia/Kolkata", "2026-11-15T18:00:00Z",
         "2026-11-16T18:00:00Z"),
        ("2026-11-16T00:00:00+05:30,2026-11-17T00:00:00+05:30", "UTC", "2026-11-15T18:00:00Z", "2026-11-16T19:00:00Z"),
        ("24h", "Asia/Kolkata", "2026-11-17T10:00:00Z", "2026-11-18T10:00:00Z"),
    ],
)  # fmt: skip
def test_windows_are_of_the_zone(window, name, start, end):
    found = parse_window(at("2026-11-18T10:03:00Z"), window=window, zone=zone_of(name))
    assert (found.start, found.end) == (at(start), at(end))


def test_dates_at_local_midnight_tile_like_days_do():
    zone = zone_of("Asia/Kathmandu")
    midnights = [zone.midnight(date(2026, 11, 10) + timedelta(days=n)) for n in range(3)]
    assert midnights[0] % HOUR
    cut = [
        parse_window(at("2026-11-18T10:03:00Z"), start=str(first), end=str(last), zone=zone)
        for first, last in zip(midnights, midnights[1:], strict=False)
    ]
    assert cut[0].end == cut[1].start
    assert all(one.seconds == DAY for one in cut)


def test_stamps_are_shown_as_clocks_of_the_zone_show_them():
    stamp = at("2026-11-18T10:00:00Z")
    assert Zone().iso(stamp) == "2026-11-18T10:00:00Z"
    assert zone_of("Etc/UTC").iso(stamp) == "2026-11-18T10:00:00Z"
    assert zone_of("Asia/Kolkata").iso(stamp) == "2026-11-18T15:30:00+05:30"
    assert zone_of("Europe/London").iso(stamp) == "2026-11-18T10:00:00+00:00"
    assert all(parse_rfc3339(zone_of(name).iso(stamp)) == stamp for name in ZONES)


@pytest.mark.parametrize(
    "name",
    ["", "Europe", "Berlin", "../etc/passwd", "europe/berlin", "EST5EDT6", "localtime", "Factory", "+05:30", "x" * 99],
)
def test_what_is_no_zone_is_refused(name):
    with pytest.raises(ValueError, match="IANA"):
        zone_of(name)


def test_a_half_hour_zone_is_warned_of_where_days_begin_inside_an_hour():
    stamp = at("2026-11-18T10:00:00Z")
    assert "inside a UTC hour" in zone_of("Asia/Kolkata").warnings(stamp, stamp + DAY)[0]
    assert zone_of("Europe/Berlin").warnings(stamp, stamp + DAY) == ()


def test_the_database_of_zones_is_there():
    assert len(zone_names()) > 400


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00+05:00,0001-01-02T00:00:00+05:00",
        "2026-11-01T00:00:00 05:30,2026-11-02T00:00:00 05:30",
        "2026-11-01T00:00:00Z,2026-11-02T00:00:00+14:00",
    ],
)
def test_stamps_beyond_any_clock_are_refused(text):
    with pytest.raises(WindowError):
        parse_window(at("2026-11-18T10:03:00Z"), window=text, zone=zone_of("Asia/Kolkata"))
