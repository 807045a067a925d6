"""Asks the store and the live sources of an account, and lets the cost model decide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from msgspec.structs import replace

from metroculus.cost_model.reading import LARGE_ROWS, StoredReading
from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.statement import Question, Statement
from metroculus.metroculus_api.controllers.savings import SavingsController
from metroculus.metroculus_api.controllers.series import SeriesController
from metroculus.metroculus_api.controllers.stored import StoredHours
from metroculus.metroculus_api.errors import cannot_group_by
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import DEFAULT_CURRENCY, AccountSources, LiveReadings
from metroculus.sources.errors import NoSource
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.zones import Period


class CostsController:
    """Statements of cost."""

    def __init__(self, accounts: Accounts, savings: SavingsController, store: Store | None) -> None:
        self._accounts = accounts
        self._savings = savings
        self._store = store
        self._stored = StoredHours(store) if store is not None else None

    async def statement(self, question: Question, step: Period | None, deadline: Deadline) -> Statement:
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

        sources = await self._accounts.of(question.cloud_account_id)
        statement = await self._statement(question, deadline)
        own = replace(await of_account(question, sources, deadline), currency=statement.currency)
        points = await SeriesController(self._store, of_step, deadline).points(own, step)
        return replace(statement, data_points=points)

    async def _statement(self, question: Question, deadline: Deadline) -> Statement:
        sources = await self._accounts.of(question.cloud_account_id)
        unsupported = sources.unsupported(question.aggregate)
        if unsupported:
            raise cannot_group_by(unsupported, "aggregate")
        question = await of_account(question, sources, deadline)
        stored, store = None, None
        if self._stored is not None:
            unable_sources = sources.sources_without(question.aggregate)
            stored, store, currency = await self._stored.read(question, unable_sources, deadline)
            question = replace(question, currency=currency)
        question = replace(question, currency=question.currency or DEFAULT_CURRENCY)
        if not sources.any and stored is None:
            raise NoSource
        window = stored.rest if stored else question.window
        if question.detail == "summary":
            live, savings = await sources.cost(question, window, deadline) if sources.any else LiveReadings(), None
        else:
            live, savings = await asyncio.gather(
                sources.cost(question, window, deadline) if sources.any else _nothing(),
                self._savings.overview(sources, question.window, deadline),
            )
        statement = await _reconciled(question, live, stored)
        if savings is not None:
            statement = replace(
                statement,
                potential_savings=savings.potential_savings,
                savings_recommendations=savings.by_category,
                sources=(*statement.sources, savings.source),
            )
        if stored is None:
            live.raise_if_nobody_answered()
        if store is not None:
            statement = replace(statement, sources=(store, *statement.sources), complete=False)
        return statement


async def of_account(question: Question, sources: AccountSources, deadline: Deadline) -> Question:
    """The question with what is the account's own: its cluster, and the currency of its money."""
    named = sources.clusters.named
    return replace(
        question,
        filters=replace(question.filters, clusters=named),
        clusters_apart=sources.clusters.all,
        currency=await sources.known_currency(deadline) or "",
    )


async def _reconciled(question: Question, live: LiveReadings, stored: StoredReading | None) -> Statement:
    stretch = live.stretch.allocation if live.stretch else None
    readings = (live.allocation, live.metrics, stretch, stored.allocation if stored else None)
    rows = sum(len(one.allocations) for reading in readings if reading for one in reading.sets)
    given = (question, live.allocation, live.metrics, live.management, stored, live.stretch)
    return await asyncio.to_thread(reconcile, *given) if rows > LARGE_ROWS else reconcile(*given)


async def _nothing() -> LiveReadings:
    return LiveReadings()
