"""Month by month out of the store, and where the running month is going."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metroculus.cost_model.allocation import IDLE, Filters
from metroculus.cost_model.components import Costs
from metroculus.cost_model.series import steps, stored_point
from metroculus.cost_model.statement import Point
from metroculus.cost_model.trend import LOOK_BACK_SECONDS, Projection, project
from metroculus.metroculus_api.controllers.stored import currencies_of, source_of, whole
from metroculus.metroculus_api.errors import NoHistory
from metroculus.metroculus_api.wire import wire
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import DEFAULT_CURRENCY
from metroculus.storage.columns import COST_COLUMNS
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import DAY, HOUR, SETTLING_SECONDS, Window
from tools.zones import Zone


class MonthlyController:
    def __init__(self, accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock

    async def months(self, account: str, count: int, zone: Zone, deadline: Deadline) -> structs.StoredMonths:
        """The last ``count`` months of a zone, the running one among them.

        Raises:
            NoHistory, StoreError
        """
        store = self._store
        if store is None:
            raise NoHistory
        now = int(self._clock())
        this_month, next_month = zone.period(now, "month")
        first = this_month
        for _ in range(count - 1):
            first = zone.period(first - DAY, "month")[0]
        settled = now - SETTLING_SECONDS
        window = Window(first, next_month, settled - settled % HOUR, zone=zone)
        measured, left = store.summaries.sums, deadline.left
        everything = Filters(clusters=(await self._accounts.of(account)).clusters.named)
        span = (account, first, next_month, ("month",))
        sums = await store.ask(left(), measured, *span, everything, COST_COLUMNS, zone)
        only = Filters(namespaces=(IDLE,), clusters=everything.clusters)
        idle = await store.ask(left(), measured, *span, only, COST_COLUMNS, zone)
        parts = {int(one.keys[0]): (one.costs, one.management) for one in sums.sums}
        idle_usd = {int(one.keys[0]): one.total for one in idle.sums}
        months = []
        for month in steps(window, "month"):
            hours = {h: m for h, m in sums.committed.hours.items() if month.start <= h < month.end}
            committed = CommittedHours(account, month.start, month.end, hours)
            source = source_of(committed, month)
            own = [parts[month.start]] if month.start in parts else []
            point = _point(month, committed, own, idle_usd.get(month.start, 0.0))
            projection = None
            if month.start == this_month and point is not None:
                projection = await self._project(
                    account, point.known_cost or 0.0, max(hours) + HOUR, next_month, everything, deadline
                )
            months.append(
                structs.StoredMonth(
                    month=zone.day(month.start).isoformat()[:7],
                    start=zone.iso(month.start),
                    end=zone.iso(month.end),
                    coverage=source.coverage,
                    complete=point is not None and point.complete,
                    costs=wire(point, structs.DataPoint) if point else None,
                    projection=wire(projection, structs.Projection) if projection else None,
                )
            )
        currency = (currencies_of(sums.committed) or [DEFAULT_CURRENCY])[-1]
        return structs.StoredMonths(
            cloud_account_id=account,
            currency=currency,
            months=tuple(months),
            timezone=zone.name,
            warnings=zone.warnings(first, next_month),
        )

    async def _project(
        self, account: str, booked: float, stored_until: int, end: int, everything: Filters, deadline: Deadline
    ) -> Projection:
        assert self._store is not None
        since = stored_until - LOOK_BACK_SECONDS
        measured = self._store.summaries.sums
        recent = await self._store.ask(deadline.left(), measured, account, since, stored_until, ("hour",), everything)
        hours = {int(one.keys[0]): one.total for one in recent.sums}
        return project(hours, booked, range(stored_until, end, HOUR))


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
