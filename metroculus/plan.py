"""What is due: out of what is stored and what was tried, never out of which run came when.

So a schedule that was missed, for an hour or for eight days, is caught up by the next run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from itertools import groupby, islice

from msgspec import Struct
from msgspec.structs import replace

from metroculus.storage.gaps import Gap
from metroculus.storage.ledger import Marker
from tools.window import DAY, HOUR, MINUTE, SETTLING_SECONDS

READ_AGAIN_HOURS = (1, 3, 6, 12, 24, 48, 72)
"""Ages at which an hour, or a day that is over, is read again: cloud bills arrive 6 to 24 hours late."""

CLOSED_AFTER_SECONDS = 7 * DAY
"""An hour of this age changes only by a repair."""

FIRST_RETRY_SECONDS = MINUTE
LAST_RETRY_SECONDS = DAY


FILLING_SECONDS = 5 * MINUTE
"""After its end an hour is not asked of a tenant's upstream for so long: it may still be filling it."""
MOST_WANTED = 200
"""Questions that one agent is told at once."""


class Seen(Struct, frozen=True):
    """An hour that a tenant's upstream told, and when it was asked for."""

    fetched_at: int
    source: str = ""


class Wanted(Struct, frozen=True, kw_only=True):
    """A question that a tenant's agent is to ask its upstream."""

    kind: str
    step: str
    start: int
    end: int
    aggregate: tuple[str, ...] = ()


class Stretch(Struct, frozen=True, order=True):
    """Hours of one day to read in one go; ``whole`` is a day of the source that is over, read with its own set."""

    start: int
    end: int
    whole: bool = False

    @property
    def hours(self) -> range:
        return range(self.start, self.end, HOUR)


def last_complete_hour(now: int) -> int:
    """The end of the last hour that is over."""
    return now - now % HOUR


def day_of(stamp: int, shift: int) -> int:
    """The first second of the day that a moment is of, where days begin ``shift`` seconds after midnight UTC."""
    return stamp - (stamp - shift) % DAY


def closed(hour: int, now: int) -> bool:
    return now >= hour + HOUR + CLOSED_AFTER_SECONDS


def due(
    start: int,
    now: int,
    stored: Mapping[int, Marker | Seen],
    gaps: Mapping[int, Gap],
    patience: bool = True,
    shift: int = 0,
) -> list[Stretch]:
    """What to read of ``[start, now)``, the newest first.

    Args:
        stored: committed hours by their first second.
        gaps: last failed attempts by hour.
        patience: leave gaps alone that were tried a short time ago.
        shift: seconds after midnight UTC at which days of the source begin.
    """
    end = last_complete_hour(now)
    found: list[Stretch] = []
    day = day_of(start, shift)
    while day < end:
        if day + DAY + SETTLING_SECONDS <= now:
            found += _of_past_day(day, max(day, start), now, stored, gaps, patience)
        else:
            hours = range(max(day, start), min(day + DAY, end), HOUR)
            wanted = [h for h in hours if _hour_due(h, now, stored.get(h), gaps.get(h), patience)]
            found += stretches(wanted)
        day += DAY
    return sorted(found, reverse=True)


def next_due(
    start: int, since: int, now: int, stored: Mapping[int, Marker], gaps: Mapping[int, Gap], shift: int = 0
) -> int:
    """A moment before which nothing more of ``[start, …)`` is due, where all that was due at ``since`` has been tried.

    An hour becomes due when it is over, at its ages (all of them whole hours), when its day has settled, or when a gap
    may be tried again. What became due between ``since`` and ``now`` is due now.
    """
    moments = [last_complete_hour(since) + HOUR]
    moments += [day_of(since, shift) + SETTLING_SECONDS, day_of(since, shift) + DAY + SETTLING_SECONDS]
    for hour in range(start - start % HOUR, last_complete_hour(now), HOUR):
        marker, gap = stored.get(hour), gaps.get(hour)
        if marker is None:
            moments.append(gap.asked_at + _wait(hour, gap) if gap is not None and gap.asked_at <= now else since)
        elif not _asked(marker, gap, now):
            moments.append(since)
        elif marker.source:
            asked = Gap(hour, _asked(marker, gap, now), "")
            moments.append(asked.asked_at + _wait(hour, asked))
    return min(one for one in moments if one >= since)


def wanted(
    now: int,
    told: Mapping[int, int],
    tried: Mapping[int, int],
    asked_for: Iterable[tuple[int, int]] = (),
    stored: Mapping[int, Marker] | None = None,
) -> list[Wanted]:
    """What a tenant's agent is to ask its upstream for, the newest first: open days, then what a back-fill lacks.

    Of each stretch the hours come last: an agent that was stopped half way is asked for all of it again.

    Args:
        told: when each hour that the upstream told was asked for, by hour.
        tried: the same of each hour that it was asked for in vain.
        asked_for: stretches of the past to fill where hours lack.
        stored: committed hours of these stretches.
    """
    seen: dict[int, Marker | Seen] = {hour: Seen(at) for hour, at in told.items()}
    gaps = {hour: Gap(hour, at, "") for hour, at in tried.items()}
    first = day_of(now - CLOSED_AFTER_SECONDS, 0)
    found = set(due(first, now, seen, gaps))
    for start, end in asked_for:
        past = due(start, now, {**(stored or {}), **seen}, gaps)
        found |= {one for one in past if one.start < min(end, first)}
    filled = last_complete_hour(now - FILLING_SECONDS)
    over = (replace(one, end=min(one.end, filled)) for one in found if one.start < filled)
    questions = (question for stretch in sorted(over, reverse=True) for question in _questions(stretch))
    return list(islice(questions, MOST_WANTED))


