"""What is stored, summed by the database: expenses by any of the properties that a row keeps."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import Filters, Group
from metroculus.cost_model.columns import unknown_usage
from metroculus.cost_model.components import COMPONENTS
from metroculus.cost_model.efficiency import Efficiency
from metroculus.cost_model.grouping import TIMES
from metroculus.metroculus_api.errors import cannot_group_by, history_of
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import DEFAULT_CURRENCY, AccountSources
from metroculus.storage.coverage import by_clusters, currencies_of
from metroculus.storage.history import COSTS_AND_USAGE, CostSums, Page, Ranked, by_key
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


class Stored(Struct, frozen=True):
    """What is stored of one account in a window."""

    sums: tuple[CostSums, ...]
    coverage: structs.AccountCoverage
    currencies: tuple[str, ...]
    """Empty where nothing is stored."""
    lacking: bool
    """Whether some hour does not tell some component."""
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
        sources = await grouped_sources(self._accounts, accounts, group_by)

        def read(group: Sequence[str], own: Filters) -> dict[str, Stored]:
            if page is not None:
                answers, counts = whole_lists(store, group, window, properties, own, page)
            else:
                asked = (group, window.start, window.end, properties, own, COSTS_AND_USAGE, window.zone)
                answers, counts = store.summaries.sums_by_account(*asked), {}
            return {
                one: stored_of(one, answer, window, group_by, sources[one], counts.get(one))
                for one, answer in answers.items()
            }

        found: dict[str, Stored] = {}
        for clusters, group in by_clusters(named_clusters(sources), window.end - window.start):
            found |= await store.ask(deadline.left(), read, group, replace(filters, clusters=clusters))
        answered = [(account, found[account]) for account in sources]
        return await asyncio.to_thread(expenses_of, answered, window, group_by, page)


async def grouped_sources(
    accounts: Accounts, wanted: Sequence[str], group_by: Sequence[str]
) -> dict[str, AccountSources]:
    """The sources of accounts, all of which can tell what is grouped by.

    Raises:
        ApiError: what an account's metrics do not tell.
    """
    sources = await accounts.of_all(wanted)
    for one in sources.values():
        unsupported = (*one.unsupported(group_by), *one.not_stored(group_by))
        if unsupported:
            raise cannot_group_by(unsupported, "group_by", " in stored hours")
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
    for together in sorted({one.currencies for _, one in stored}):
        mine = [(account, one.sums) for account, one in stored if one.currencies == together]
        more = {"currency": ", ".join(together)} if mixed else {}
        rows += [more | row for row in _rows(group_by, mine, zone)]
    return sorted(rows, key=lambda row: _order(row, group_by))


def _page_rows(
    stored: Sequence[tuple[str, Stored]], page: Page, group_by: Sequence[str], zone: Zone, mixed: bool
) -> list[dict[str, Any]]:
    """The rows of a page, in the order of their places."""
    money = {account: ", ".join(one.currencies) for account, one in stored}
    ranked = sorted((row for _, one in stored for row in one.whole.first), key=lambda row: row.place)
    properties = properties_of(group_by)
    return [
        ({"currency": money[row.account]} if mixed else {}) | row_of(group_by, row.account, properties, row.sums, zone)
        for row in ranked[page.offset : page.end]
    ]


def properties_of(group_by: Sequence[str]) -> list[str]:
    """What rows of one account are grouped by."""
    return [name for name in group_by if name != "cluster"]


def _rows(
    group_by: Sequence[str], summed: Sequence[tuple[str, Sequence[CostSums]]], zone: Zone
) -> list[dict[str, Any]]:
    """The rows of accounts whose money may be added."""
    properties = properties_of(group_by)
    if "cluster" in group_by:
        return [row_of(group_by, account, properties, measured, zone) for account, sums in summed for measured in sums]
    everything = by_key([measured for _, sums in summed for measured in sums])
    return [row_of(group_by, "", properties, measured, zone) for measured in everything]


def stored_of(
    account: str,
    answer: Answer,
    window: Window,
    group_by: Sequence[str],
    sources: AccountSources,
    whole_list: WholeList | None,
) -> Stored:
    """What an account has stored, and how much of the window that is."""
    committed = answer.committed
    finest = next((period for period in PERIODS if period in group_by), None)
    coverage = coverage_of(account, committed, window, finest, sources.sources_without(group_by))
    lacking = any(marker.unknown for marker in committed.hours.values())
    whole_list = whole_list or WholeList(len(answer.sums), 0.0)
    return Stored(answer.sums, coverage, tuple(currencies_of(committed)), lacking, whole_list)


def row_of(
    group_by: Sequence[str], account: str, properties: Sequence[str], one: CostSums, zone: Zone = UTC_ZONE
) -> dict[str, Any]:
    """One line: a key for each property, every cost column, the efficiencies."""
    keys = dict(zip(properties, one.keys, strict=True))
    named: dict[str, Any] = {}
    for name in group_by:
        value: Any = account if name == "cluster" else keys[name]
        named[name] = zone.iso(value) if name in TIMES else value
    costs = dict(zip((f"{name}_cost" for name in COMPONENTS), one.costs.by_component(), strict=True))
    ratios: Efficiency = Group(one.costs, one.usage, 0, 0.0, unknown_usage(one.unknown)).efficiency
    return {
        **named,
        "total_cost": one.total,
        **costs,
        "management_cost": one.management,
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
