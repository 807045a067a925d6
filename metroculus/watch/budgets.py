"""An organization's budgets, held against what is stored of its clusters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import fsum

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, UNALLOCATED, Filters
from metroculus.cost_model.budgets import Bounds, Budget, Judged, Scope, judge
from metroculus.cost_model.rules import UNASSIGNED, fits, rows_by
from metroculus.cost_model.trend import LOOK_BACK_SECONDS, Projection, at_most, project
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import AccountSources
from metroculus.storage.coverage import currencies_of, in_groups, is_all_known, residual_bound
from metroculus.storage.documents import Document
from metroculus.storage.history import CostSums
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from metroculus.storage.summaries import Answer
from metroculus.watch.months import Decisions, Months, first_second, month_after
from metroculus.wire import wire
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import HOUR, SETTLING_SECONDS, Window
from tools.zones import UTC_ZONE

FORECAST_HOURS = 24
"""With fewer whole hours than these a forecast is shown and crosses no threshold."""
NAMED = 5
"""Clusters of which it is said what they lack."""

_BUDGET = msgspec.json.Decoder(Budget)


class StoredBudget(Struct, frozen=True):
    id: str
    budget: Budget


def read_budget(document: Document) -> StoredBudget:
    """A budget as it is kept; a document without a body is one that was removed."""
    return StoredBudget(document.name, _BUDGET.decode(document.body))


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

    def spent(self) -> Bounds:
        more = None if self.foreign else at_most(self.hours, self.partly_known)
        return Bounds(self.booked, None if more is None else self.booked + more + self.residual)

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

    spent: Bounds
    projection: Projection
    enough: bool
    """Whether there is history enough to go by the projection."""
    coverage: float | None
    as_of: int | None
    missing: tuple[str, ...]

    @property
    def forecast(self) -> Bounds:
        expected = self.projection.total_cost
        if expected is None or not self.enough:
            return Bounds(self.spent.low, None)
        unknown = None if self.spent.high is None else self.spent.high - self.spent.low
        return Bounds(max(expected, self.spent.low), None if unknown is None else expected + unknown)


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
        states = []
        for stored in budgets:
            budget = stored.budget
            key = (budget.scope, budget.period, budget.currency)
            window = self._window(budget)
            if key not in figures:
                by_center = budget.scope.cost_center is not None
                read = self._of_cost_center if by_center else self._of_scope
                figures[key] = await read(known, budget, window, deadline)
            states.append(_state(stored, window, figures[key]))
        return tuple(states)

    def _window(self, budget: Budget) -> Window:
        """The running period, of which the settled hours are final."""
        now = int(self._clock())
        start, end = UTC_ZONE.period(now, budget.period)
        settled = now - SETTLING_SECONDS
        return Window(start, end, max(start, min(end, settled - settled % HOUR)))

    async def _of_scope(self, known: Decisions, budget: Budget, window: Window, deadline: Deadline) -> _Figures:
        scope = budget.scope
        accounts = [one for one in known.accounts if scope.cluster_id in (None, one)]
        if not accounts:
            gone = "the organization has no cluster"
            if scope.cluster_id is not None:
                gone = f"cluster {scope.cluster_id} is not this organization's any more"
            return _figures((), window, (gone,))
        return _figures(await self._series(accounts, budget, window, deadline), window)

    async def _of_cost_center(self, known: Decisions, budget: Budget, window: Window, deadline: Deadline) -> _Figures:
        """Its charges so far; of what is not known or still to come, the share that it had of all costs so far."""
        center, running = budget.scope.cost_center or "", UTC_ZONE.iso(self._clock())[:7]
        charged, overhead, everything = [], [0.0], []
        month = UTC_ZONE.iso(window.start)[:7]
        while month <= running:
            charges = await self._months.charges(known, month, known.rules(month), deadline)
            rows = [one for one in rows_by(charges, "cost_center") if one.currency == budget.currency]
            everything += [one.total - fsum(one.overhead.values()) for one in rows]
            mine = [one for one in rows if one.name == center]
            overhead.append(fsum(usd for one in mine for usd in one.overhead.values()))
            charged += [one.total for one in mine]
            month = month_after(month)
        months_to_come = 0
        while first_second(month) < window.end:
            months_to_come, month = months_to_come + 1, month_after(month)
        whole = await self._of_scope(known, replace(budget, scope=Scope()), window, deadline)
        named = {UNASSIGNED, *(one.name for one in known.rules(running).cost_centers)}
        gone = () if center in named else (f"the allocation rules of {running} name no cost center {center}",)
        spent, total = fsum(charged), fsum(everything)
        share = (spent - fsum(overhead)) / total if total > 0 else None
        return _of_share(whole, spent, share, overhead[-1] * months_to_come, gone)

    async def _series(
        self, accounts: Sequence[str], budget: Budget, window: Window, deadline: Deadline
    ) -> list[_Series]:
        await self._accounts.look_up(accounts)
        sources = dict(zip(accounts, await asyncio.gather(*map(self._accounts.of, accounts)), strict=True))
        by_clusters: dict[tuple[str, ...], list[str]] = {}
        for account, one in sources.items():
            by_clusters.setdefault(one.clusters.named, []).append(account)
        series: list[_Series] = []
        span = window.end - min(window.start, window.final_until - LOOK_BACK_SECONDS)
        for clusters, several in by_clusters.items():
            for group in in_groups(several, span):
                asked = (group, budget, window, clusters, sources)
                series += await self._store.ask(deadline.left(), self._read, *asked)
        return series

    def _read(
        self,
        accounts: Sequence[str],
        budget: Budget,
        window: Window,
        clusters: tuple[str, ...],
        sources: Mapping[str, AccountSources],
    ) -> list[_Series]:
        """What is stored of several accounts that are limited to the same clusters; blocks."""
        scope, until = budget.scope, window.final_until
        asked = _Asked(scope, clusters)
        booked = self._sums(accounts, window.start, until, (), asked)
        recent = self._sums(accounts, until - LOOK_BACK_SECONDS, until, ("hour",), asked)
        series = []
        for account in accounts:
            unable = sources[account].sources_without([f"label:{scope.label}"]) if scope.label else frozenset[str]()
            series.append(self._series_of(booked[account], recent[account], budget.currency, window, unable, asked))
        return series

    def _sums(
        self, accounts: Sequence[str], start: int, end: int, keys: tuple[str, ...], asked: _Asked
    ) -> dict[str, Answer]:
        """Sums of what a scope lets through, by keys and what the scope is told by."""
        if start >= end:
            return {one: Answer(CommittedHours(one, start, end, {}), ()) for one in accounts}
        return self._store.summaries.sums_by_account(accounts, start, end, (*keys, *asked.told_by), asked.filters)

    def _series_of(
        self,
        period: Answer,
        recent: Answer,
        currency: str,
        window: Window,
        unable: frozenset[str],
        asked: _Asked,
    ) -> _Series:
        markers = period.committed.hours
        own = {hour: marker for hour, marker in markers.items() if marker.currency == currency}
        sums: Sequence[CostSums] = period.sums
        if currencies_of(period.committed) not in ([], [currency]):
            own_hours = replace(period.committed, hours=own)
            sums = self._store.history.sums(own_hours, asked.told_by, asked.filters)
        by_hour: dict[int, list[float]] = {}
        for one in recent.sums:
            if asked.lets_through(one.keys[1:]):
                by_hour.setdefault(int(one.keys[0]), []).append(one.total)
        totals = {hour: fsum(parts) for hour, parts in by_hour.items()}
        good = {
            hour
            for of in (recent.committed.hours, own)
            for hour, marker in of.items()
            if is_all_known(marker) and marker.source not in unable and marker.currency == currency
        }
        foreign: dict[str, int] = {}
        for marker in markers.values():
            if marker.currency != currency:
                foreign[marker.currency] = foreign.get(marker.currency, 0) + 1
        settled = range(window.start, window.final_until, HOUR)
        return _Series(
            account=period.committed.account,
            booked=fsum(one.total for one in sums if asked.lets_through(one.keys)),
            hours={hour: totals.get(hour, 0.0) for hour in recent.committed.hours if hour in good},
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


class _Asked:
    """How the store is asked for what a scope lets through."""

    def __init__(self, scope: Scope, clusters: tuple[str, ...]) -> None:
        self._scope = scope
        exact = scope.namespace is not None and "*" not in scope.namespace
        self.filters = Filters(namespaces=(scope.namespace or "",) if exact else (), clusters=clusters)
        by_namespace = ("namespace",) if (scope.namespace or scope.label) and not exact else ()
        self.told_by: tuple[str, ...] = (*by_namespace, *((f"label:{scope.label}",) if scope.label else ()))
        self._by_namespace = bool(by_namespace)

    def lets_through(self, keys: Sequence[str | int]) -> bool:
        """Args: keys: in the order of ``told_by``."""
        texts = list(map(str, keys))
        if self._by_namespace:
            namespace = texts.pop(0)
            if namespace in (IDLE, MANAGEMENT) or not fits(self._scope.namespace or "*", namespace):
                return False
        if not texts:
            return True
        value = texts[0]
        if value in ("", UNALLOCATED):
            return False
        return not self._scope.values or any(fits(pattern, value) for pattern in self._scope.values)


def _figures(series: Sequence[_Series], window: Window, missing: tuple[str, ...] = ()) -> _Figures:
    """What several clusters come to; bands are added as if all were off the same way."""
    bounds = [one.spent() for one in series]
    highs = [one.high for one in bounds if one.high is not None]
    booked = fsum(one.low for one in bounds)
    bounded = len(highs) == len(bounds) and not missing
    projections = [project(one.hours, one.booked, range(one.until, window.end, HOUR)) for one in series]
    lacking = [note for one in series for note in one.missing()]
    if len(lacking) > NAMED:
        lacking = [*lacking[:NAMED], f"and {len(lacking) - NAMED} more of the kind"]
    settled = window.final_seconds * len(series)
    stored = [one.until for one in series if one.seconds]
    return _Figures(
        spent=Bounds(booked, fsum(highs) if bounded else None),
        projection=_added(projections),
        enough=bool(series) and all(len(one.hours) >= FORECAST_HOURS for one in series),
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


def _of_share(whole: _Figures, spent: float, share: float | None, to_come: float, gone: tuple[str, ...]) -> _Figures:
    """The figures of one who bears a share of all costs.

    Args:
        to_come: overhead of months that have not begun.
    """
    unknown = None if whole.spent.high is None else whole.spent.high - whole.spent.low
    if gone or unknown is None or (share is None and unknown > 0):
        high = None
    else:
        high = spent + (share or 0.0) * unknown

    def projected(of_all: float | None) -> float | None:
        return None if of_all is None or share is None else spent + share * (of_all - whole.spent.low) + to_come

    return replace(
        whole,
        spent=Bounds(spent, high),
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
    budget, spent, projection = stored.budget, figures.spent, figures.projection
    judged: Judged = judge(budget, spent, figures.forecast)
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
        spent=spent.low,
        spent_at_most=spent.high,
        percent=100 * spent.low / budget.amount,
        forecast=structs.BudgetForecast(expected=projection.total_cost, low=projection.low, high=projection.high),
        thresholds=tuple(
            structs.BudgetCrossing(percent=one.percent, on=one.on, state=crossing)
            for one, crossing in zip(budget.thresholds, judged.crossings, strict=True)
        ),
        coverage=figures.coverage,
        as_of=UTC_ZONE.iso(figures.as_of) if figures.as_of is not None else None,
        missing=figures.missing,
    )
