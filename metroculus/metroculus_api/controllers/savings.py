"""Savings of an account: Kubecost's own where it has them, else worked out from usage; volumes and nodes besides."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from metroculus.cost_model.reading import SourceReport
from metroculus.cost_model.savings import Recommendation, by_kind
from metroculus.cost_model.statement import StatementWindow
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import AccountSources
from metroculus.sources.errors import NoSource
from tools.deadline import Deadline
from tools.window import Window


class SavingsOverview(Struct, frozen=True):
    """USD a month, None where no source could tell; by category or kind."""

    potential_savings: float | None
    by_category: dict[str, float]
    source: SourceReport


class Savings(Struct, frozen=True, kw_only=True):
    """What could be saved, and where."""

    cloud_account_id: str
    start_date: int
    end_date: int
    window: StatementWindow
    currency: str
    potential_savings: float | None
    cpu_savings: tuple[Recommendation, ...]
    memory_savings: tuple[Recommendation, ...]
    recommendations: tuple[Recommendation, ...]
    by_category: dict[str, float]
    complete: bool
    sources: tuple[SourceReport, ...]


class SavingsController:
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def overview(self, sources: AccountSources, window: Window, deadline: Deadline) -> SavingsOverview:
        """The sum and its categories; never raises for a source that failed."""
        found = await sources.savings(window, None, deadline)
        if found.source.status != "ok":
            return SavingsOverview(None, {}, found.source)
        categories = found.by_category
        if categories is None:
            unused, _ = await sources.unused(window, deadline)
            categories = by_kind([*found.recommendations, *unused])
        return SavingsOverview(sum(categories.values()), categories, found.source)

    async def savings(self, account: str, window: Window, utilization: float | None, deadline: Deadline) -> Savings:
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
        recommendations = sorted([*sizing.recommendations, *unused], key=lambda r: (-r.monthly_saving, r.name))
        categories = sizing.by_category
        if categories is None and sizing.source.status == "ok":
            categories = by_kind(recommendations)
        known = [source for source in (sizing.source, assets_source) if source is not None]
        return Savings(
            cloud_account_id=account,
            start_date=window.start,
            end_date=window.end,
            window=StatementWindow.of(window),
            currency="USD",
            potential_savings=sum(categories.values()) if categories is not None else None,
            cpu_savings=tuple(r for r in recommendations if r.resource == "cpu" and r.kind == "right_sizing"),
            memory_savings=tuple(r for r in recommendations if r.resource == "memory" and r.kind == "right_sizing"),
            recommendations=tuple(recommendations),
            by_category=categories or {},
            complete=all(source.status == "ok" for source in known),
            sources=tuple(known),
        )
