"""An organization's budgets, held against what is stored of its clusters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, UNALLOCATED, Filters
from metroculus.cost_model.budgets import Bounds, Budget, Judged, Scope, judge
from metroculus.cost_model.rules import UNASSIGNED, Row, fits, rows_by
from metroculus.cost_model.trend import LOOK_BACK_SECONDS, Projection, project, unknown_cost_bound
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import AccountSources
from metroculus.storage.coverage import by_clusters, by_currency, is_all_known, residual_bound
from metroculus.storage.documents import Document
from metroculus.storage.history import CostSums
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from metroculus.storage.summaries import Answer
from metroculus.watch.months import Decisions, Months, first_second, month_after
from metroculus.wire import version_of, wire
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import HOUR, SETTLING_SECONDS, Window
from tools.zones import UTC_ZONE

SHARE_HOURS = 24
"""With fewer hours of the running month than these, what is shared out by weights is not settled enough to go by."""
FORECAST_HOURS = 24
"""With fewer whole hours than these a forecast is shown and crosses no threshold."""
NAMED = 5
"""Clusters of which it is said what they lack."""

_BUDGET = msgspec.json.Decoder(Budget)


class StoredBudget(Struct, frozen=True):
    id: str
    budget: Budget
    sequence: int = 0
    """Of the document that it was read from; 0 for a new one."""


def read_budget(document: Document) -> StoredBudget:
    """A budget as it is kept; a document without a body is one that was removed."""
    return StoredBudget(document.name, _BUDGET.decode(document.body), document.sequence)


class _Series(Struct, frozen=True, kw_only=True):
    """What is stored of one scope of one account in a period; money in the budget's currency."""

    account: str
    booked: float
    hours: Mapping[int, float]
    """Totals of the whole hours of the last four weeks."""
    partly_known: Mapping[int, float]
    """Of the settled hours of the period that are not whole, what is known; 0 where they are missing."""
    absent: int
    """How many of those are missing."""
    residual: float
    foreign: Mapping[str, int]
    """Hours by currency that are not counted, as nothing is converted."""
    until: int
    """The end of the newest hour that is stored; the period's first second where none is."""
    seconds: int
    """Of the period's settled time, what is stored."""

    def bounds(self) -> Bounds:
        """What it may have been: as much less, too, as hours may be off their source's own totals."""
        more = None if self.foreign else unknown_cost_bound(self.hours, self.partly_known)
        return Bounds(self.booked - self.residual, None if more is None else self.booked + more + self.residual)

    def missing(self) -> list[str]:
        lacking = [f"cluster {self.account} lacks {self.absent} hours"] if self.absent else []
        if len(self.partly_known) > self.absent:
            lacking.append(
                f"cluster {self.account} has {len(self.partly_known) - self.absent} hours with unknown costs"
            )
        lacking += [
            f"cluster {self.account} has {hours} hours in {currency}, which are not counted"
            for currency, hours in sorted(self.foreign.items())
        ]
        if self.residual:
            lacking.append(f"cluster {self.account} may be off by {self.residual:.2f}")
        return lacking


class _Figures(Struct, frozen=True, kw_only=True):
    """What a budget is held against."""

    spent: float
    """What is known."""
    bounds: Bounds
    projection: Projection
    forecast_usable: bool
    """Whether there is history enough to go by the projection."""
    coverage: float | None
    as_of: int | None
    missing: tuple[str, ...]

    @property
    def forecast(self) -> Bounds:
        expected = self.projection.total_cost
        if expected is None or not self.forecast_usable:
            return Bounds(self.bounds.low, None)
        less, high = self.spent - self.bounds.low, self.bounds.high
        return Bounds(max(expected - less, self.bounds.low), None if high is None else expected + high - self.spent)


