"""Month by month out of the store, and where the running month is going."""

from __future__ import annotations

from collections.abc import Callable

from metroculus.cost_model.allocation import IDLE, Filters
from metroculus.cost_model.series import steps, stored_point
from metroculus.cost_model.trend import LOOK_BACK_SECONDS, Projection, project
from metroculus.metroculus_api.controllers.stored import currencies_of, source_of, whole
from metroculus.metroculus_api.errors import NoHistory
from metroculus.metroculus_api.wire import wire
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import DEFAULT_CURRENCY
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from metroculus.storage.summaries import period_of
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import DAY, HOUR, SETTLING_SECONDS, Window, iso


class MonthlyController:
    def __init__(self, accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock

    async def months(self, account: str, count: int, deadline: Deadline) -> structs.StoredMonths:
        """The last ``count`` months, the running one among them.

        Raises:
            NoHistory, StoreError
        """
        store = self._store
        if store is None:
            raise NoHistory
        now = int(self._clock())
        this_month, next_month = period_of(now, "month")
        first = this_month
        for _ in range(count - 1):
            first = period_of(first - DAY, "month")[0]
        settled = now - SETTLING_SECONDS
        window = Window(first, next_month, settled - settled % HOUR)
        measured, left = store.summaries.sums, deadline.left
        everything = Filters(clusters=(await self._accounts.of(account)).clusters.named)
        sums = await store.ask(left(), measured, account, first, next_month, ("month",), everything)
        only = Filters(namespaces=(IDLE,), clusters=everything.clusters)
        idle = await store.ask(left(), measured, account, first, next_month, ("month",), only)
        parts = {int(one.keys[0]): (one.costs, one.management) for one in sums.sums}
        idle_usd = {int(one.keys[0]): one.total for one in idle.sums}
        months = []
        for month in steps(window, "month"):
            hours = {h: m for h, m in sums.committed.hours.items() if month.start <= h < month.end}
            committed = CommittedHours(account, month.start, month.end, hours)
            source = source_of(committed, month)
            point = None
            if hours and len(currencies_of(committed)) < 2:
                point = stored_point(
                    month,
                    [parts[month.start]] if month.start in parts else [],
                    idle_usd.get(month.start, 0.0),
                    {name for marker in hours.values() for name in marker.unknown},
                    {name for marker in hours.values() for name in marker.not_covered},
                    whole(committed, source),
                )
            projection = None
            if month.start == this_month and point is not None:
                projection = await self._project(
                    account, point.known_cost or 0.0, max(hours) + HOUR, next_month, everything, deadline
                )
            months.append(
                structs.StoredMonth(
                    month=iso(month.start)[:7],
                    start=iso(month.start),
                    end=iso(month.end),
                    coverage=source.coverage,
                    complete=point is not None and whole(committed, source),
                    costs=wire(point, structs.DataPoint) if point else None,
                    projection=wire(projection, structs.Projection) if projection else None,
                )
            )
        currency = (currencies_of(sums.committed) or [DEFAULT_CURRENCY])[-1]
        return structs.StoredMonths(cloud_account_id=account, currency=currency, months=tuple(months))

    async def _project(
        self, account: str, booked: float, stored_until: int, end: int, everything: Filters, deadline: Deadline
    ) -> Projection:
        assert self._store is not None
        since = stored_until - LOOK_BACK_SECONDS
        measured = self._store.summaries.sums
        recent = await self._store.ask(deadline.left(), measured, account, since, stored_until, ("hour",), everything)
        hours = {int(one.keys[0]): one.total for one in recent.sums}
        return project(hours, booked, range(stored_until, end, HOUR))