def _questions(stretch: Stretch) -> Iterator[Wanted]:
    """What is asked of an upstream about a stretch."""
    start, end = stretch.start, stretch.end
    yield Wanted(kind="assets", step="hour", start=start, end=end)
    yield Wanted(kind="allocation", step="hour", start=start, end=end)
    if stretch.whole:  # behind its hours: those that are not there then are cut out of it
        yield Wanted(kind="assets", step="day", start=start, end=end)
        yield Wanted(kind="allocation", step="day", start=start, end=end)


def arrived(hours: Iterable[int], told: Set[int], days: Set[int], now: int) -> list[Stretch]:
    """What to read where answers were pushed: a day that is over and all there in one go, else the hours.

    Args:
        hours: of which there are new answers.
        told: hours that answers tell one by one.
        days: first seconds of days of which there are new answers about the day itself.
    """
    found: list[Stretch] = []
    for day, members in groupby(sorted(set(hours)), key=lambda hour: day_of(hour, 0)):
        whole = day in days or told >= set(range(day, day + DAY, HOUR))
        over = day + DAY + SETTLING_SECONDS <= now
        found += [Stretch(day, day + DAY, whole=True)] if over and whole else stretches(sorted(told & set(members)))
    return sorted(found, reverse=True)


def _of_past_day(
    day: int, start: int, now: int, stored: Mapping[int, Marker | Seen], gaps: Mapping[int, Gap], patience: bool
) -> Iterator[Stretch]:
    """A day that is over is read whole: when hours of it lack, and at its ages."""
    hours = range(start, day + DAY, HOUR)
    lacking = [hour for hour in hours if hour not in stored]
    wanted = [hour for hour in lacking if not patience or _may_retry(hour, now, gaps.get(hour))]
    if closed(day + DAY - HOUR, now):
        if wanted:
            yield Stretch(day, day + DAY, whole=True) if len(lacking) == 24 else Stretch(wanted[0], wanted[-1] + HOUR)
        return
    stored_hours = (hour for hour in hours if hour in stored)
    wanted += [hour for hour in stored_hours if _fallback_due(hour, now, stored[hour], gaps.get(hour), patience)]
    asked = [_asked(stored[hour], gaps.get(hour), now) for hour in hours if hour in stored]
    ages = (SETTLING_SECONDS, *(hours * HOUR for hours in READ_AGAIN_HOURS))
    if wanted or (asked and any(day + DAY + age <= now and min(asked) < day + DAY + age for age in ages)):
        yield Stretch(day, day + DAY, whole=True)


def _hour_due(hour: int, now: int, marker: Marker | Seen | None, gap: Gap | None, patience: bool) -> bool:
    if marker is None:
        return not patience or _may_retry(hour, now, gap)
    if _fallback_due(hour, now, marker, gap, patience):
        return True
    asked, over = _asked(marker, gap, now), hour + HOUR
    if not asked:  # by a clock that was ahead: the hour may not even have been over
        return True
    return any(over + age * HOUR <= now and asked < over + age * HOUR for age in READ_AGAIN_HOURS)


def _fallback_due(hour: int, now: int, marker: Marker | Seen, gap: Gap | None, patience: bool) -> bool:
    """Whether to ask again for an hour that another source told instead: as for a gap, until the first one has it."""
    if not marker.source:
        return False
    return not patience or _may_retry(hour, now, Gap(hour, _asked(marker, gap, now), ""))


def _asked(marker: Marker | Seen, gap: Gap | None, now: int) -> int:
    """When a stored hour was last asked for, answered or not; 0 where only a clock that was ahead says when."""
    stamps = (marker.fetched_at, gap.asked_at if gap else 0)
    return max((at for at in stamps if at <= now), default=0)


def _may_retry(hour: int, now: int, gap: Gap | None) -> bool:
    """The older an hour was when it was last tried, the longer it is left alone."""
    return gap is None or now < gap.asked_at or now - gap.asked_at >= _wait(hour, gap)


def _wait(hour: int, gap: Gap) -> int:
    """Seconds for which an hour is left alone that was asked for in vain."""
    return min(max((gap.asked_at - hour - HOUR) // 4, FIRST_RETRY_SECONDS), LAST_RETRY_SECONDS)


def stretches(hours: list[int]) -> list[Stretch]:
    """Hours as stretches of what lies side by side within one day."""
    found = []
    for _, run in groupby(enumerate(sorted(hours)), key=lambda one: (one[1] - one[0] * HOUR, one[1] // DAY)):
        members = [hour for _, hour in run]
        found.append(Stretch(members[0], members[-1] + HOUR))
    return found
