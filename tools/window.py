"""Windows of time: one parser and one normalisation, for both services.

A window is half open, ``[start, end)``, in Unix seconds. The relative and calendar forms are OpenCost's
(``core/pkg/opencost/window.go``); weeks begin on Sunday there, and so they do here. Days are those of the
caller's zone, UTC where none is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache

from tools.zones import UTC_ZONE, Period, Zone

MINUTE = 60
HOUR = 3600
DAY = 86400

MAX_SPAN_SECONDS = 400 * DAY
NOW_GRANULARITY_SECONDS = 5 * MINUTE
"""``now`` is taken down to this, so that relative windows asked within five minutes are the same window."""

SETTLING_SECONDS = 15 * MINUTE
"""How long after its end an hour may still grow upstream."""

_STAMP = re.compile(r"(0|[1-9][0-9]{0,9})")
_DURATION = re.compile(r"([1-9][0-9]{0,6})([mhdw])")
LONGEST_STAMP = 64
"""Letters; a stamp with nanoseconds has 35."""
_RFC3339 = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9])(\.[0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_CALENDAR: tuple[tuple[str, str, Period], ...] = (
    ("today", "yesterday", "day"),
    ("week", "lastweek", "week"),
    ("month", "lastmonth", "month"),
)
_UNIT_SECONDS = {"m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}

FORMS = (
    "15m, 24h, 7d, 2w, today, yesterday, week, month, lastweek, lastmonth, unix,unix or RFC3339,RFC3339 "
    "(with Z or an offset; + is sent as %2B)"
)


class WindowError(ValueError):
    """A window that cannot be asked for; ``params`` names what in the request is to blame."""

    def __init__(self, reason: str, *params: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.params = params


@dataclass(frozen=True, slots=True)
class Window:
    """``[start, end)`` in Unix seconds; figures before ``final_until`` no longer change with the passing hour.

    ``parts`` are the stretches of it that are asked for, where that is not all of it. ``zone`` is the caller's: its
    days are what ``today``, steps and months mean.
    """

    start: int
    end: int
    final_until: int
    parts: tuple[tuple[int, int], ...] | None = None
    zone: Zone = UTC_ZONE

    @property
    def stretches(self) -> tuple[tuple[int, int], ...]:
        """What is asked for, in order."""
        return ((self.start, self.end),) if self.parts is None else self.parts

    @property
    def seconds(self) -> int:
        return sum(end - start for start, end in self.stretches)

    @property
    def final_seconds(self) -> int:
        """Of what is asked for, how much is final."""
        return sum(max(0, min(end, self.final_until) - start) for start, end in self.stretches)

    @property
    def still_running(self) -> bool:
        """Whether only the time that is still running is left to ask for: that there is nothing yet says nothing."""
        return self.parts is not None and not self.final_seconds

    @property
    def hours(self) -> float:
        return self.seconds / HOUR

    def days(self) -> Iterator[tuple[int, int]]:
        """The parts of UTC days that are asked for, in order."""
        return (piece for start, end in self.stretches for piece in split(start, end, DAY))

    def only(self, parts: Iterable[tuple[int, int]]) -> Window:
        """This window, with only these stretches of it asked for."""
        return replace(self, parts=tuple(parts))

    @staticmethod
    def past(start: int, end: int) -> Window:
        """A window whose every figure is final."""
        return Window(start, end, end)


def split(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut ``[start, end)`` at the multiples of ``step`` seconds."""
    while start < end:
        edge = min(start - start % step + step, end)
        yield start, edge
        start = edge


def iso(stamp: float) -> str:
    """RFC 3339 in UTC, whole seconds: ``2026-11-19T00:00:00Z``."""
    return UTC_ZONE.iso(stamp)


def parse_rfc3339(text: str) -> int | None:
    """Unix seconds of an RFC 3339 stamp, fractions cut off, or None where it is not one (30 February, hour 24)."""
    return _rfc3339(text) if len(text) <= LONGEST_STAMP else None


