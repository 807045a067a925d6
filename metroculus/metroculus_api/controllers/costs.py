"""Asks the store and the live sources of an account, and lets the cost model decide."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from msgspec.structs import replace

from metroculus.cost_model.reading import LARGE_ROWS, StoredReading
from metroculus.cost_model.reconcile import reconcile
from metroculus.cost_model.statement import Question, Statement
from metroculus.metroculus_api.controllers.savings import SavingsController, SavingsOverview
from metroculus.metroculus_api.controllers.series import SeriesController
from metroculus.metroculus_api.controllers.stored import ReadAhead, StoredHours
from metroculus.metroculus_api.errors import cannot_group_by
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import DEFAULT_CURRENCY, AccountSources, LiveReadings
from metroculus.sources.errors import NoSource
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.window import Window
from tools.zones import Period

SAVINGS_SHARE = 0.5
"""Share of the remaining time that a statement waits for savings."""


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

        account, ahead = question.cloud_account_id, None
        sources = await self._accounts.of(account)
        if self._stored is not None:  # the hours are read once, for the statement and for its points
            ahead = await self._stored.read_ahead([account], question.window, deadline, sums=False)
        statement = await self._statement(question, deadline, ahead)
        own = replace(of_account(question, sources), currency=statement.currency)
        rows = statement.breakdown_by_aggregate or ()
        told = question.groups and not own.clusters_apart  # else a row's name is a cluster's, too
        names = frozenset(row.name for row in rows[: question.groups]) if told else None
        unable_sources = sources.sources_without(question.properties)
        committed = ahead.committed.get(account) if ahead is not None else None
        series = SeriesController(self._store, of_step, deadline, unable_sources, committed)
        points = await series.points(own, step, names)
        return replace(statement, data_points=points)

    async def _savings_of(
        self, question: Question, sources: AccountSources, stored: bool, deadline: Deadline
    ) -> SavingsOverview | None:
        """What could be saved; where all of the window is stored, as it is stored, and no upstream is asked."""
        if question.detail == "summary":
            return None
        if stored:
            about = (question.cloud_account_id, sources, question.window, question.currency)
            return await self._savings.stored_overview(*about, deadline)
        return await self._savings.overview(sources, question.window, deadline.part(SAVINGS_SHARE))

    async def read_ahead(self, accounts: Sequence[str], window: Window, deadline: Deadline) -> ReadAhead | None:
        """What is stored of many accounts, for ``summary`` of each; None where no history is kept."""
        if self._stored is None or not accounts:
            return None
        return await self._stored.read_ahead(accounts, window, deadline)

    async def summary(self, question: Question, ahead: ReadAhead | None, deadline: Deadline) -> Statement:
        """``statement`` of an account that was read ahead.

        Raises:
            NoSource, SourceError, ApiError
        """
        return await self._statement(question, deadline, ahead)

    async def _statement(self, question: Question, deadline: Deadline, ahead: ReadAhead | None = None) -> Statement:
        sources = await self._accounts.of(question.cloud_account_id)
        unsupported = sources.unsupported(question.properties)
        if unsupported:
            raise cannot_group_by(unsupported, "aggregate" if set(unsupported) & set(question.aggregate) else "filter")
        question = of_account(question, sources)
        stored, store = None, None
        if self._stored is not None:
            unable_sources = sources.sources_without(question.properties)

            async def live_currency() -> str:
                return await sources.known_currency(deadline) or ""

            about = (question, unable_sources, live_currency, deadline, ahead)
            stored, store, currency = await self._stored.read(*about)
            question = replace(question, currency=currency)
        if stored is None:
            question = replace(question, currency=await sources.known_currency(deadline) or "")
        question = replace(question, currency=question.currency or DEFAULT_CURRENCY)
        if not sources.any and stored is None:
            raise NoSource
        window = stored.rest if stored else question.window
        asked = partial(sources.cost, question, window, deadline) if sources.any else _nothing
        # Savings first: the store looks for them while the rows are reconciled.
        savings, (live, statement) = await asyncio.gather(
            self._savings_of(question, sources, stored is not None and not window.stretches, deadline),
            _reconciled(question, asked, stored),
        )
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


def of_account(question: Question, sources: AccountSources) -> Question:
    """The question about the account's own cluster."""
    filters = replace(question.filters, clusters=sources.clusters.named)
    return replace(question, filters=filters, clusters_apart=sources.clusters.all)


async def _reconciled(
    question: Question, ask: Callable[[], Awaitable[LiveReadings]], stored: StoredReading | None
) -> tuple[LiveReadings, Statement]:
    """What the live sources say, and the statement of it and of what is stored."""
    live = await ask()
    stretch = live.stretch.allocation if live.stretch else None
    readings = (live.allocation, live.metrics, stretch, stored.allocation if stored else None)
    rows = sum(len(one.allocations) for reading in readings if reading for one in reading.sets)
    given = (question, live.allocation, live.metrics, live.management, stored, live.stretch)
    return live, await asyncio.to_thread(reconcile, *given) if rows > LARGE_ROWS else reconcile(*given)


async def _nothing() -> LiveReadings:
    return LiveReadings()
