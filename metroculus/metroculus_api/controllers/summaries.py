"""The statements of many accounts at once: what is stored is read for all of them, the rest is asked side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from msgspec import Struct

from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.statement import Question, Statement
from metroculus.metroculus_api.cache import AnswerCache, Key, Work
from metroculus.metroculus_api.controllers.costs import CostsController
from metroculus.metroculus_api.errors import failure_of
from metroculus.sources.accounts import Accounts
from metroculus.storage.coverage import in_groups
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import Window

ASKED_AT_ONCE = 100
"""Accounts of one request that are asked side by side."""


class AccountSummary(Struct, frozen=True):
    """``structs.AccountStatement`` with a statement that is encoded already."""

    cloud_account_id: str
    statement: msgspec.Raw | None = None
    error: structs.Failure | None = None


class Summaries(Struct, frozen=True):
    accounts: tuple[AccountSummary, ...]


class SummariesController:
    """Reads ahead what is stored of many accounts; each statement is kept as if it had been asked for alone.

    Args:
        kept_as: the key under which a statement that is asked for alone is kept.
    """

    def __init__(
        self, accounts: Accounts, costs: CostsController, cache: AnswerCache, kept_as: Callable[[Question], Key]
    ) -> None:
        self._accounts = accounts
        self._costs = costs
        self._cache = cache
        self._kept_as = kept_as

    async def summaries(
        self, accounts: Sequence[str], window: Callable[[float], Window], filters: Filters, deadline: Deadline
    ) -> Summaries:
        """The statement of each account, or why there is none.

        Args:
            window: the window as it stands so many seconds from now.
        """
        asked = window(0.0)
        told: list[AccountSummary] = []
        for group in in_groups(accounts, asked.end - asked.start):
            told += await self._group(group, window, asked, filters, deadline)
        return Summaries(tuple(told))

    async def _group(
        self,
        accounts: Sequence[str],
        window: Callable[[float], Window],
        asked_window: Window,
        filters: Filters,
        deadline: Deadline,
    ) -> list[AccountSummary]:
        """``summaries`` of so few accounts that all their hours may be held at once."""

        def question(account: str, window: Window) -> Question:
            return Question(cloud_account_id=account, window=window, filters=filters)

        await self._accounts.look_up(accounts)
        questions = {account: question(account, asked_window) for account in accounts}
        found = await asyncio.gather(*(self._cache.basis_of(account) for account in accounts))
        bases = dict(zip(accounts, found, strict=True))
        lacking = [one for one in accounts if not self._cache.has(one, bases[one], self._kept_as(questions[one]))]
        ahead = await self._costs.read_ahead(lacking, asked_window, deadline)
        read, places = frozenset(lacking), asyncio.Semaphore(ASKED_AT_ONCE)

        async def one(account: str) -> AccountSummary:
            async def ask(deadline: Deadline) -> Statement:
                # An answer is kept for what the account rests on now: what was read before a change is no part of it.
                unchanged = account in read and await self._cache.basis_of(account) == bases[account]
                return await self._costs.summary(questions[account], ahead if unchanged else None, deadline)

            def anew(later: float) -> tuple[Key, Work]:
                asked = question(account, window(later))
                return self._kept_as(asked), lambda deadline: self._costs.summary(asked, None, deadline)

            try:
                async with places:
                    key = self._kept_as(questions[account])
                    answered = await self._cache.answer(account, key, ask, deadline, anew, packs=False)
            except Exception as problem:
                failure = failure_of(problem)
                if failure is None:
                    raise
                return AccountSummary(account, error=failure)
            return AccountSummary(account, msgspec.Raw(answered.prepared.body))

        return list(await asyncio.gather(*(one(account) for account in accounts)))
