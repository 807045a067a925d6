"""``/metroculus/v2/kubecost_*``: statements, savings, assets, metrics; ``k8s_metadata``."""

from __future__ import annotations

import asyncio
import re
from typing import Literal, Self

import msgspec
from msgspec import Struct

from metroculus.codes import CODES, INVALID
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.statement import Question, Statement
from metroculus.metroculus_api.cache import AnswerCache, Answered, Key, Work
from metroculus.metroculus_api.controllers.costs import CostsController
from metroculus.metroculus_api.controllers.inventory import InventoryController
from metroculus.metroculus_api.controllers.savings import SavingsController
from metroculus.metroculus_api.errors import map_error
from metroculus.metroculus_api.handlers.v2.base import KeptHandler, MetroculusHandler, Needs
from metroculus.sources.source import LABEL_NAME, METRIC_NAME
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import FilterText, RowFilter, Step, Text, Uuid, WindowQuery, resolve_window
from tools.window import Window


class MetricName(Text):
    pattern = METRIC_NAME.pattern
    what = "the name of a cost metric: kubecost_, opencost_, node_, pv_, container_ or kube_"


class Aggregate(Text):
    """A property to group by."""

    pattern = structs.AGGREGATE_PATTERN
    what = f"one of {', '.join(structs.PROPERTIES)}, label:NAME or annotation:NAME"

    @classmethod
    def parse(cls, text: str) -> Self:
        parsed = super().parse(text)
        name = text.partition(":")[2]
        if name.startswith("__") or (name and not LABEL_NAME.fullmatch(re.sub(r"[-./]", "_", "_" + name))):
            raise ValueError(f"must be {cls.what}")
        return parsed


class Share(Text):
    """Above 0, at most 1."""

    pattern = r"0\.[0-9]{1,6}|1(\.0{1,6})?"
    what = "a number above 0 and at most 1"

    @classmethod
    def parse(cls, text: str) -> Self:
        parsed = super().parse(text)
        if float(parsed) == 0:
            raise ValueError(f"must be {cls.what}")
        return parsed


