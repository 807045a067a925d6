"""``/metroculus/v2/kubecost_*``: statements, savings, assets, metrics; ``k8s_metadata``."""

from __future__ import annotations

from typing import Literal, Self

from msgspec import Struct

from metroculus.codes import CODES, INVALID
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.statement import Question
from metroculus.metroculus_api.cache import Answered, Key
from metroculus.metroculus_api.controllers.costs import CostsController
from metroculus.metroculus_api.controllers.inventory import InventoryController
from metroculus.metroculus_api.controllers.savings import SavingsController
from metroculus.metroculus_api.controllers.summaries import Summaries, SummariesController
from metroculus.metroculus_api.handlers.v2.base import AccountsQuery, KeptHandler, MetroculusHandler, Needs
from metroculus.metroculus_api.handlers.v2.properties import Aggregate, PropertyFilter, filters_of
from metroculus.sources.source import METRIC_NAME
from optscale_client.metroculus_client import structs
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import FilterText, Groups, RowFilter, Step, Text, Uuid, WindowQuery, resolve_window
from tools.window import Window


class MetricName(Text):
    pattern = METRIC_NAME.pattern
    what = "the name of a cost metric: kubecost_, opencost_, node_, pv_, container_ or kube_"


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
    filter: tuple[PropertyFilter, ...] = ()
    step: Literal["hour", "day", "week", "month"] | None = None
    groups: Groups | None = None
    idle: Literal["separate", "share", "hide"] = "separate"


class ClusterCosts(KeptHandler):
    """What one cluster cost in a window (USD)."""

    costs: CostsController

    @classmethod
    def question(cls, query: ClusterCostsQuery, now: float) -> tuple[Question, str | None]:
        filters = _filters(query)
        if query.step is not None and query.idle == "share" and (filters.any or query.groups is not None):
            reason = "steps do not distribute idle cost: with a filter or groups, give step or idle=share, not both"
            raise ApiError(INVALID, reason, ["idle", "step"])
        if query.groups is not None and (query.step is None or len(query.aggregate) != 1):
            raise ApiError(INVALID, "groups are of steps by one property: give step, and one aggregate", ["groups"])
        asked = Question(
            cloud_account_id=query.cloud_account_id,
            window=resolve_window(query, now, CODES),
            detail=query.detail_level,
            aggregate=query.aggregate,
            filters=filters,
            groups=int(query.groups) if query.groups is not None else 0,
            idle=query.idle,
        )
        return asked, query.step

    @classmethod
    def key_of_statement(cls, question: Question) -> Key:
        """What a statement without a step is kept under."""
        return cls.key((question, None))

    @operation(needs=Needs.CLUSTER_SECRET, query=ClusterCostsQuery, answer=structs.Statement)
    async def get(self, query: ClusterCostsQuery) -> Answered:
        return await self.kept(query, self.costs.statement)


class ClusterSummaries(MetroculusHandler):
    """The statements of many clusters at once (USD): what is stored in one question, the rest side by side."""

    summaries: SummariesController

    @operation(needs=Needs.CLUSTER_SECRET, query=AccountsQuery, answer=structs.Statements)
    async def get(self, query: AccountsQuery) -> Summaries:
        def window(ahead: float) -> Window:
            return resolve_window(query, self.service.clock() + ahead, CODES)

        return await self.summaries.summaries(query.cloud_account_id, window, query.filters, self.deadline())


def _filters(query: ClusterCostsQuery) -> Filters:
    """``namespace`` is the older name of a ``k8s_namespace`` that stands once.

    Raises:
        ApiError: both are given.
    """
    if query.namespace is not None and query.k8s_namespace:
        raise ApiError(INVALID, "give either namespace or k8s_namespace, not both", ["namespace", "k8s_namespace"])
    namespaces = query.k8s_namespace if query.namespace is None else (query.namespace,)
    return filters_of(namespaces, query.k8s_node, query.k8s_service, query.filter)


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
