"""Savings of an account: Kubecost's own where it has them, else worked out from usage; volumes and nodes besides."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.reading import SourceReport, Status
from metroculus.cost_model.savings import Recommendation, by_kind
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import AccountSources
from metroculus.sources.errors import NoSource
from metroculus.sources.source import SavingsReading
from metroculus.storage.engine import StoreError
from metroculus.storage.store import Store
from metroculus.wire import sources_of, window_of, wired
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import DAY, Window, iso

SAVINGS = "savings"
OLDEST_SECONDS = 7 * DAY
"""What was found longer before the end of a window says nothing of it."""
LARGE_LIST = 200
"""More recommendations than this are put into shape on a thread."""


class SavingsOverview(Struct, frozen=True):
    """USD a month, None where no source could tell; by category or kind."""

    potential_savings: float | None
    by_category: dict[str, float]
    source: SourceReport


class SavingsController:
    def __init__(self, accounts: Accounts, store: Store | None) -> None:
        self._accounts = accounts
        self._store = store

    async def stored_overview(
        self, account: str, sources: AccountSources, window: Window, currency: str, deadline: Deadline
    ) -> SavingsOverview:
        """The same as ``overview`` out of the store, and nobody is asked; never raises for a store that failed."""
        store = self._store
        stored = None
        if store is not None:
            span = (account, window.end - OLDEST_SECONDS, window.end)
            try:
                stored = await store.ask(deadline.left() / 2, store.savings.newest, *span)
            except StoreError as failure:
                return SavingsOverview(None, {}, SourceReport(name=SAVINGS, status="unavailable", error=str(failure)))
        if stored is None:
            status: Status = "no_data" if sources.saves else "not_configured"
            error = "no savings are stored for this window; they are stored once a day" if sources.saves else None
            return SavingsOverview(None, {}, SourceReport(name=SAVINGS, status=status, error=error))
        if stored.found.currency not in ("", currency):
            error = f"the stored savings are in {stored.found.currency}, the statement is in {currency}"
            return SavingsOverview(None, {}, SourceReport(name=SAVINGS, status="no_data", error=error))
        rows = len(stored.found.usages) + len(stored.found.recommendations)
        large = rows > LARGE_LIST
        categories = await asyncio.to_thread(stored.found.categories) if large else stored.found.categories()
        until = iso(stored.day + DAY)
        source = SourceReport(
            name=SAVINGS, status="ok", fetched_at=stored.fetched_at, warnings=(f"of the week until {until}",)
        )
        return SavingsOverview(sum(categories.values()), categories, source)

    async def overview(self, sources: AccountSources, window: Window, deadline: Deadline) -> SavingsOverview:
        """The sum and its categories; never raises for a source that failed."""
        found = await sources.savings(window, None, deadline)
        if found.source.status != "ok":
            return SavingsOverview(None, {}, found.source)
        categories, source = found.by_category, found.source
        if categories is None:
            unused, told = await sources.unused(window, deadline)
            categories = by_kind([*found.recommendations, *unused])
            if told is not None and not told.fine:
                without = "unclaimed volumes and idle nodes are missing: the assets could not be read"
                source = replace(source, status="partial", warnings=(*source.warnings, without))
        return SavingsOverview(sum(categories.values()), categories, source)

    async def savings(
        self, account: str, window: Window, utilization: float | None, deadline: Deadline
    ) -> structs.Savings:
        """Everything that could be saved.

        Raises:
            NoSource
        """
        sources = await self._accounts.of(account)
        if not sources.any:
            raise NoSource
        sizing, (unused, assets_source) = await asyncio.gather(
            sources.savings(window, utilization, deadline), sources.unused(window, deadline)
        )
        known = [source for source in (sizing.source, assets_source) if source is not None]
        shape = partial(_answer, account, window, await sources.currency(deadline), sizing, unused, known)
        large = len(sizing.recommendations) + len(unused) > LARGE_LIST
        return await asyncio.to_thread(shape) if large else shape()


def _answer(
    account: str,
    window: Window,
    currency: str,
    sizing: SavingsReading,
    unused: Sequence[Recommendation],
    known: Sequence[SourceReport],
) -> structs.Savings:
    """What was found as it is answered."""
    recommendations = sorted([*sizing.recommendations, *unused], key=lambda r: (-r.monthly_saving, r.name))
    categories = sizing.by_category
    if categories is None and sizing.source.status == "ok":
        categories = by_kind(recommendations)
    listed = wired(recommendations, structs.Recommendation)
    return structs.Savings(
        cloud_account_id=account,
        start_date=window.start,
        end_date=window.end,
        window=window_of(window),
        currency=currency,
        potential_savings=sum(categories.values()) if categories is not None else None,
        cpu_savings=tuple(r for r in listed if r.resource == "cpu" and r.kind == "right_sizing"),
        memory_savings=tuple(r for r in listed if r.resource == "memory" and r.kind == "right_sizing"),
        recommendations=listed,
        by_category=categories or {},
        complete=all(source.status == "ok" for source in known),
        sources=sources_of(known),
    )
