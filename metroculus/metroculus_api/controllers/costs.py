"""Asks the sources of an account, side by side, and lets the cost model decide."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, as_prometheus_spells
from metroculus.cost_model.prices import CustomPrices, unpriced, with_prices
from metroculus.cost_model.series import StepName
from metroculus.cost_model.statement import (
    AllocationReading,
    ManagementReading,
    Question,
    Source,
    Statement,
    StoredReading,
    reconcile,
)
from metroculus.metroculus_api.controllers.savings import SavingsController
from metroculus.metroculus_api.controllers.series import SeriesController
from metroculus.metroculus_api.controllers.stored import StoredHours
from metroculus.metroculus_api.errors import NoSource
from metroculus.sources.accounts import Accounts, AccountSources
from metroculus.sources.errors import SourceError
from metroculus.sources.kubecost.client import AssetsReading, KubecostSource, worst
from metroculus.sources.thanos.costs import allocation_by_metrics, management_by_metrics
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.window import Window

log = logging.getLogger("costs")

R = TypeVar("R")

LARGE_ROWS = 5_000
"""Above this many allocations a statement is worked out on a thread, so that the loop goes on."""

NO_THANOS = Source(name="thanos", status="not_configured")


def upstream_aggregate(question: Question) -> tuple[str, ...]:
    """The coarsest grouping that answers the question; we group and filter further ourselves."""
    finer = [name for name in question.aggregate if name.startswith(("label:", "annotation:")) or name == "container"]
    by_pod = question.detail != "summary" or question.aggregate or question.filters.nodes or question.filters.services
    return ("namespace", "pod", *finer) if by_pod else ("namespace",)


class CostController:
    """Statements of cost."""

    def __init__(self, accounts: Accounts, savings: SavingsController, store: Store | None) -> None:
        self._accounts = accounts
        self._savings = savings
        self._store = store
        self._stored = StoredHours(store) if store is not None else None

    async def statement(self, question: Question, step: StepName | None, deadline: Deadline) -> Statement:
        """One reconciled statement, with its points where a step is given.

        Raises:
            NoSource: nothing is configured that could answer.
            SourceError: every cost source failed.
            ApiError: too many points.
        """
        if step is None:
            return await self._statement(question, deadline)

        def of_step(asked: Question) -> Awaitable[Statement]:
            return self._statement(asked, deadline)

        points = await SeriesController(self._store, of_step, deadline).points(question, step)
        return replace(await self._statement(question, deadline), data_points=points)

    async def _statement(self, question: Question, deadline: Deadline) -> Statement:
        sources = await self._accounts.of(question.cloud_account_id)
        stored, store = await self._stored.read(question, deadline) if self._stored is not None else (None, None)
        if sources.kubecost is None and sources.thanos is None and stored is None:
            raise NoSource
        gathering = _Gathering(sources, question, stored.rest if stored else question.window, deadline)
        if question.detail == "summary":
            statement = await _reconciled(question, *(await gathering.cost()), stored)
        else:
            readings, savings = await asyncio.gather(
                gathering.cost(), self._savings.overview(sources, question.cloud_account_id, question.window, deadline)
            )
            statement = await _reconciled(question, *readings, stored)
            statement = replace(
                statement,
                potential_savings=savings.potential_savings,
                savings_recommendations=savings.by_category,
                sources=(*statement.sources, savings.source),
            )
        if stored is None:
            gathering.raise_if_nobody_answered()
        if store is not None:
            statement = replace(statement, sources=(store, *statement.sources), complete=False)
        return statement


class _Gathering:
    """One question to the live sources of one account about a window, and which of them failed."""

    def __init__(self, sources: AccountSources, question: Question, window: Window, deadline: Deadline) -> None:
        self.sources = sources
        self.question = question
        self.window = window
        self.deadline = deadline
        self.failures: list[SourceError] = []
        self.answered = False

    async def cost(self) -> tuple[AllocationReading | None, AllocationReading | None, Sequence[ManagementReading]]:
        """What was said of allocation, by Thanos where that was needed, and of management in order of authority."""
        thanos, account, window = self.sources.thanos, self.question.cloud_account_id, self.window
        if not window.stretches:
            return None, None, []
        allocation, management = None, []
        if self.sources.kubecost is not None:
            allocation, assets = await self._kubecost(self.sources.kubecost)
            management = [assets] if assets is not None else []
        if thanos is None:
            if allocation is None or not allocation.usable or not any(r.usd is not None for r in management):
                management.append(ManagementReading(source=NO_THANOS, covers=False))
            return allocation, None, management
        asked_allocation = asked_management = None
        if allocation is None or not allocation.usable:
            asked_allocation = self._answer(
                allocation_by_metrics(thanos, account, window, self.deadline, self._labels())
            )
        if not any(reading.usd is not None for reading in management):
            asked_management = self._answer(management_by_metrics(thanos, account, window, self.deadline))
        metrics, reading = await asyncio.gather(asked_allocation or _none(), asked_management or _none())
        if isinstance(metrics, SourceError):
            metrics = AllocationReading(source=_failed("thanos", metrics))
        if isinstance(reading, SourceError):
            reading = ManagementReading(source=_failed("thanos", reading))
        return allocation, metrics, management + ([reading] if reading is not None else [])

    async def _kubecost(self, kubecost: KubecostSource) -> tuple[AllocationReading, ManagementReading | None]:
        """Allocation and assets; OpenCost's assets only where idle must be worked out from them."""
        window = self.window

        async def ask_allocation() -> AllocationReading | SourceError:
            aggregate = upstream_aggregate(self.question)
            return await self._answer(kubecost.allocation(window, aggregate, self.deadline))

        async def ask_assets() -> AssetsReading | SourceError:
            return await self._answer(kubecost.assets(window, self.deadline))

        prices = self.sources.custom_prices
        assets: AssetsReading | SourceError | None = None
        if kubecost.flavour == "opencost":
            allocation = await ask_allocation()
            if isinstance(allocation, AllocationReading) and _needs_nodes(allocation, prices):
                assets = await ask_assets()
        else:
            allocation, assets = await asyncio.gather(ask_allocation(), ask_assets())
        if isinstance(allocation, SourceError):
            allocation = AllocationReading(source=_failed("allocation", allocation))
        if prices is not None and allocation.usable:
            hours = assets.node_hours() if isinstance(assets, AssetsReading) else None
            allocation = with_prices(allocation, hours, prices)
        if isinstance(assets, SourceError):
            covers = kubecost.flavour != "opencost"
            return allocation, ManagementReading(source=_failed("assets", assets), covers=covers)
        return allocation, assets.management() if assets is not None else None

    def _labels(self) -> tuple[str, ...]:
        """The pod labels that the question groups by, as metrics spell them."""
        asked = (name.partition(":")[2] for name in self.question.aggregate if name.startswith("label:"))
        return tuple("label_" + as_prometheus_spells(name) for name in asked)

    async def _answer(self, asked: Coroutine[Any, Any, R]) -> R | SourceError:
        """What a source said, or why it could not."""
        try:
            answer = await asked
        except SourceError as failure:
            log.info("a source failed request_id=%s: %s", self.deadline.request_id, failure)
            self.failures.append(failure)
            return failure
        self.answered = True
        return answer

    def raise_if_nobody_answered(self) -> None:
        if self.failures and not self.answered:
            raise worst(self.failures)


async def _reconciled(
    question: Question,
    allocation: AllocationReading | None,
    metrics: AllocationReading | None,
    management: Sequence[ManagementReading],
    stored: StoredReading | None,
) -> Statement:
    readings = (allocation, metrics, stored.allocation if stored else None)
    rows = sum(len(one.allocations) for reading in readings if reading for one in reading.sets)
    if rows > LARGE_ROWS:
        return await asyncio.to_thread(reconcile, question, allocation, metrics, management, stored)
    return reconcile(question, allocation, metrics, management, stored)


def _tells_idle(reading: AllocationReading) -> bool:
    return any(allocation.special == IDLE for allocation in reading.allocations())


def _needs_nodes(reading: AllocationReading, prices: CustomPrices | None) -> bool:
    """Whether idle must be worked out from what the nodes were."""
    own_prices = prices is not None and bool(unpriced(reading, prices))
    return reading.usable and (own_prices or not _tells_idle(reading))


def _failed(name: str, failure: SourceError) -> Source:
    return Source(name=name, status="unavailable", error=str(failure))


async def _none() -> None:
    return None