class BudgetReader:
    """Reads budgets, and what they are held against."""

    def __init__(self, accounts: Accounts, store: Store, months: Months, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._months = months
        self._clock = clock

    async def kept(self, organization: str, deadline: Deadline) -> tuple[StoredBudget, ...]:
        """Its budgets, in order of name.

        Raises:
            StoreError
        """
        newest = await self._store.ask(deadline.left(), self._store.documents.newest, organization, "budget")
        kept = [read_budget(one) for one in newest.values() if one.body]
        return tuple(sorted(kept, key=lambda one: (one.budget.name, one.id)))

    async def states(
        self, organization: str, budgets: Iterable[StoredBudget], deadline: Deadline
    ) -> tuple[structs.BudgetState, ...]:
        """Budgets in their running periods.

        Raises:
            RegistryError, StoreError
        """
        known = await self._months.decisions(organization, deadline)
        figures: dict[tuple[Scope, str, str], _Figures] = {}
        reads: _Reads = {}
        states = []
        for stored in budgets:
            budget = stored.budget
            key = (budget.scope, budget.period, budget.currency)
            window = self._window(budget)
            if key not in figures:
                by_center = budget.scope.cost_center is not None
                read = self._of_cost_center if by_center else self._of_scope
                figures[key] = await read(known, budget, window, reads, deadline)
            states.append(_state(stored, window, figures[key]))
        return tuple(states)

    def _window(self, budget: Budget) -> Window:
        """The running period, of which the settled hours are final."""
        now = int(self._clock())
        start, end = UTC_ZONE.period(now, budget.period)
        settled = now - SETTLING_SECONDS
        return Window(start, end, max(start, min(end, settled - settled % HOUR)))

    async def _of_scope(
        self, known: Decisions, budget: Budget, window: Window, reads: _Reads, deadline: Deadline
    ) -> _Figures:
        scope = budget.scope
        if not known.accounts:
            return _figures((), window, ("the organization has no cluster",))
        if scope.cluster_id is not None and scope.cluster_id not in known.accounts:
            return _figures((), window, (f"cluster {scope.cluster_id} is not this organization's any more",))
        by_account = await self._shared_read(known.accounts, scope, window, reads, deadline)
        of = [scope.cluster_id] if scope.cluster_id is not None else known.accounts
        series = await asyncio.to_thread(
            lambda: [_series_of(by_account[account], scope, budget.currency, window) for account in of]
        )
        return _figures(series, window)

    async def _of_cost_center(
        self, known: Decisions, budget: Budget, window: Window, reads: _Reads, deadline: Deadline
    ) -> _Figures:
        """Its charges so far; of what is still to come, the share that it had of all costs so far."""
        center, running = budget.scope.cost_center or "", UTC_ZONE.iso(self._clock())[:7]
        months: list[_CenterMonth] = []
        month = UTC_ZONE.iso(window.start)[:7]
        while month <= running:
            charges = await self._months.charges_now(known, month, deadline)
            months.append(_month_of(rows_by(charges, "cost_center"), center, budget.currency))
            month = month_after(month)
        to_come = 0
        while first_second(month) < window.end:
            to_come, month = to_come + 1, month_after(month)
        whole = await self._of_scope(known, replace(budget, scope=Scope()), window, reads, deadline)
        named = {UNASSIGNED, *(one.name for one in known.rules(running).cost_centers)}
        gone = () if center in named else (f"the allocation rules of {running} name no cost center {center}",)
        hours = (window.final_until - first_second(running)) // HOUR
        return _center_figures(whole, months, to_come, too_few_hours=hours < SHARE_HOURS, gone=gone)

    async def _shared_read(
        self, accounts: Sequence[str], scope: Scope, window: Window, reads: _Reads, deadline: Deadline
    ) -> dict[str, _AccountRead]:
        """What is stored by namespace and by the scope's label, where it asks for any; budgets share what was read."""
        group_by: tuple[str, ...] = ("namespace",) if scope.namespace or scope.label else ()
        group_by += (f"label:{scope.label}",) if scope.label else ()
        key = (group_by, window.start, window.end)
        if key not in reads:
            reads[key] = await self._read_all(accounts, group_by, window, deadline)
        return reads[key]

    async def _read_all(
        self, accounts: Sequence[str], group_by: tuple[str, ...], window: Window, deadline: Deadline
    ) -> dict[str, _AccountRead]:
        sources = await self._accounts.of_all(accounts)
        found: dict[str, _AccountRead] = {}
        span = window.end - min(window.start, window.final_until - LOOK_BACK_SECONDS)
        for clusters, group in by_clusters({name: one.clusters.named for name, one in sources.items()}, span):
            asked = (group, group_by, window, Filters(clusters=clusters), sources)
            found |= await self._store.ask(deadline.left(), self._read, *asked)
        return found

    def _read(
        self,
        accounts: Sequence[str],
        group_by: tuple[str, ...],
        window: Window,
        filters: Filters,
        sources: Mapping[str, AccountSources],
    ) -> dict[str, _AccountRead]:
        """What is stored of several accounts that are limited to the same clusters; blocks."""
        until, labels = window.final_until, [one for one in group_by if one.startswith("label:")]
        booked = self._sums(accounts, window.start, until, group_by, filters)
        recent = self._sums(accounts, until - LOOK_BACK_SECONDS, until, ("hour", *group_by), filters)
        found = {}
        for account in accounts:
            period = booked[account]
            parts = by_currency(period.committed)
            sums: dict[str, Sequence[CostSums]] = {currency: period.sums for currency in parts}
            if len(parts) > 1:
                history = self._store.history
                sums = {currency: history.sums(part, group_by, filters) for currency, part in parts.items()}
            unable = sources[account].sources_without(labels) if labels else frozenset[str]()
            found[account] = _account_read(period.committed, sums, recent[account], unable)
        return found

    def _sums(
        self, accounts: Sequence[str], start: int, end: int, group_by: tuple[str, ...], filters: Filters
    ) -> dict[str, Answer]:
        if start >= end:
            return {one: Answer(CommittedHours(one, start, end, {}), ()) for one in accounts}
        return self._store.summaries.sums_by_account(accounts, start, end, group_by, filters)


class _AccountRead(Struct, frozen=True):
    """What is stored of one account in a period and in the four weeks before now."""

    period: CommittedHours
    recent: CommittedHours
    booked: Mapping[str, Mapping[tuple[str, ...], float]]
    """By currency and by what it is told by: the sums of the period."""
    by_hour: Mapping[tuple[str, ...], Mapping[int, float]]
    """By what it is told by and hour: the totals of the last four weeks."""
    unable: frozenset[str]
    """Sources whose hours cannot tell what is asked."""


_Reads = dict[tuple[tuple[str, ...], int, int], dict[str, _AccountRead]]
"""By what it is told by and period."""


def _account_read(
    period: CommittedHours, sums: Mapping[str, Sequence[CostSums]], recent: Answer, unable: frozenset[str]
) -> _AccountRead:
    """Args: sums: of the period, by currency."""
    by_hour: dict[tuple[str, ...], dict[int, float]] = {}
    for one in recent.sums:
        by_hour.setdefault(tuple(map(str, one.keys[1:])), {})[int(one.keys[0])] = one.total
    booked = {currency: {tuple(map(str, one.keys)): one.total for one in several} for currency, several in sums.items()}
    return _AccountRead(period, recent.committed, booked, by_hour, unable)


def _series_of(read: _AccountRead, scope: Scope, currency: str, window: Window) -> _Series:
    markers = read.period.hours
    own = {hour: marker for hour, marker in markers.items() if marker.currency == currency}
    parts: dict[int, list[float]] = {}
    for keys, by_hour in read.by_hour.items():
        if _matches(scope, keys):
            for hour, usd in by_hour.items():
                parts.setdefault(hour, []).append(usd)
    totals = {hour: fsum(several) for hour, several in parts.items()}
    good = {
        hour
        for of in (read.recent.hours, own)
        for hour, marker in of.items()
        if is_all_known(marker) and marker.source not in read.unable and marker.currency == currency
    }
    foreign = Counter(marker.currency for marker in markers.values() if marker.currency != currency)
    settled = range(window.start, window.final_until, HOUR)
    booked = read.booked.get(currency, {})
    return _Series(
        account=read.period.account,
        booked=fsum(usd for keys, usd in booked.items() if _matches(scope, keys)),
        hours={hour: totals.get(hour, 0.0) for hour in read.recent.hours if hour in good},
        partly_known={
            hour: totals.get(hour, 0.0) if hour in own else 0.0
            for hour in settled
            if hour not in good and (hour in own or hour not in markers)
        },
        absent=sum(hour not in markers for hour in settled),
        residual=residual_bound(marker for marker in own.values() if not marker.reconciled),
        foreign=foreign,
        until=max(own, default=window.start - HOUR) + HOUR,
        seconds=sum(min(marker.seconds, HOUR) for marker in own.values()),
    )


def _matches(scope: Scope, keys: Sequence[str]) -> bool:
    """Whether a scope takes what has such a namespace, and such a value of its label; no keys are everything."""
    if not keys:
        return True
    if keys[0] in (IDLE, MANAGEMENT) or not fits(scope.namespace or "*", keys[0]):
        return False
    if scope.label is None:
        return True
    value = keys[1]
    if value in ("", UNALLOCATED):
        return False
    return not scope.values or any(fits(pattern, value) for pattern in scope.values)


class _CenterMonth(Struct, frozen=True, kw_only=True):
    """What a cost center bears of a month, and what there is to bear."""

    direct: float
    total: float
    overhead: float
    everything: float
    """Of all centers, without overhead."""
    all_overhead: float


def _month_of(rows: Sequence[Row], center: str, currency: str) -> _CenterMonth:
    own = [one for one in rows if one.currency == currency]
    mine = [one for one in own if one.name == center]
    return _CenterMonth(
        direct=fsum(one.direct_cost for one in mine),
        total=fsum(one.total for one in mine),
        overhead=fsum(usd for one in mine for usd in one.overhead.values()),
        everything=fsum(one.total - fsum(one.overhead.values()) for one in own),
        all_overhead=fsum(usd for one in own for usd in one.overhead.values()),
    )


def _figures(series: Sequence[_Series], window: Window, missing: tuple[str, ...] = ()) -> _Figures:
    """What several clusters come to; bands are added as if all were off the same way."""
    bounds = [one.bounds() for one in series]
    highs = [one.high for one in bounds if one.high is not None]
    bounded = len(highs) == len(bounds) and not missing
    projections = [project(one.hours, one.booked, range(one.until, window.end, HOUR)) for one in series]
    lacking = [note for one in series for note in one.missing()]
    if len(lacking) > NAMED:
        lacking = [*lacking[:NAMED], f"and {len(lacking) - NAMED} more of the kind"]
    settled = window.final_seconds * len(series)
    stored = [one.until for one in series if one.seconds]
    return _Figures(
        spent=fsum(one.booked for one in series),
        bounds=Bounds(fsum(one.low for one in bounds), fsum(highs) if bounded else None),
        projection=_added(projections),
        forecast_usable=bool(series) and all(len(one.hours) >= FORECAST_HOURS for one in series),
        coverage=sum(one.seconds for one in series) / settled if settled else None,
        as_of=max(stored) if stored else None,
        missing=(*missing, *lacking),
    )


def _added(projections: Sequence[Projection]) -> Projection:
    def total(parts: Sequence[float | None]) -> float | None:
        known = [part for part in parts if part is not None]
        return fsum(known) if parts and len(known) == len(parts) else None

    return Projection(
        total_cost=total([one.total_cost for one in projections]),
        low=total([one.low for one in projections]),
        high=total([one.high for one in projections]),
        method=projections[0].method if projections else "none",
        hours_left=max((one.hours_left for one in projections), default=0),
    )


def _center_figures(
    whole: _Figures, months: Sequence[_CenterMonth], to_come: int, too_few_hours: bool, gone: tuple[str, ...]
) -> _Figures:
    """The figures of one who bears a share of all costs.

    What is not known of the clusters may all be its own, and what is shared by weights shifts with it: then what is
    matched to it directly is all that is known.

    Args:
        to_come: months of the period that have not begun.
        too_few_hours: whether the running month has too few hours to share anything out by.
    """
    running = months[-1]
    spent, overhead = fsum(one.total for one in months), fsum(one.overhead for one in months)
    everything = fsum(one.everything for one in months)
    unknown = None if whole.bounds.high is None else whole.bounds.high - whole.bounds.low
    low, high = spent, None if gone or unknown is None else spent
    if unknown is None or unknown > 0:
        low = fsum(one.direct for one in months)
        high = None if high is None or unknown is None else high + unknown + fsum(one.all_overhead for one in months)
    elif too_few_hours:
        low = spent - running.total + running.direct
        high = None if high is None else high + running.everything + running.all_overhead
    share = (spent - overhead) / everything if everything > 0 else None

    def projected(of_all: float | None) -> float | None:
        if of_all is None or share is None:
            return None
        return spent + share * (of_all - whole.spent) + running.overhead * to_come

    return replace(
        whole,
        spent=spent,
        bounds=Bounds(low, high),
        forecast_usable=whole.forecast_usable and not too_few_hours,
        projection=Projection(
            total_cost=projected(whole.projection.total_cost),
            low=projected(whole.projection.low),
            high=projected(whole.projection.high),
            method=whole.projection.method,
            hours_left=whole.projection.hours_left,
        ),
        missing=(*gone, *whole.missing),
    )


def _state(stored: StoredBudget, window: Window, figures: _Figures) -> structs.BudgetState:
    budget, projection = stored.budget, figures.projection
    judged: Judged = judge(budget, figures.bounds, figures.forecast)
    return structs.BudgetState(
        id=stored.id,
        name=budget.name,
        scope=wire(budget.scope, structs.BudgetScope),
        period=budget.period,
        amount=budget.amount,
        currency=budget.currency,
        source="metroculus",
        start=UTC_ZONE.iso(window.start),
        end=UTC_ZONE.iso(window.end),
        state=judged.state,
        spent=figures.spent,
        spent_at_most=figures.bounds.high,
        percent=100 * figures.spent / budget.amount,
        forecast=structs.BudgetForecast(expected=projection.total_cost, low=projection.low, high=projection.high),
        thresholds=tuple(
            structs.BudgetCrossing(percent=one.percent, on=one.on, state=crossing)
            for one, crossing in zip(budget.thresholds, judged.crossings, strict=True)
        ),
        coverage=figures.coverage,
        as_of=UTC_ZONE.iso(figures.as_of) if figures.as_of is not None else None,
        missing=figures.missing,
        version=version_of(budget),
    )
