"""Budgets of an organization: kept as documents, and held against what is stored."""

from __future__ import annotations

import asyncio
import logging
from uuid import uuid4

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from metroculus.codes import INVALID, NAME_TAKEN, NO_BUDGET
from metroculus.cost_model.budgets import Budget, BudgetError, Scope, Threshold, check_budget, same_name
from metroculus.metroculus_api.controllers.change_locks import ChangeLocks, require_version
from metroculus.metroculus_api.errors import failure_of, history_of
from metroculus.sources.accounts import Accounts
from metroculus.sources.source import UpstreamBudgets
from metroculus.storage.store import Store
from metroculus.watch.budgets import BudgetReader, StoredBudget
from metroculus.watch.months import Months
from metroculus.wire import wire, wired
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.zones import UTC_ZONE

log = logging.getLogger("budgets")

MAX_BUDGETS = 500
UPSTREAM_SECONDS = 5.0
"""That a list waits for what Kubecost keeps itself."""


_Beside = tuple[str, tuple[structs.UpstreamBudget, ...], tuple[structs.UpstreamForecast, ...], structs.Failure | None]
"""An account, the budgets and forecasts of its Kubecost, and why it could not be asked."""


class BudgetsController:
    def __init__(
        self, accounts: Accounts, store: Store | None, months: Months | None, reader: BudgetReader | None
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._months = months
        self._reader = reader
        self._locks = ChangeLocks()
        """Held while budgets of an organization change."""

    async def budgets(self, organization: str, upstream: bool, deadline: Deadline) -> structs.Budgets:
        """Every budget in its running period.

        Args:
            upstream: whether its clusters' Kubecost are asked for their own.

        Raises:
            NoHistory, RegistryError, StoreError
        """
        reader = history_of(self._reader)
        kept = await reader.kept(organization, deadline)
        states, beside = await asyncio.gather(
            reader.states(organization, kept, deadline), self._upstream(organization, upstream, deadline)
        )
        return structs.Budgets(
            organization_id=organization,
            budgets=states,
            kubecost_budgets=tuple(one for _, budgets, _, _ in beside for one in budgets),
            kubecost_forecasts=tuple(one for _, _, forecasts, _ in beside for one in forecasts),
            failures={account: failure for account, _, _, failure in beside if failure is not None},
        )

    async def budget(self, organization: str, budget: str, deadline: Deadline) -> structs.BudgetState:
        """One budget in its running period.

        Raises:
            ApiError: 404.
            NoHistory, RegistryError, StoreError
        """
        found = await self._of(organization, budget, deadline)
        return (await history_of(self._reader).states(organization, [found], deadline))[0]

    async def create(self, organization: str, budget: Budget, deadline: Deadline) -> structs.BudgetState:
        """A new budget.

        Raises:
            ApiError: 400; 409 where its name is taken.
            NoHistory, RegistryError, StoreError
        """
        async with self._locks.hold(organization, deadline):
            return await self._put(organization, StoredBudget(str(uuid4()), budget), deadline)

    async def change(
        self, organization: str, budget: str, change: structs.BudgetChange, version: str | None, deadline: Deadline
    ) -> structs.BudgetState:
        """A budget with some of it other than it was.

        Args:
            version: of the budget that the change was made from; None to change it as it is.

        Raises:
            ApiError: 400, 404; 409 where its new name is taken, or the version is another.
            NoHistory, RegistryError, StoreError
        """
        async with self._locks.hold(organization, deadline):
            found = await self._of(organization, budget, deadline)
            changed = replace(found.budget, **_changes(change))
            if changed != found.budget:  # a request that is repeated finds its own change
                require_version(version, found.budget, "this budget")
                return await self._put(organization, replace(found, budget=changed), deadline, found.budget.scope)
        return (await history_of(self._reader).states(organization, [found], deadline))[0]

    async def delete(self, organization: str, budget: str, deadline: Deadline) -> structs.BudgetState:
        """Remove a budget.

        Returns:
            as it was last.

        Raises:
            ApiError: 404.
            NoHistory, RegistryError, StoreError
        """
        store = history_of(self._store)
        async with self._locks.hold(organization, deadline):
            found = await self._of(organization, budget, deadline)
            last = await history_of(self._reader).states(organization, [found], deadline)
            put = store.documents.put
            await store.ask(deadline.left(), put, organization, "budget", budget, "", after=found.sequence)
        return last[0]

    async def _of(self, organization: str, budget: str, deadline: Deadline) -> StoredBudget:
        kept = await history_of(self._reader).kept(organization, deadline)
        found = next((one for one in kept if one.id == budget), None)
        if found is None:
            raise ApiError(NO_BUDGET)
        return found

    async def _put(
        self, organization: str, stored: StoredBudget, deadline: Deadline, before: Scope | None = None
    ) -> structs.BudgetState:
        """Write a budget.

        Args:
            before: its scope until now: a cluster or cost center that is gone since may stay in it.

        Raises:
            ApiError, DocumentChanged, NoHistory, RegistryError, StoreError
        """
        store, reader = history_of(self._store), history_of(self._reader)
        known = await history_of(self._months).decisions(organization, deadline)
        others = [one for one in await reader.kept(organization, deadline) if one.id != stored.id]
        centers = [center.name for rules in known.versions[-1:] for center in rules.cost_centers]
        clusters = {*known.accounts}
        if before is not None:
            centers += [before.cost_center] if before.cost_center else []
            clusters |= {before.cluster_id} if before.cluster_id else set()
        try:
            check_budget(stored.budget, frozenset(clusters), centers)
        except BudgetError as problem:
            raise ApiError(INVALID, str(problem), ["body"]) from None
        if any(same_name(one.budget.name, stored.budget.name) for one in others):
            raise ApiError(NAME_TAKEN, f"there is a budget {stored.budget.name!r} already", ["name"])
        if len(others) >= MAX_BUDGETS:
            raise ApiError(INVALID, f"an organization has at most {MAX_BUDGETS} budgets", ["body"])
        body = msgspec.json.encode(stored.budget).decode()
        put = store.documents.put
        await store.ask(deadline.left(), put, organization, "budget", stored.id, body, after=stored.sequence)
        return (await reader.states(organization, [stored], deadline))[0]

    async def _upstream(self, organization: str, asked: bool, deadline: Deadline) -> list[_Beside]:
        """What the Kubecost of each cluster keeps itself, or why it could not be asked."""
        if not asked:
            return []
        accounts = (await history_of(self._months).decisions(organization, deadline)).accounts
        seconds = min(UPSTREAM_SECONDS, deadline.left())

        async def one(account: str) -> _Beside:
            try:
                sources = await self._accounts.of(account)
                found = await sources.budgets(Deadline(seconds))
                if not found.budgets and found.forecast is None:
                    return account, (), (), None
                currency = await sources.currency(Deadline(seconds))
            except Exception as problem:
                failure = failure_of(problem)
                if failure is None:
                    raise
                log.info("the budgets of account %s's Kubecost are not to be had: %s", account, problem)
                return account, (), (), failure
            return account, *_told(account, currency, found), None

        await self._accounts.look_up(accounts)
        return await asyncio.gather(*map(one, accounts))


def _changes(change: structs.BudgetChange) -> dict[str, object]:
    named = {name: getattr(change, name) for name in change.__struct_fields__}
    given = {name: value for name, value in named.items() if value is not UNSET}
    if "scope" in given:
        given["scope"] = wire(given["scope"], Scope)
    if "thresholds" in given:
        given["thresholds"] = wired(given["thresholds"], Threshold)
    return given


def _told(
    account: str, currency: str, found: UpstreamBudgets
) -> tuple[tuple[structs.UpstreamBudget, ...], tuple[structs.UpstreamForecast, ...]]:
    def state(spent: float | None, amount: float | None) -> str:
        return "unknown" if spent is None or amount is None else "exceeded" if spent > amount else "ok"

    budgets = tuple(
        structs.UpstreamBudget(
            cloud_account_id=account,
            id=one.id,
            name=one.name,
            scope=one.scope,
            period=one.period,
            amount=one.amount,
            currency=currency,
            source="kubecost",
            start=UTC_ZONE.iso(one.start) if one.start is not None else None,
            end=UTC_ZONE.iso(one.end) if one.end is not None else None,
            state=state(one.spent, one.amount),
            spent=one.spent,
            percent=100 * one.spent / one.amount if one.spent is not None and one.amount else None,
        )
        for one in found.budgets
    )
    if found.forecast is None:
        return budgets, ()
    forecast = structs.UpstreamForecast(
        cloud_account_id=account,
        currency=currency,
        start=UTC_ZONE.iso(found.forecast.start),
        end=UTC_ZONE.iso(found.forecast.end),
        expected=found.forecast.expected,
        low=found.forecast.low,
        high=found.forecast.high,
    )
    return budgets, (forecast,)
