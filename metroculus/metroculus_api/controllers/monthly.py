"""Month by month out of the store, and where the running month is going."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from cachetools import LRUCache
from msgspec import Struct
from msgspec.structs import asdict

from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.components import Costs
from metroculus.cost_model.series import steps, stored_point
from metroculus.cost_model.statement import Point
from metroculus.cost_model.trend import LOOK_BACK_SECONDS, Projection, project
from metroculus.metroculus_api.errors import failure_of, history_of
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import DEFAULT_CURRENCY
from metroculus.storage.coverage import currencies_of, in_groups_of_hours, source_of, whole
from metroculus.storage.history import IDLE_ROWS
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from metroculus.wire import wire
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import DAY, HOUR, SETTLING_SECONDS, Window
from tools.zones import UTC_ZONE, Zone

MONTHS_KEPT = 50_000
HOURS_OF_A_MONTH = 31 * 24
"""At most: an account has a fingerprint for each month of which anything is stored."""
ACCOUNTS_A_TURN = 50


_Key = tuple[str, tuple[str, ...], str, int]
"""An account, the clusters that it is limited to, a zone, and the first second of a month."""
_MadeOf = tuple[int, ...]


class _Month(Struct, frozen=True, gc=False):
    """One month of one account as it was read, and what the money of its newest hour is in."""

    month: structs.StoredMonth
    currency: str | None
    keepable: bool
    """Whether it may be kept: not where rows were missing, or a replica that lags behind may have answered."""


class _Asked(Struct, frozen=True):
    """Calendar months of a zone, the running one last."""

    months: tuple[Window, ...]
    zone: Zone

    @property
    def running(self) -> Window:
        return self.months[-1]


class MonthlyController:
    def __init__(self, accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock
        self._kept: LRUCache[_Key, tuple[_MadeOf, _Month]] = LRUCache(MONTHS_KEPT)
        """Months with the fingerprint of all that they are made of."""

    async def months(self, account: str, count: int, zone: Zone, deadline: Deadline) -> structs.StoredMonths:
        """The last ``count`` months of a zone, the running one among them.

        Raises:
            NoSource, RegistryError, NoHistory, StoreError
        """
        clusters = (await self._accounts.of(account)).clusters.named
        return (await self._months({account: clusters}, count, zone, deadline))[account]

    async def months_of(
        self, accounts: Sequence[str], count: int, zone: Zone, deadline: Deadline
    ) -> structs.MonthsOfAccounts:
        """``months`` of several accounts, with few questions for all; or why there are none of one.

        Raises:
            NoHistory, StoreError
        """
        clusters: dict[str, tuple[str, ...]] = {}
        failures: dict[str, structs.Failure] = {}

        async def look_up(account: str) -> None:
            try:
                clusters[account] = (await self._accounts.of(account)).clusters.named
            except Exception as problem:
                failure = failure_of(problem)
                if failure is None:
                    raise
                failures[account] = failure

        await self._accounts.look_up(accounts)
        await asyncio.gather(*map(look_up, accounts))
        told = await self._months(clusters, count, zone, deadline)
        return structs.MonthsOfAccounts(
            tuple(structs.AccountMonths(one, told.get(one), failures.get(one)) for one in accounts)
        )

    async def _months(
        self, clusters: dict[str, tuple[str, ...]], count: int, zone: Zone, deadline: Deadline
    ) -> dict[str, structs.StoredMonths]:
        """Of accounts with the clusters that each is limited to."""
        store = history_of(self._store)
        settled = int(self._clock()) - SETTLING_SECONDS
        asked = _Asked(_last_months(int(self._clock()), count, settled - settled % HOUR, zone), zone)
        first, end = asked.months[0].start, asked.running.end
        since = min(first, asked.running.start - LOOK_BACK_SECONDS)
        prints = await store.ask(deadline.left(), store.ledger.fingerprints, list(clusters), since, end)
        found: dict[str, dict[int, _Month]] = {account: {} for account in clusters}
        made_of: dict[tuple[str, int], _MadeOf] = {}
        lacking: dict[tuple[tuple[str, ...], tuple[Window, ...]], list[str]] = defaultdict(list)
        begun = {month.start: _first_touched(month, month is asked.running) for month in asked.months}
        for number, (account, named) in enumerate(clusters.items(), 1):
            if not number % ACCOUNTS_A_TURN:
                await asyncio.sleep(0)  # others have their turn of the loop
            for month in asked.months:
                parts = (month.final_until, *_touched(begun[month.start], month.end, prints[account]))
                made_of[account, month.start] = parts
                known = self._kept.get((account, named, zone.name, month.start))
                if known is not None and known[0] == parts:
                    found[account][month.start] = known[1]
            unread = tuple(month for month in asked.months if month.start not in found[account])
            if unread:
                lacking[named, unread].append(account)
        for (named, unread), accounts in lacking.items():
            for group in in_groups_of_hours({one: HOURS_OF_A_MONTH * len(prints[one]) for one in accounts}):
                read = await store.ask(deadline.left(), self._read, group, unread, Filters(clusters=named), asked)
                for account, months in read.items():
                    found[account] |= months
                    for start, one in months.items():
                        if one.keepable:
                            self._kept[account, named, zone.name, start] = (made_of[account, start], one)
        warnings = zone.warnings(first, end)
        return await asyncio.to_thread(
            lambda: {account: _told(account, asked, months, warnings) for account, months in found.items()}
        )

    def _read(
        self, accounts: Sequence[str], months: Sequence[Window], filters: Filters, asked: _Asked
    ) -> dict[str, dict[int, _Month]]:
        """Months by account and first second; blocks."""
        assert self._store is not None
        sums = self._store.summaries.sums_by_account(
            accounts, months[0].start, months[-1].end, ("month", IDLE_ROWS), filters, zone=asked.zone
        )
        read: dict[str, dict[int, tuple[Point | None, CommittedHours]]] = {}
        for account, answer in sums.items():
            parts: dict[int, list[tuple[Costs, float]]] = defaultdict(list)
            idle: dict[int, float] = defaultdict(float)
            for one in answer.sums:
                start, is_idle = map(int, one.keys)
                parts[start].append((one.costs, one.management))
                idle[start] += one.total if is_idle else 0.0
            by_month = {month.start: committed for month, committed in _by_month(answer.committed, months)}
            read[account] = {
                month.start: (
                    _point(month, by_month[month.start], parts[month.start], idle[month.start]),
                    by_month[month.start],
                )
                for month in months
            }
        projections = self._projections(read, filters, asked.running)
        return {
            account: {
                month.start: _month_of(
                    month,
                    *of[month.start],
                    projections.get(account) if month is asked.running else None,
                    self._store.engine.one_place,
                )
                for month in months
            }
            for account, of in read.items()
        }

    def _projections(
        self, read: dict[str, dict[int, tuple[Point | None, CommittedHours]]], filters: Filters, running: Window
    ) -> dict[str, Projection]:
        """Of the accounts whose running month was read and has a figure."""
        assert self._store is not None
        booked: dict[str, float] = {}
        until: dict[str, int] = {}
        for account, months in read.items():
            point, committed = months.get(running.start, (None, None))
            if point is not None and committed is not None:
                booked[account] = point.known_cost or 0.0
                until[account] = max(committed.hours) + HOUR
        if not until:
            return {}
        since = min(until.values()) - LOOK_BACK_SECONDS
        recent = self._store.summaries.sums_by_account(list(until), since, max(until.values()), ("hour",), filters)
        projections = {}
        for account, end in until.items():
            totals = {int(one.keys[0]): one.total for one in recent[account].sums}
            markers = recent[account].committed.hours
            currency = markers[end - HOUR].currency  # of the running month, whose hours all have the same
            hours = {
                hour: usd
                for hour, usd in totals.items()
                if hour >= end - LOOK_BACK_SECONDS and markers[hour].currency == currency
            }
            projections[account] = project(hours, booked[account], range(end, running.end, HOUR))
        return projections


def _last_months(now: int, count: int, settled: int, zone: Zone) -> tuple[Window, ...]:
    first, end = zone.period(now, "month")
    for _ in range(count - 1):
        first = zone.period(first - DAY, "month")[0]
    return tuple(steps(Window(first, end, settled, zone=zone), "month"))


def _first_touched(month: Window, running: bool) -> int:
    """The first month of UTC that a zone's month is made of; with what its projection looks back on, if it has one."""
    return UTC_ZONE.period(month.start - LOOK_BACK_SECONDS if running else month.start, "month")[0]


