"""The shapes of the REST API's own answers; what Metroculus' must fit is in the SDK's ``structs``.

Only what is relied upon is named; an answer may hold more. Money is in the answer's ``currency``, None is unknown;
stamps are Unix seconds, times RFC 3339.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from optscale_client.metroculus_client.structs import (
    AccountCoverage,
    Asset,
    CostRow,
    Figures,
    Money,
    Projection,
    Recommendation,
    SourceState,
    SummaryColumns,
    TimeWindow,
    Usd,
    WithSources,
)

PARTS = tuple(
    name
    for name in SummaryColumns.__struct_fields__
    if name.endswith("_cost") and name not in ("total_cost", "known_cost")
)
"""Of a summary: what its total is the sum of."""


class Told(Struct):
    """Why one of several clusters is not in the figures."""

    status_code: int
    error_code: str
    reason: str


class MetadataState(Struct):
    """Whether quotas, limits and nodes are known, since when, and how old they are (seconds)."""

    status: Literal["ok", "stale", "no_data", "unavailable", "not_configured"]
    fetched_at: int | None
    age_seconds: int | None


class ClusterStatement(Figures):
    cluster_id: str
    cluster_name: str


class ClusterCosts(ClusterStatement):
    aggregate: str
    costs: list[CostRow]
    total_count: int
    next_cursor: str | None


class NamedCosts(ClusterStatement):
    costs: list[CostRow]


class Utilization(Struct):
    """Usage over request; None where nothing was requested."""

    cpu: float | None
    ram: float | None


class NamespaceRow(CostRow, kw_only=True):
    quota: list[dict[str, Any]]
    utilization: Utilization


class NamedNamespaces(ClusterStatement):
    metadata: MetadataState
    namespaces: list[NamespaceRow]


class Namespaces(NamedNamespaces):
    total_count: int
    next_cursor: str | None


class WorkloadCosts(CostRow, kw_only=True):
    resources: dict[str, float | None]
    utilization: Utilization


class Workloads(ClusterStatement):
    namespace: str
    metadata: MetadataState
    workloads: list[WorkloadCosts]
    total_count: int
    next_cursor: str | None


class NamedWorkloads(ClusterStatement):
    workloads: list[CostRow]


class ClusterAssets(WithSources, kw_only=True):
    cluster_id: str
    cluster_name: str
    currency: str
    totals: dict[str, float]
    total_cost: Usd
    metadata: MetadataState
    assets: list[Asset]
    total_count: int
    next_cursor: str | None


class ClusterMetrics(WithSources, kw_only=True):
    cluster_id: str
    cluster_name: str
    metric: str
    unit: str
    step: int
    series: dict[str, list[tuple[float, float]]]


class Optimization(WithSources, kw_only=True):
    cluster_id: str
    cluster_name: str
    currency: str
    potential_savings: Usd
    by_category: dict[str, float]
    right_sizing: list[Recommendation]
    under_provisioned: list[Recommendation]
    abandoned_workloads: list[Recommendation]
    unclaimed_volumes: list[Recommendation]
    idle_nodes: list[Recommendation]


class Freshness(Struct):
    fetched_at: int | None
    final_until: str


class ClusterSummary(Struct):
    cluster_id: str
    cluster_name: str
    name: str
    state: str
    flavour: str
    total_cost: Usd
    summary: SummaryColumns | None
    idle_cost: Usd
    currency: str | None
    complete: bool
    sources: list[SourceState]
    not_covered: list[str]
    freshness: Freshness | None
    error: Told | None


class OrganizationCosts(Struct):
    organization_id: str
    start_date: int
    end_date: int
    clusters: list[ClusterSummary]
    totals: dict[str, Usd]
    total_cost: Usd
    known_cost: Usd
    complete: bool
    total_count: int
    next_cursor: str | None


class CleanExpenseRow(Struct):
    cloud_account_id: str
    cloud_account_name: str
    k8s_namespace: str
    k8s_node: str
    resource_name: str
    cost: Money


class ClusterCost(Struct):
    cloud_account_id: str
    cloud_account_name: str
    cost: Usd
    breakdown: SummaryColumns | None
    complete: bool
    sources: list[SourceState]
    not_covered: list[str]
    error: Told | None


class KubernetesCosts(Struct):
    k8s_total_cost: Usd
    complete: bool
    k8s_cost_breakdown: list[ClusterCost]


class CleanExpenses(Struct):
    organization_id: str
    start_date: int
    end_date: int
    currency: str
    total_cost: Usd
    coverage: float | None
    complete: bool
    accounts: list[AccountCoverage]
    error: Told | None
    k8s_costs: KubernetesCosts
    clean_expenses: list[CleanExpenseRow]
    total_count: int
    next_cursor: str | None


class MonthOfCluster(Struct):
    cloud_account_id: str
    cloud_account_name: str
    total_cost: Usd
    coverage: float | None
    complete: bool
    projection: Projection | None


class Month(Struct):
    month: str
    start: str
    end: str
    complete: bool
    total_cost: Usd
    known_cost: Usd
    month_to_date: Usd
    projection: Projection | None
    clusters: list[MonthOfCluster]


class UnavailableCluster(Struct):
    cloud_account_id: str
    cloud_account_name: str
    error: Told


class Monthly(Struct):
    currency: str
    months: list[Month]
    unavailable: list[UnavailableCluster]


class OrganizationMonthly(Monthly, kw_only=True):
    organization_id: str


class KubecentItem(Struct):
    name: str
    total_cost: Money
    cpu_cost: Usd
    memory_cost: Usd
    storage_cost: Usd
    idle_cost: Money
    pod_count: int


class KubecentListing(Struct):
    window: TimeWindow
    item_count: int
    total: Usd
    complete: bool
    sources: list[SourceState]


class KubecentNamespaces(KubecentListing):
    namespaces: list[KubecentItem]


class KubecentPod(KubecentItem):
    namespace: str


class KubecentPods(KubecentListing):
    pods: list[KubecentPod]


class KubecentRecommendations(Struct):
    window: TimeWindow
    item_count: int
    potential_savings: Usd
    complete: bool
    sources: list[SourceState]
    recommendations: list[Recommendation]
