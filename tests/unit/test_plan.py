"""What is due: by age, by gaps, and after a schedule that was missed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metroculus.plan import Stretch, closed, due, last_complete_hour, next_due, stretches
from metroculus.storage.gaps import Gap
from metroculus.storage.ledger import Marker
from tests.support import DAY, END, HOUR

MINUTE = 60


def marker(hour, fetched_at):
    return Marker(hour, 1, 1, 1, 1.0, (), 0.0, 0.0, True, 3600, 0, (), (), fetched_at, 0)


def stored(start, end, age=0):
    """Hours that were each read ``age`` after their end."""
    return {hour: marker(hour, hour + HOUR + age) for hour in range(start, end, HOUR)}


def test_an_hour_is_due_as_soon_as_it_is_over():
    now = END + 3 * HOUR + MINUTE
    assert due(END, now, stored(END, END + 2 * HOUR, HOUR), {}) == [Stretch(END + 2 * HOUR, END + 3 * HOUR)]
    assert due(END, END + 59 * MINUTE, {}, {}) == []


@pytest.mark.parametrize("age", [1, 3, 6, 12])
def test_an_hour_of_today_is_read_again_at_its_ages(age):
    hour, over = END, END + HOUR
    now = over + age * HOUR
    read = {hour: marker(hour, now - 1)} | {one: marker(one, now) for one in range(over, now, HOUR)}
    assert Stretch(hour, over) in due(END, over + age * HOUR, read, {})
    read[hour] = marker(hour, over + age * HOUR)
    assert Stretch(hour, over) not in due(END, over + age * HOUR, read, {})


@pytest.mark.parametrize("age", [1, 3, 6, 12, 24, 48, 72])
def test_a_day_that_is_over_is_read_again_whole_at_its_ages(age):
    day, over = END - DAY, END
    now = over + age * HOUR
    assert due(day, now, stored(day, END) | {day: marker(day, now - 1)}, {})[-1] == Stretch(day, END, whole=True)
    fresh = {hour: marker(hour, now) for hour in range(day, END, HOUR)}
    assert Stretch(day, END, whole=True) not in due(day, now, fresh, {})


def test_after_a_week_only_what_lacks_is_read():
    day = END - 9 * DAY
    now = END + HOUR
    assert due(day, day + DAY, stored(day, day + DAY), {})[0:0] == []
    assert [one for one in due(day, now, stored(day, END, 80 * HOUR), {}) if one.start < day + DAY] == []
    lacking = stored(day, END, 80 * HOUR)
    del lacking[day + 5 * HOUR]
    assert Stretch(day + 5 * HOUR, day + 6 * HOUR) in due(day, now, lacking, {})


@pytest.mark.parametrize("missed", [HOUR, DAY, 8 * DAY])
def test_a_schedule_that_was_missed_is_caught_up_whole(missed):
    now = END + 30 * MINUTE
    start = END - 9 * DAY
    read = stored(start, END - missed)
    wanted = {hour for one in due(start, now, read, {}) for hour in one.hours}
    assert set(range(END - missed, END, HOUR)) <= wanted


def test_a_gap_is_left_alone_for_a_while_that_grows_with_its_age():
    now = END + 2 * HOUR
    hour = END + HOUR - HOUR
    just = {hour: Gap(hour, now - 30, "empty"), hour + HOUR: Gap(hour + HOUR, now - 30, "empty")}
    assert due(END, now, {}, just) == []
    assert due(END, now + MINUTE, {}, just) == [Stretch(END + HOUR, END + 2 * HOUR)]
    assert due(END, now, {}, just, patience=False) == [Stretch(END, END + 2 * HOUR)]
    old = {h: Gap(h, now - HOUR, "gone") for h in range(END - 30 * DAY, END, HOUR)}
    assert [one for one in due(END - 30 * DAY, now, {}, old) if one.start < END - 8 * DAY] == []


def test_hours_are_read_in_stretches_of_one_day():
    hours = [END - HOUR, END, END + HOUR, END + 3 * HOUR]
    assert stretches(hours) == [
        Stretch(END - HOUR, END), Stretch(END, END + 2 * HOUR), Stretch(END + 3 * HOUR, END + 4 * HOUR),
    ]  # fmt: skip


def test_edges_of_time():
    assert last_complete_hour(END) == END
    assert not closed(END, END + HOUR + 7 * DAY - 1)
    assert closed(END, END + HOUR + 7 * DAY)


@pytest.mark.parametrize(
    "day",
    [1774742400, 1792886400, 1767139200, 1798675200, 1709164800],
    ids=["clocks forward", "clocks back", "end of 2025", "end of 2026", "29 February 2024"],
)
def test_every_day_has_24_hours_in_utc(day):
    (one,) = due(day, day + DAY + HOUR, {}, {})[-1:]
    assert one == Stretch(day, day + DAY, whole=True) and len(one.hours) == 24


@st.composite
def histories(draw):
    """A few days of hours: some stored, at once or later, some told by another source, some asked for in vain."""
    now = END + draw(st.integers(0, DAY - 1))
    hours, gaps = {}, {}
    for hour in range(END - 3 * DAY, last_complete_hour(now), HOUR):
        kind = draw(st.sampled_from(("stored", "stored", "stored", "told instead", "gap", "never")))
        asked = draw(st.integers(hour + HOUR, now))
        if kind == "gap":
            gaps[hour] = Gap(hour, asked, "why")
        elif kind != "never":
            hours[hour] = replace(marker(hour, asked), source="thanos" if kind == "told instead" else "")
    return now, hours, gaps, draw(st.sampled_from((0, 3 * HOUR, 20 * HOUR)))


@given(histories(), st.floats(0, 1))
def test_before_the_moment_that_is_told_nothing_becomes_due(history, part):
    now, hours, gaps, shift = history
    start = END - 3 * DAY
    told = next_due(start, now, now, hours, gaps, shift)
    assert told <= now + HOUR
    if told > now and not due(start, now, hours, gaps, shift=shift):
        between = now + int(part * (told - 1 - now))
        assert due(start, between, hours, gaps, shift=shift) == []


def test_what_became_due_while_a_round_ran_is_due_now():
    began, ended = END - 30, END + 240  # over the end of an hour
    read = {hour: marker(hour, ended - 10) for hour in range(END - DAY, END - HOUR, HOUR)}
    assert next_due(END - DAY, began, ended, read, {}) == END - 30 == began, "the last hour was never tried"
    read[END - HOUR] = marker(END - HOUR, ended - 10)
    assert next_due(END - DAY, began, ended, read, {}) == END <= ended


def test_what_a_clock_that_was_ahead_said_is_asked_for_again():
    now = END + 10 * MINUTE
    ahead = {hour: marker(hour, now + 5 * HOUR) for hour in range(END - 6 * HOUR, END, HOUR)}
    assert Stretch(END - 6 * HOUR, END) in due(END - 6 * HOUR, now, ahead, {})
    tried = {END - HOUR: Gap(END - HOUR, now + 5 * HOUR, "why")}
    assert due(END - HOUR, now, {}, tried) == [Stretch(END - HOUR, END)]
    assert next_due(END - 6 * HOUR, now, now, ahead, {}) == now