def _touched(first: int, end: int, prints: dict[int, int]) -> tuple[int, ...]:
    """The fingerprints of the months of UTC in a stretch."""
    return tuple(chain.from_iterable(sorted((m, one) for m, one in prints.items() if first <= m < end)))


def _by_month(committed: CommittedHours, months: Sequence[Window]) -> Iterator[tuple[Window, CommittedHours]]:
    """Committed hours by months that follow one another."""
    hours = sorted(committed.hours)
    for month in months:
        first, last = bisect_left(hours, month.start), bisect_left(hours, month.end)
        inside = {hour: committed.hours[hour] for hour in hours[first:last]}
        passed = tuple(marker for marker in committed.passed_over if month.start <= marker.hour < month.end)
        yield month, CommittedHours(committed.account, month.start, month.end, inside, passed)


def _month_of(
    month: Window, point: Point | None, committed: CommittedHours, projection: Projection | None, one_place: bool
) -> _Month:
    currencies = currencies_of(committed)
    return _Month(
        structs.StoredMonth(
            month=month.zone.day(month.start).isoformat()[:7],
            start=month.zone.iso(month.start),
            end=month.zone.iso(month.end),
            coverage=source_of(committed, month).coverage,
            complete=point is not None and point.complete,
            costs=structs.DataPoint(**asdict(point)) if point else None,
            projection=wire(projection, structs.Projection) if projection else None,
            currency=", ".join(currencies) or None,
        ),
        committed.hours[max(committed.hours)].currency if committed.hours else None,
        one_place and not committed.passed_over,
    )


def _told(account: str, asked: _Asked, months: dict[int, _Month], warnings: tuple[str, ...]) -> structs.StoredMonths:
    in_order = [months[month.start] for month in asked.months]
    currencies = [month.currency for month in in_order if month.currency is not None]
    return structs.StoredMonths(
        cloud_account_id=account,
        currency=currencies[-1] if currencies else DEFAULT_CURRENCY,
        months=tuple(month.month for month in in_order),
        timezone=asked.zone.name,
        warnings=warnings,
    )


def _point(month: Window, committed: CommittedHours, parts: Sequence[tuple[Costs, float]], idle: float) -> Point | None:
    """What is stored of a month; None where that is nothing, or money in several currencies."""
    markers = committed.hours.values()
    if not markers or len(currencies_of(committed)) > 1:
        return None
    return stored_point(
        month,
        parts,
        idle,
        {name for marker in markers for name in marker.unknown},
        {name for marker in markers for name in marker.not_covered},
        whole(committed, source_of(committed, month)),
    )