@lru_cache(maxsize=65_536)
def _rfc3339(text: str) -> int | None:
    """Kept, because an answer says the same few stamps in every row."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    try:
        return int(datetime.fromisoformat(found[1] + found[4]).timestamp())
    except (ValueError, OverflowError):
        return None


def parse_stamp(text: str) -> int | None:
    """Unix seconds below 2^32 in plain ASCII digits, or None."""
    if not _STAMP.fullmatch(text):
        return None
    stamp = int(text)
    return stamp if stamp < 2**32 else None


def parse_stamps(start: str | None, end: str | None, start_name: str, end_name: str) -> tuple[int, int]:
    """The two stamps of a request, each checked by itself.

    Raises:
        WindowError: naming the parameter that is missing or no stamp.
    """
    stamps = []
    for name, text in ((start_name, start), (end_name, end)):
        if text is None:
            raise WindowError(f"{name} is required with {end_name if name == start_name else start_name}", name)
        stamp = parse_stamp(text)
        if stamp is None:
            raise WindowError(f"{name} must be Unix seconds below 2^32, in plain digits", name)
        stamps.append(stamp)
    return stamps[0], stamps[1]


def parse_expression(text: str, now: float, zone: Zone = UTC_ZONE) -> tuple[int, int]:
    """What a ``window`` expression stands for at ``now``, in days of ``zone``.

    Raises:
        WindowError: where it is none of the forms.
    """
    today = zone.day(int(now))
    at = int(now) + 1  # up to and with this second: at midnight, today is not empty
    duration = _DURATION.fullmatch(text)
    if duration:
        count, unit = int(duration[1]), duration[2]
        if count * _UNIT_SECONDS[unit] > MAX_SPAN_SECONDS:
            raise WindowError("a window is at most 400 days long", "window")
        if unit in "dw":
            return zone.first_hour(today - timedelta(days=count * (7 if unit == "w" else 1) - 1)), at
        return int(now) - count * _UNIT_SECONDS[unit], at
    calendar = _calendar(text, int(now), at, zone)
    if calendar:
        return calendar
    first, comma, second = text.partition(",")
    if comma and first.endswith("Z") == second.endswith("Z"):  # an offset beside a Z is a slip of who wrote it
        for parse in (parse_stamp, parse_rfc3339):
            start, end = parse(first), parse(second)
            if start is not None and end is not None and 0 <= min(start, end) <= max(start, end) < 2**32:
                return zone.tiled(start), zone.tiled(end)
    raise WindowError(f"window must be one of {FORMS}", "window")


def _calendar(name: str, now: int, at: int, zone: Zone) -> tuple[int, int] | None:
    for running, ended, length in _CALENDAR:
        start = zone.period(now, length)[0]
        if name == running:
            return start, at
        if name == ended:
            return zone.period(start - 1, length)
    return None


def normalise(start: int, end: int, now: float, *params: str, zone: Zone = UTC_ZONE) -> Window:
    """The window that every source is asked for: whole hours, the end cut to now.

    Start goes down and end up to whole hours; an end in the future becomes now, which is itself taken down to five
    minutes. A window that holds nothing but the first minutes of an hour keeps five of them.

    Raises:
        WindowError: reversed or empty, a start in the future, or more than 400 days after the cut.
    """
    if start >= end:
        raise WindowError("the start must be before the end", *params)
    if start > now:
        raise WindowError("the start lies in the future", params[0])
    if min(end, now) - start > MAX_SPAN_SECONDS:
        raise WindowError("a window is at most 400 days long", *params)
    first = start - start % HOUR
    last = end + -end % HOUR
    if last > now:
        last = max(int(now) - int(now) % NOW_GRANULARITY_SECONDS, first + NOW_GRANULARITY_SECONDS)
    settled = int(now) - SETTLING_SECONDS
    final_until = max(first, min(last, settled - settled % HOUR))
    return Window(first, last, final_until, zone=zone)


def parse_window(
    now: float,
    *,
    window: str | None = None,
    start: str | None = None,
    end: str | None = None,
    names: tuple[str, str] = ("start_date", "end_date"),
    zone: Zone = UTC_ZONE,
) -> Window:
    """The normalised window of a request that gives either ``window`` or two stamps.

    Raises:
        WindowError: naming the parameter, or both of a pair.
    """
    if window is not None:
        if start is not None or end is not None:
            given = [name for name, text in zip(names, (start, end), strict=True) if text is not None]
            raise WindowError("give either window or two dates, not both", "window", *given)
        first, last = parse_expression(window, now, zone)
        return normalise(first, last, now, "window", zone=zone)
    first, last = parse_stamps(start, end, *names)
    return normalise(zone.tiled(first), zone.tiled(last), now, *names, zone=zone)
