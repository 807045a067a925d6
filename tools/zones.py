"""Time zones of a caller: local days, weeks and months as stretches of whole UTC hours.

History is kept by UTC hours. A boundary of a zone that lies inside one is taken down to it, on both sides: days tile,
and each hour is of one day. Days on which clocks change have 23 or 25 hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

HOUR = 3600
DAY = 86400

Period = Literal["hour", "day", "week", "month", "quarter", "year"]


_NOT_A_PLACE = frozenset({"localtime", "Factory", "posixrules"})
"""What stands for the machine's own zone, which another machine has another of."""


@lru_cache
def zone_names() -> frozenset[str]:
    """Every name of the IANA database that this machine or the package ``tzdata`` has."""
    return frozenset(available_timezones() - _NOT_A_PLACE | {"UTC"})


@dataclass(frozen=True, slots=True)
class Zone:
    """A time zone by its IANA name; ``zone_of`` makes one out of text."""

    name: str = "UTC"

    @property
    def is_utc(self) -> bool:
        return self.name == "UTC"

    def at(self, stamp: float) -> datetime:
        """A moment as clocks of the zone show it."""
        return datetime.fromtimestamp(int(stamp), UTC if self.is_utc else ZoneInfo(self.name))

    def iso(self, stamp: float) -> str:
        """RFC 3339, whole seconds: ``2026-11-19T00:00:00Z``, or with the zone's offset."""
        shown = self.at(stamp).isoformat()
        return shown.replace("+00:00", "Z") if self.is_utc else shown

    def day(self, stamp: int) -> date:
        """The local day that the UTC hour of a moment is counted to: the one in which the hour ends."""
        return self.at(stamp - stamp % HOUR + HOUR - 1).date()

    def midnight(self, day: date) -> int:
        """When a local day begins, to the second; where clocks skip midnight, when they do."""
        return int(
            datetime(day.year, day.month, day.day, tzinfo=UTC if self.is_utc else ZoneInfo(self.name)).timestamp()
        )

    def first_hour(self, day: date) -> int:
        """The first UTC hour that is counted to a local day."""
        midnight = self.midnight(day)
        return midnight - midnight % HOUR

    def period(self, stamp: int, length: Period) -> tuple[int, int]:
        """The hour, local day, week (from Sunday), month, quarter or year that a moment is counted to."""
        if length == "hour":
            return stamp - stamp % HOUR, stamp - stamp % HOUR + HOUR
        if length == "day" and self.is_utc:
            return stamp - stamp % DAY, stamp - stamp % DAY + DAY
        day = self.day(stamp)
        if length == "day":
            following = day + timedelta(days=1)
        elif length == "week":
            day -= timedelta(days=day.isoweekday() % 7)
            following = day + timedelta(days=7)
        else:
            months = {"month": 1, "quarter": 3, "year": 12}[length]
            day = day.replace(day=1, month=day.month - (day.month - 1) % months)
            following = (day + timedelta(days=31 * months)).replace(day=1)
        return self.first_hour(day), self.first_hour(following)

    def whole_offsets(self, start: int, end: int) -> list[tuple[int, int]]:
        """``(from, seconds)``: what to add to a UTC hour in ``[start, end)`` to come to the day that it is counted to.

        Offsets are in whole hours, as days begin with whole UTC hours; ``from`` is when each begins to hold.
        """
        found = [(start, self._whole_offset(start))]
        for day in range(start, end, DAY):
            until = min(day + DAY, end)
            while self._whole_offset(until - HOUR) != found[-1][1]:
                hour = next(h for h in range(found[-1][0], until, HOUR) if self._whole_offset(h) != found[-1][1])
                found.append((hour, self._whole_offset(hour)))
        return found

    def _whole_offset(self, hour: int) -> int:
        offset = self.at(hour + HOUR - 1).utcoffset() or timedelta()
        return -(-int(offset.total_seconds()) // HOUR) * HOUR

    def tiled(self, stamp: int) -> int:
        """A moment, or where it is a local midnight inside a UTC hour, the first second of that hour."""
        on_the_hour = stamp - stamp % HOUR
        return on_the_hour if on_the_hour != stamp and self.midnight(self.at(stamp).date()) == stamp else stamp

    def warnings(self, start: int, end: int) -> tuple[str, ...]:
        """What is to be said of local days in ``[start, end]``: that they begin inside UTC hours."""
        offsets = [self.at(stamp).utcoffset() or timedelta() for stamp in (start, end)]
        if not any(offset.total_seconds() % HOUR for offset in offsets):
            return ()
        return (f"days of {self.name} begin inside a UTC hour; each is counted from the beginning of that hour",)


UTC_ZONE = Zone()
_NAMES_OF_UTC = frozenset({"UTC", "Etc/UTC", "UCT", "Etc/UCT", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal"})


def zone_of(name: str) -> Zone:
    """The zone of an IANA name.

    Raises:
        ValueError: there is no such zone.
    """
    if name not in zone_names():
        raise ValueError("must be the IANA name of a time zone, like Europe/Berlin or UTC")
    return UTC_ZONE if name in _NAMES_OF_UTC else Zone(name)