class ClusterCostsQuery(WindowQuery, frozen=True, kw_only=True):
    cloud_account_id: Uuid
    detail_level: Literal["summary", "namespace", "workload", "pod"] = "summary"
    aggregate: tuple[Aggregate, ...] = ()
    namespace: FilterText | None = None
    k8s_namespace: tuple[FilterText, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[FilterText, ...] = ()
    step: Literal["hour", "day", "week", "month"] | None = None
    idle: Literal["separate", "share", "hide"] = "separate"


class ClusterCosts(KeptHandler):
    """What one cluster cost in a window (USD)."""

    costs: CostsController

    @classmethod
    def question(cls, query: ClusterCostsQuery, now: float) -> tuple[Question, str | None]:
        asked = Question(
            cloud_account_id=query.cloud_account_id,
            window=resolve_window(query, now, CODES),
            detail=query.detail_level,
            aggregate=query.aggregate,
            filters=_filters(query),
            idle=query.idle,
        )
        return asked, query.step

    @operation(needs=Needs.CLUSTER_SECRET, query=ClusterCostsQuery, answer=structs.Statement)
    async def get(self, query: ClusterCostsQuery) -> Answered:
        return await self.kept(query, self.costs.statement)


ASKED_AT_ONCE = 32
"""Accounts of one question that are asked side by side."""


class AccountId(Uuid):
    """One of the accounts of an organization, which may have many."""

    most = structs.ACCOUNTS_AT_ONCE


class SummariesQuery(WindowQuery, frozen=True, kw_only=True):
    cloud_account_id: tuple[AccountId, ...]
    k8s_namespace: tuple[FilterText, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[FilterText, ...] = ()


class AccountSummary(Struct, frozen=True):
    """``structs.AccountStatement`` with a statement that is encoded already."""

    cloud_account_id: str
    statement: msgspec.Raw | None = None
    error: structs.Failure | None = None


class Summaries(Struct, frozen=True):
    accounts: tuple[AccountSummary, ...]


class ClusterSummaries(MetroculusHandler):
    """The statements of many clusters at once (USD): what is stored in one question, the rest side by side."""

    costs: CostsController
    cache: AnswerCache

    @operation(needs=Needs.CLUSTER_SECRET, query=SummariesQuery, answer=structs.Statements)
    async def get(self, query: SummariesQuery) -> Summaries:
        questions = _questions(query, self.window_of(query))
        deadline = self.deadline()
        kept = await asyncio.gather(*(self._has(*about) for about in questions.items()))
        lacking = {a: await self.cache.basis_of(a) for a, has in zip(questions, kept, strict=True) if not has}
        ahead = await self.costs.read_ahead(list(lacking), self.window_of(query), deadline)
        places = asyncio.Semaphore(ASKED_AT_ONCE)

        async def one(account: str) -> AccountSummary:
            async def ask(deadline: Deadline) -> Statement:
                # What was read of before a change is not what its answer rests on now.
                unchanged = account in lacking and await self.cache.basis_of(account) == lacking[account]
                return await self.costs.summary(questions[account], ahead if unchanged else None, deadline)

            def anew(later: float) -> tuple[Key, Work]:
                window = resolve_window(query, self.service.clock() + later, CODES)
                question = _questions(query, window)[account]
                return _kept_as(question), lambda deadline: self.costs.summary(question, None, deadline)

            try:
                async with places:
                    answered = await self.cache.answer(account, _kept_as(questions[account]), ask, deadline, anew)
            except Exception as problem:
                mapped = problem if isinstance(problem, ApiError) else map_error(problem)
                if mapped is None:
                    raise
                failure = structs.Failure(mapped.code.status, mapped.code.code, mapped.reason)
                return AccountSummary(account, error=failure)
            return AccountSummary(account, msgspec.Raw(answered.prepared.body))

        return Summaries(tuple(await asyncio.gather(*(one(account) for account in questions))))

    async def _has(self, account: str, question: Question) -> bool:
        return await self.cache.has(account, _kept_as(question))


def _questions(query: SummariesQuery, window: Window) -> dict[str, Question]:
    """What is asked of each account."""
    filters = Filters(query.k8s_namespace, query.k8s_node, query.k8s_service)
    return {
        account: Question(cloud_account_id=account, window=window, filters=filters)
        for account in query.cloud_account_id
    }


def _kept_as(question: Question) -> tuple[str, Question, None]:
    """What a statement without a step is kept under."""
    return ClusterCosts.__name__, question, None


def _filters(query: ClusterCostsQuery) -> Filters:
    """``namespace`` is the older name of a ``k8s_namespace`` that stands once.

    Raises:
        ApiError: both are given.
    """
    if query.namespace is not None and query.k8s_namespace:
        raise ApiError(INVALID, "give either namespace or k8s_namespace, not both", ["namespace", "k8s_namespace"])
    namespaces = query.k8s_namespace if query.namespace is None else (query.namespace,)
    return Filters(namespaces, query.k8s_node, query.k8s_service)


class SavingsQuery(WindowQuery, frozen=True, kw_only=True):
    cloud_account_id: Uuid
    target_utilization: Share | None = None


class ClusterSavings(KeptHandler):
    """What one cluster could save (USD a month)."""

    savings: SavingsController

    @classmethod
    def question(cls, query: SavingsQuery, now: float) -> tuple[str, Window, float | None]:
        utilization = float(query.target_utilization) if query.target_utilization else None
        return query.cloud_account_id, resolve_window(query, now, CODES), utilization

    @operation(needs=Needs.CLUSTER_SECRET, query=SavingsQuery, answer=structs.Savings)
    async def get(self, query: SavingsQuery) -> Answered:
        return await self.kept(query, self.savings.savings)


class AssetsQuery(WindowQuery, frozen=True, kw_only=True):
    cloud_account_id: Uuid
    asset_type: Literal["node", "disk", "load_balancer", "network", "cluster_management"] | None = None


class ClusterAssets(KeptHandler):
    """Nodes, disks, load balancers, network and management of one cluster, with what each cost (USD)."""

    inventory: InventoryController

    @classmethod
    def question(cls, query: AssetsQuery, now: float) -> tuple[str, Window, str | None]:
        return query.cloud_account_id, resolve_window(query, now, CODES), query.asset_type

    @operation(needs=Needs.CLUSTER_SECRET, query=AssetsQuery, answer=structs.Assets)
    async def get(self, query: AssetsQuery) -> Answered:
        return await self.kept(query, self.inventory.assets)


class MetricsQuery(WindowQuery, frozen=True, kw_only=True):
    cloud_account_id: Uuid
    metrics: tuple[MetricName, ...] = ()
    step: Step | None = None


class ClusterMetrics(KeptHandler):
    """The account's own series of cost metrics."""

    inventory: InventoryController

    @classmethod
    def question(cls, query: MetricsQuery, now: float) -> tuple[str, Window, tuple[str, ...], int | None]:
        step = query.step.seconds if query.step else None
        return query.cloud_account_id, resolve_window(query, now, CODES), query.metrics, step

    @operation(needs=Needs.CLUSTER_SECRET, query=MetricsQuery, answer=structs.Metrics)
    async def get(self, query: MetricsQuery) -> Answered:
        return await self.kept(query, self.inventory.metrics)


class MetadataQuery(Struct, frozen=True, kw_only=True):
    cloud_account_id: Uuid


class ClusterMetadata(KeptHandler):
    """Quotas of namespaces, requests and limits of workloads, specifications of nodes."""

    inventory: InventoryController

    @classmethod
    def question(cls, query: MetadataQuery, now: float) -> tuple[str]:
        return (query.cloud_account_id,)

    @operation(needs=Needs.CLUSTER_SECRET, query=MetadataQuery, answer=structs.Metadata)
    async def get(self, query: MetadataQuery) -> Answered:
        return await self.kept(query, self.inventory.metadata)
