"""The shapes of answers: what Metroculus' must fit before anything is read from them, and what ours are.

Only what is relied upon is named; an answer may hold more. Money is in the answer's ``currency``, None is unknown;
stamps are Unix seconds, times RFC 3339.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_USD = 1e15
Money: TypeAlias = Annotated[float, Meta(ge=-MAX_USD, le=MAX_USD)]
Usd: TypeAlias = Money | None
PARTS = (
    "cpu_cost", "ram_cost", "gpu_cost", "pv_cost", "network_cost", "load_balancer_cost", "management_cost",
    "shared_cost", "external_cost",
)  # fmt: skip
"""Of a summary: what its total is the sum of."""
SourceStatus = Literal["ok", "stale", "partial", "no_data", "unavailable", "not_configured"]


class SourceState(Struct):
    name: str
    status: SourceStatus
    fetched_at: int | None
    coverage: float | None
    error: str | None


class TimeWindow(Struct):
    start: str
    end: str
    final_until: str


class Told(Struct):
    """Why one of several clusters is not in the figures."""

    status_code: int
    error_code: str
    reason: str


class Columns(Struct):
    total_cost: Usd
    cpu_cost: Usd
    ram_cost: Usd
    gpu_cost: Usd
    pv_cost: Usd
    network_cost: Usd
    load_balancer_cost: Usd
    shared_cost: Usd
    external_cost: Usd


class SummaryColumns(Columns):
    management_cost: Usd
    known_cost: Usd


class CostRow(Columns):
    name: str
    total_cost: Money
    total_efficiency: float
    pod_count: int
    cpu_core_request_average: float
    cpu_core_usage_average: float
    ram_byte_request_average: float
    ram_byte_usage_average: float
    namespace: str | UnsetType = UNSET
    controller: str | UnsetType = UNSET


class Windowed(Struct):
    start_date: int
    end_date: int
    window: TimeWindow


class WithSources(Windowed):
    complete: bool
    sources: list[SourceState]


class Figures(WithSources):
    """What a statement of one cluster tells, in Metroculus' answer and in ours."""

    currency: str
    not_covered: list[str]
    total_cost: Usd
    summary: SummaryColumns
    idle_cost: Usd
    unallocated_cost: Usd
    special: dict[str, float]
    efficiency: dict[str, float] | None
    breakdown: dict[str, Usd]
    potential_savings: Usd
    data_points: list[dict[str, Any]]


class Statement(Figures):
    """``kubecost_cluster_costs``."""

    breakdown_by_aggregate: list[CostRow] | UnsetType = UNSET


class Asset(Struct):
    type: str
    name: str
    total_cost: Money


class Assets(WithSources):
    """``kubecost_assets``."""

    currency: str
    nodes: list[Asset]
    disks: list[Asset]
    load_balancers: list[Asset]
    network: list[Asset]
    cluster_management: list[Asset]
    totals: dict[str, float]
    total_cost: Usd


class Recommendation(Struct):
    kind: str
    monthly_saving: Money
    risk: str
    evidence: dict[str, Any]


class Savings(WithSources):
    """``kubecost_savings``."""

    currency: str
    potential_savings: Usd
    by_category: dict[str, float]
    recommendations: list[Recommendation]


class MetricSeries(Struct):
    labels: dict[str, str]
    values: list[tuple[float, float]]


class Metrics(WithSources):
    """``kubecost_metrics``."""

    step: int
    metrics: dict[str, list[MetricSeries]]


class QuotaRow(Struct):
    namespace: str


class WorkloadRow(Struct):
    namespace: str
    controller: str


class NodeRow(Struct):
    name: str


class Metadata(Struct):
    """``k8s_metadata``."""

    fetched_at: int
    sources: list[SourceState]
    quotas: list[QuotaRow]
    workloads: list[WorkloadRow]
    nodes: list[NodeRow]


class ExpenseRow(Struct):
    cluster: str
    namespace: str
    controller: str
    pod: str
    node: str
    total_cost: Money


class AccountCoverage(Struct):
    cloud_account_id: str
    coverage: float | None
    complete: bool


class Expenses(Windowed):
    """``k8s_expenses``."""

    currency: str
    complete: bool
    coverage: float | None
    total_cost: Usd
    expenses: list[ExpenseRow]
    accounts: list[AccountCoverage]


class Projection(Struct):
    total_cost: Usd
    low: Usd
    high: Usd
    method: str


class StoredMonth(Struct):
    month: str
    start: str
    end: str
    coverage: float | None
    complete: bool
    costs: SummaryColumns | None
    projection: Projection | None


class StoredMonths(Struct):
    """``k8s_monthly``."""

    currency: str
    months: list[StoredMonth]


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
