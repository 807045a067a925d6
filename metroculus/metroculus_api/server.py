"""Metroculus' wiring: the one place where its parts are put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from tornado.web import Application

from metroculus.codes import CODES
from metroculus.config import MetroculusConfig
from metroculus.dependencies import Dependencies, make_dependencies
from metroculus.metroculus_api.cache import AnswerCache, CacheCollector
from metroculus.metroculus_api.controllers.alerts import AlertsController
from metroculus.metroculus_api.controllers.backfills import BackfillsController
from metroculus.metroculus_api.controllers.budgets import BudgetsController
from metroculus.metroculus_api.controllers.changes import ChangesController
from metroculus.metroculus_api.controllers.chargeback import ChargebackController
from metroculus.metroculus_api.controllers.costs import CostsController
from metroculus.metroculus_api.controllers.expense_rows import ExpenseRowsController
from metroculus.metroculus_api.controllers.expenses import ExpensesController
from metroculus.metroculus_api.controllers.inventory import InventoryController
from metroculus.metroculus_api.controllers.live import LiveController
from metroculus.metroculus_api.controllers.monthly import MonthlyController
from metroculus.metroculus_api.controllers.push import PushController
from metroculus.metroculus_api.controllers.savings import SavingsController
from metroculus.metroculus_api.controllers.sources import SourcesController
from metroculus.metroculus_api.controllers.summaries import SummariesController
from metroculus.metroculus_api.errors import map_error
from metroculus.metroculus_api.handlers.v2.costs import ClusterCosts
from metroculus.metroculus_api.secret import SecretKeeper
from metroculus.metroculus_api.shared_answers import SharedAnswers
from metroculus.metroculus_api.urls import routes
from metroculus.sources.accounts import Accounts
from metroculus.storage.store import Store
from metroculus.watch.budgets import BudgetReader
from metroculus.watch.months import Months
from tools.tornado_service.application import make_application
from tools.tornado_service.service import Service
from tools.tornado_service.uploads import UploadBudget
from tools.version import VERSION

PUSH_PATHS = "/metroculus/v2/push/"
MAX_PUSHED_BYTES = 64 << 20
"""Of one packed answer."""
PUSHED_AT_ONCE_BYTES = 256 << 20


@dataclass
class Metroculus:
    """A wired service; ``close`` gives back what it holds."""

    application: Application
    service: Service
    secret: SecretKeeper
    dependencies: Dependencies
    cache: AnswerCache
    shared: SharedAnswers | None = None

    def close(self) -> None:
        self.cache.close()
        if self.shared is not None:
            self.shared.close()
        self.dependencies.close()


def make_app(
    config: MetroculusConfig,
    clock: Callable[[], float] = time.time,
    dependencies: Dependencies | None = None,
    worked: bool = False,
) -> Metroculus:
    """Put the service together.

    Args:
        dependencies: shared with a worker in the same process; made here otherwise.
        worked: whether a worker takes up back-fills that are asked for here.

    Raises:
        RegistryError, StoreError: where its files cannot be used.
    """
    secret = SecretKeeper(config.cluster_secret)
    dependencies = dependencies or make_dependencies(config, clock)
    store, accounts = dependencies.store, dependencies.accounts
    savings = SavingsController(accounts, store)
    service = Service(
        "metroculus",
        VERSION,
        CODES,
        lambda: _states(secret, dependencies, shared),
        map_error,
        clock,
        security={"secret": {"type": "apiKey", "in": "header", "name": "Secret"}},
        audit=config.access.audit("metroculus", clock),
        proxies=config.access.proxies,
    )

    shared = SharedAnswers(config.redis_url, config.cache_ttl, _scope(config)) if config.redis_url else None
    cache = AnswerCache(_Basis(accounts, store), config.cache_ttl, config.kubecost_timeout, config.cache_bytes, shared)
    CacheCollector(cache, service.registry)
    costs = CostsController(accounts, savings, store)
    controllers: dict[str, Any] = {
        "costs": costs,
        "summaries": SummariesController(accounts, costs, cache, ClusterCosts.key_of_statement),
        "savings": savings,
        "inventory": InventoryController(accounts, store, clock),
        "sources": SourcesController(accounts, config.upstream_allow),
        "expenses": ExpensesController(accounts, store),
        "rows": ExpenseRowsController(accounts, store),
        "monthly": MonthlyController(accounts, store, clock),
        "push": PushController(accounts, store, clock),
        "changes": ChangesController(accounts, store),
        "live": LiveController(accounts, store, clock),
        "backfills": BackfillsController(accounts, store, worked, clock),
        "cache": cache,
        **_of_organizations(accounts, store, clock),
    }
    parts = {
        "secret": secret,
        "slowdown": config.access.slowdown(),
        "deadline_seconds": config.kubecost_timeout,
    }
    controllers["budget"] = UploadBudget(PUSHED_AT_ONCE_BYTES, MAX_PUSHED_BYTES)
    application = make_application(service, routes(parts, controllers), {PUSH_PATHS: MAX_PUSHED_BYTES})
    return Metroculus(application, service, secret, dependencies, cache, shared)


def _of_organizations(accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> dict[str, Any]:
    """The controllers of what organizations decide and are told."""
    months = Months(accounts, store, clock) if store is not None else None
    budgets = BudgetReader(accounts, store, months, clock) if store is not None and months is not None else None
    return {
        "chargeback": ChargebackController(store, months, clock),
        "budgets": BudgetsController(accounts, store, months, budgets),
        "alerts": AlertsController(store, clock),
    }


def _scope(config: MetroculusConfig) -> Hashable:
    """The settings that answers depend on: instances that differ in one of them share none."""
    return (
        config.kubecost_api_url,
        config.kubecost_account_id,
        config.kubecost_flavour,
        config.thanos_query_url,
        config.tenant_label,
        config.replica_labels,
        config.clickhouse_url,
        config.registry_url,
        config.cache_ttl,
    )


@dataclass(frozen=True)
class _Basis:
    """What an account's answers rest on: its source's revision, and what is stored of it."""

    accounts: Accounts
    store: Store | None

    async def of(self, account: str) -> tuple[Hashable, tuple[int, ...]]:
        return await self.accounts.revision(account), self._stored(account)

    def remembered(self, account: str) -> tuple[Hashable, tuple[int, ...]] | None:
        revision = self.accounts.remembered_revision(account)
        return None if revision is None else (revision[0], self._stored(account))

    def _stored(self, account: str) -> tuple[int, ...]:
        return self.store.version(account) if self.store is not None else ()


def _states(secret: SecretKeeper, dependencies: Dependencies, shared: SharedAnswers | None) -> dict[str, str]:
    """What ``/readyz`` says of each thing that the service stands on, as it last saw it."""
    store = dependencies.store
    return {
        "secret": "ok" if secret.known else "down",
        "registry": "ok" if dependencies.registry.failure is None else "failing",
        "upstreams": "failing" if "open" in dependencies.http.seen().values() else "ok",
        "store": "not kept" if store is None else "ok" if store.failed is None else "failing",
    } | ({} if shared is None else {"shared answers": shared.state})
