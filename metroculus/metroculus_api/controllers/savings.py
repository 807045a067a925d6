"""Savings of an account: Kubecost's own where it has them, else worked out from usage; volumes and nodes besides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from msgspec import Struct

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.savings import (
    MIN_WINDOW_SECONDS,
    Recommendation,
    abandoned_workloads,
    by_kind,
    idle_nodes,
    right_sizing,
    unclaimed_volumes,
)
from metroculus.cost_model.statement import Source, StatementWindow
from metroculus.metroculus_api.errors import NoSource
from metroculus.sources.accounts import Accounts, AccountSources
from metroculus.sources.errors import SourceError
from metroculus.sources.kubecost.client import KubecostSource
from metroculus.sources.kubecost.savings import decode_abandoned, decode_overview, decode_request_sizing
from metroculus.sources.thanos.assets import assets_by_metrics
from metroculus.sources.thanos.usage import container_usages
from tools.deadline import Deadline
from tools.window import Window

log = logging.getLogger("savings")


class SavingsOverview(Struct, frozen=True):
    """USD a month, None where nobody could tell; by category or kind."""

    potential_savings: float | None
    by_category: dict[str, float]
    source: Source


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
    sources: tuple[Source, ...]


class _Found(Struct):
    recommendations: list[Recommendation]
    by_category: dict[str, float] | None
    source: Source


class SavingsController:
    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def overview(
        self, sources: AccountSources, account: str, window: Window, deadline: Deadline
    ) -> SavingsOverview:
        """The sum and its categories; never raises for a source that failed."""
        found = await self._sizing(sources, account, window, deadline, None)
        if found.source.status != "ok":
            return SavingsOverview(None, {}, found.source)
        categories = found.by_category
        if categories is None:
            besides, _ = await self._besides(sources, account, window, deadline)
            categories = by_kind([*found.recommendations, *besides])
        return SavingsOverview(sum(categories.values()), categories, found.source)

    async def savings(self, account: str, window: Window, utilization: float | None, deadline: Deadline) -> Savings:
        """Everything that could be saved.

        Raises:
            NoSource
        """
        sources = await self._accounts.of(account)
        if sources.kubecost is None and sources.thanos is None:
            raise NoSource
        sizing, (besides, assets_source) = await asyncio.gather(
            self._sizing(sources, account, window, deadline, utilization),
            self._besides(sources, account, window, deadline),
        )
        recommendations = sorted([*sizing.recommendations, *besides], key=lambda r: (-r.monthly_saving, r.name))
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

    async def _sizing(
        self, sources: AccountSources, account: str, window: Window, deadline: Deadline, utilization: float | None
    ) -> _Found:
        try:
            if sources.kubecost is not None:
                found = await self._of_kubecost(sources.kubecost, window, deadline)
                if found is not None:
                    return found
            if sources.thanos is not None:
                if window.seconds < MIN_WINDOW_SECONDS:
                    source = Source(name="savings", status="no_data", error="usage of at least 3 days is needed")
                    return _Found([], None, source)
                usages = await container_usages(sources.thanos, account, window, deadline)
                status = Source(name="savings", status="ok" if usages else "no_data")
                found_here = right_sizing(usages, window.seconds, utilization)
                return _Found([*found_here, *abandoned_workloads(usages, window.seconds)], None, status)
        except SourceError as failure:
            log.info("savings are not to be had: %s", failure)
            return _Found([], None, Source(name="savings", status="unavailable", error=str(failure)))
        return _Found([], None, Source(name="savings", status="not_configured"))

    async def _of_kubecost(self, kubecost: KubecostSource, window: Window, deadline: Deadline) -> _Found | None:
        """Kubecost's own; None where it has no savings API."""
        overview, sizing, abandoned, cluster = await asyncio.gather(
            kubecost.savings_body("", deadline),
            kubecost.savings_body("/requestSizingV2", deadline),
            kubecost.savings_body("/abandonedWorkloads", deadline),
            self._cluster_name(kubecost, window, deadline),
        )
        if overview is None and sizing is None:
            return None
        recommendations = decode_request_sizing(sizing, cluster) if sizing is not None else []
        if abandoned is not None:
            recommendations += decode_abandoned(abandoned, cluster)
        categories = decode_overview(overview, cluster) if overview is not None else None
        return _Found(recommendations, categories, Source(name="savings", status="ok"))

    async def _cluster_name(self, kubecost: KubecostSource, window: Window, deadline: Deadline) -> str:
        """The cluster's name as its own allocations say: savings are keyed by it, and the first key is anybody's."""
        day = Window.past(max(window.start, window.end - 86400), window.end)
        reading = await kubecost.allocation(day, ("cluster",), deadline)
        return next((a.cluster for a in reading.allocations() if a.cluster), "")

    async def _besides(
        self, sources: AccountSources, account: str, window: Window, deadline: Deadline
    ) -> tuple[list[Recommendation], Source | None]:
        """Volumes that nobody claims, and nodes that could go; metrics do not tell what runs on which node."""
        try:
            if sources.kubecost is not None:
                reading, allocation = await asyncio.gather(
                    sources.kubecost.assets(window, deadline),
                    sources.kubecost.allocation(window, ("namespace", "pod"), deadline),
                )
                requested = requested_by_node(tuple(allocation.allocations()), window)
                return [*unclaimed_volumes(reading.assets), *idle_nodes(reading.assets, requested)], reading.source
            if sources.thanos is not None:
                assets, source = await assets_by_metrics(sources.thanos, account, window, deadline)
                return unclaimed_volumes(assets), source
        except SourceError as failure:
            return [], Source(name="assets", status="unavailable", error=str(failure))
        return [], None


def requested_by_node(allocations: Sequence[Allocation], window: Window) -> dict[str, tuple[float, float]]:
    """Average cores and bytes requested on each node, over the window."""
    minutes = window.seconds / 60
    found: dict[str, tuple[float, float]] = {}
    for one in allocations:
        if one.node:
            cores, ram = found.get(one.node, (0.0, 0.0))
            found[one.node] = (cores + one.usage.cpu_request / minutes, ram + one.usage.ram_request / minutes)
    return found
