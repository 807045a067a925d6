"""What is stored, summed by the database: expenses by any of the properties that a row keeps."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import fsum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import Filters, Group
from metroculus.cost_model.columns import known_costs, unknown_usage
from metroculus.cost_model.components import COMPONENTS, MANAGEMENT_COMPONENT
from metroculus.cost_model.efficiency import Efficiency
from metroculus.cost_model.grouping import TIMES
from metroculus.metroculus_api.errors import cannot_group_by, history_of
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import DEFAULT_CURRENCY, AccountSources
from metroculus.storage.coverage import by_clusters, by_currency, currencies_of, silent_in
from metroculus.storage.history import COSTS_AND_USAGE, CostSums, Page, Ranked, by_key
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from metroculus.storage.summaries import Answer
from metroculus.wire import coverage_of, window_of
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import Window
from tools.zones import UTC_ZONE, Period, Zone


class WholeList(Struct, frozen=True):
    """How many rows an account has, what they come to, and the first of them where a page is asked for."""

    rows: int
    total: float
    first: tuple[Ranked, ...] = ()


_NOTHING_COUNTED = WholeList(0, 0.0)


class Stored(Struct, frozen=True):
    """What is stored of one account in a window."""

    sums: Mapping[str, tuple[CostSums, ...]]
    """By currency: money in different ones is never added."""
    coverage: structs.AccountCoverage
    currencies: tuple[str, ...]
    """Empty where nothing is stored."""
    lacking: frozenset[str]
    """The components that some hour does not tell, and should."""
    silent: frozenset[str]
    """The same, and those that nothing that is configured could tell."""
    whole: WholeList
    """Of all rows, where only some of them were read."""


PERIODS: tuple[Period, ...] = ("hour", "day", "month")


class ExpensesController:
    def __init__(self, accounts: Accounts, store: Store | None) -> None:
        self._accounts = accounts
        self._store = store

    async def expenses(
        self,
        accounts: Sequence[str],
        window: Window,
        group_by: Sequence[str],
        filters: Filters,
        deadline: Deadline,
        page: Page | None = None,
    ) -> structs.Expenses:
        """Sums by ``group_by``, dearest first, or in order of time where that is asked for; or one page of them.

        Money in different currencies is never added: then a row is of one of them, and there is no total.

        Raises:
            NoHistory, StoreError
        """
        store = history_of(self._store)
        properties = properties_of(group_by)
        sources = await grouped_sources(self._accounts, accounts, group_by, filters)

        def read_page(group: Sequence[str], own: Filters) -> dict[str, Stored]:
            answers, lists = whole_lists(store, group, window, properties, own, page)
            return {
                one: stored_of(one, answer.committed, window, group_by, sources[one], {}, lists[one], filters.names)
                for one, answer in answers.items()
            }

        def read_all(group: Sequence[str], own: Filters) -> dict[str, Stored]:
            asked = (properties, own, COSTS_AND_USAGE, window.zone)
            answers = store.summaries.sums_by_account(group, window.start, window.end, *asked)
            apart = {one: _apart(store, answer, *asked) for one, answer in answers.items()}
            return {
                one: stored_of(
                    one, answer.committed, window, group_by, sources[one], apart[one], filtered_by=filters.names
                )
                for one, answer in answers.items()
            }

        async def answered(read: Callable[[Sequence[str], Filters], dict[str, Stored]]) -> list[tuple[str, Stored]]:
            found: dict[str, Stored] = {}
            for clusters, group in by_clusters(named_clusters(sources), window.end - window.start):
                found |= await store.ask(deadline.left(), read, group, replace(filters, clusters=clusters))
            return [(account, found[account]) for account in sources]

        told = await answered(read_all if page is None else read_page)
        if page is not None and any(len(one.currencies) > 1 for _, one in told):
            # The database ranks rows of an account, whose money may not be added here.
            everything = await asyncio.to_thread(expenses_of, await answered(read_all), window, group_by, None)
            return _sliced(everything, page)
        return await asyncio.to_thread(expenses_of, told, window, group_by, page)


def _apart(
    store: Store, answer: Answer, properties: Sequence[str], filters: Filters, measures: Sequence[str], zone: Zone
) -> dict[str, tuple[CostSums, ...]]:
    """The sums of an account by currency; blocks where there are several."""
    parts = by_currency(answer.committed)
    if len(parts) < 2:
        return dict.fromkeys(parts, answer.sums)
    asked = (properties, filters, measures, zone)
    return {currency: tuple(store.history.sums(part, *asked)) for currency, part in parts.items()}


def _sliced(told: structs.Expenses, page: Page) -> structs.Expenses:
    """A page of rows that are all there."""
    sign = -1 if page.descending else 1
    ranked = sorted(told.expenses, key=lambda row: sign * (row[f"{page.by}_cost"] or 0.0))
    return replace(told, expenses=tuple(ranked[page.offset : page.end]), row_count=len(ranked))


async def grouped_sources(
    accounts: Accounts, wanted: Sequence[str], group_by: Sequence[str], filters: Filters
) -> dict[str, AccountSources]:
    """The sources of accounts, all of which can tell what is grouped and filtered by.

    Raises:
        ApiError: what an account's metrics do not tell.
    """
    sources = await accounts.of_all(wanted)
    for one in sources.values():
        for properties, parameter in ((group_by, "group_by"), (filters.names, "filter")):
            unsupported = (*one.unsupported(properties), *one.not_stored(properties))
            if unsupported:
                raise cannot_group_by(unsupported, parameter, " in stored hours")
    return sources


def named_clusters(sources: Mapping[str, AccountSources]) -> dict[str, tuple[str, ...]]:
    """Of accounts that name clusters of what their source knows: which."""
    return {account: one.clusters.named for account, one in sources.items()}


def whole_lists(
    store: Store,
    accounts: Sequence[str],
    window: Window,
    properties: Sequence[str],
    filters: Filters,
    page: Page | None,
) -> tuple[dict[str, Answer], dict[str, WholeList]]:
    """How many rows accounts have, what all of them come to, and those that may be on a page; blocks."""
    committed = store.ledger.committed_of(accounts, window.start, window.end)
    several, asked = list(committed.values()), (filters, COSTS_AND_USAGE, window.zone)
    totals = store.history.sums_by_account(several, (), *asked)
    counts = store.history.count_rows(several, properties, filters, window.zone)
    first: dict[str, list[Ranked]] = defaultdict(list)
    for row in store.history.first_rows(several, properties, *asked, page) if page is not None else ():
        first[row.account].append(row)
    return {account: Answer(one, ()) for account, one in committed.items()}, {
        account: WholeList(
            counts.get(account, 0),
            fsum(one.total for one in totals.get(account, ())),
            tuple(first[account]),
        )
        for account in accounts
    }


def expenses_of(
    answered: Sequence[tuple[str, Stored]], window: Window, group_by: Sequence[str], page: Page | None
) -> structs.Expenses:
    """What accounts have stored as one answer."""
    covered = tuple(one.coverage for _, one in answered)
    stored = [(account, one) for account, one in answered if one.currencies]
    money = {account: one.currencies for account, one in stored}
    currencies = sorted({one for several in money.values() for one in several})
    mixed = len(currencies) > 1
    if page is not None:
        rows = _page_rows(stored, page, group_by, window.zone, mixed)
    else:
        rows = _all_rows(stored, group_by, window.zone, mixed)
    known = bool(stored)
    lacking = any(one.lacking for _, one in answered)
    total = fsum(row["total_cost"] for row in rows) if page is None else fsum(one.whole.total for _, one in stored)
    return structs.Expenses(
        start_date=window.start,
        end_date=window.end,
        window=window_of(window),
        currency=", ".join(currencies) or DEFAULT_CURRENCY,
        complete=known and all(one.complete for one in covered) and all(len(one) < 2 for one in money.values()),
        coverage=_mean([one.coverage for one in covered]),
        total_cost=total if known and not mixed and not lacking else None,
        expenses=tuple(rows),
        accounts=covered,
        row_count=len(rows) if page is None else sum(one.whole.rows for _, one in stored),
    )


def _all_rows(
    stored: Sequence[tuple[str, Stored]], group_by: Sequence[str], zone: Zone, mixed: bool
) -> list[dict[str, Any]]:
    rows = []
    for currency in sorted({currency for _, one in stored for currency in one.sums}):
        mine = [(account, one.sums[currency], one.silent) for account, one in stored if currency in one.sums]
        more = {"currency": currency} if mixed else {}
        rows += [more | row for row in _rows(group_by, mine, zone)]
    return sorted(rows, key=lambda row: _order(row, group_by))


def _page_rows(
    stored: Sequence[tuple[str, Stored]], page: Page, group_by: Sequence[str], zone: Zone, mixed: bool
) -> list[dict[str, Any]]:
    """The rows of a page, in the order of their places."""
    money = {account: ", ".join(one.currencies) for account, one in stored}
    silent = {account: one.silent for account, one in stored}
    ranked = sorted((row for _, one in stored for row in one.whole.first), key=lambda row: row.place)
    properties = properties_of(group_by)
    return [
        ({"currency": money[row.account]} if mixed else {})
        | row_of(group_by, row.account, properties, row.sums, silent[row.account], zone)
        for row in ranked[page.offset : page.end]
    ]


def properties_of(group_by: Sequence[str]) -> list[str]:
    """What rows of one account are grouped by."""
    return [name for name in group_by if name != "cluster"]


def _rows(
    group_by: Sequence[str], several: Sequence[tuple[str, Sequence[CostSums], frozenset[str]]], zone: Zone
) -> list[dict[str, Any]]:
    """The rows of accounts, in one currency; with the components that some hours of each do not tell."""
    properties = properties_of(group_by)
    if "cluster" in group_by:
        return [
            row_of(group_by, account, properties, measured, silent, zone)
            for account, sums, silent in several
            for measured in sums
        ]
    everything = by_key([measured for _, sums, _ in several for measured in sums])
    silent = frozenset[str]().union(*(silent for _, _, silent in several))
    return [row_of(group_by, "", properties, measured, silent, zone) for measured in everything]


def stored_of(
    account: str,
    committed: CommittedHours,
    window: Window,
    group_by: Sequence[str],
    sources: AccountSources,
    sums: Mapping[str, tuple[CostSums, ...]],
    whole: WholeList = _NOTHING_COUNTED,
    filtered_by: Sequence[str] = (),
) -> Stored:
    """What an account has stored, and how much of the window that is."""
    finest = next((period for period in PERIODS if period in group_by), None)
    coverage = coverage_of(account, committed, window, finest, sources.sources_without((*group_by, *filtered_by)))
    lacking = frozenset(name for marker in committed.hours.values() for name in marker.unknown)
    return Stored(sums, coverage, tuple(currencies_of(committed)), lacking, silent_in(committed), whole)


def row_of(
    group_by: Sequence[str],
    account: str,
    properties: Sequence[str],
    one: CostSums,
    silent: frozenset[str],
    zone: Zone = UTC_ZONE,
) -> dict[str, Any]:
    """One line: a key for each property, every cost column, the efficiencies.

    Args:
        silent: components that some of its hours do not tell.
    """
    keys = dict(zip(properties, one.keys, strict=True))
    named: dict[str, Any] = {}
    for name in group_by:
        value: Any = account if name == "cluster" else keys[name]
        named[name] = zone.iso(value) if name in TIMES else value
    known = known_costs(one.costs.by_component(), one.unknown, silent)
    costs = dict(zip((f"{name}_cost" for name in COMPONENTS), known, strict=True))
    management = None if not one.management and MANAGEMENT_COMPONENT in silent else one.management
    ratios: Efficiency = Group(one.costs, one.usage, 0, 0.0, unknown_usage(one.unknown)).efficiency
    return {
        **named,
        "total_cost": one.total,
        **costs,
        "management_cost": management,
        "cpu_efficiency": ratios.cpu_efficiency,
        "ram_efficiency": ratios.ram_efficiency,
        "total_efficiency": ratios.total_efficiency,
    }


def _order(row: dict[str, Any], group_by: Sequence[str]) -> tuple[Any, ...]:
    times = tuple(row[name] for name in group_by if name in TIMES)
    return (*times, -row["total_cost"], *(str(row[name]) for name in group_by))


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return fsum(known) / len(known) if known else None
