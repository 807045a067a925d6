"""The shapes of the REST API's own answers; what Metroculus answers is in the SDK's ``structs``.

Money is in the answer's ``currency``, None is unknown; stamps are Unix seconds, times RFC 3339. A list is whole where
``total_count`` is not set, else a page of it.
"""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from optscale_client.metroculus_client.structs import (
    AccountCoverage,
    Asset,
    Columns,
    CostRow,
    Efficiency,
    Figures,
    Money,
    NodeRow,
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


class Failure(Struct, frozen=True):
    """Why one of several clusters is not in the figures."""

    status_code: int
    error_code: str
    reason: str


class MetadataState(Struct, frozen=True):
    """Whether quotas, limits and nodes are known, since when, and how old they are (seconds)."""

    status: Literal["ok", "stale", "no_data", "unavailable", "not_configured"]
    fetched_at: int | None
    age_seconds: int | None


class ClusterStatement(Figures, frozen=True, kw_only=True):
    cluster_id: str
    cluster_name: str


class ClusterView(WithSources, frozen=True, kw_only=True):
    cluster_id: str
    cluster_name: str


class ClusterCosts(ClusterStatement, frozen=True, kw_only=True):
    aggregate: str | UnsetType = UNSET
    costs: tuple[CostRow, ...]
    total_count: int | UnsetType = UNSET
    next_cursor: str | UnsetType | None = UNSET


class Utilization(Struct, frozen=True, kw_only=True):
    """Usage over request; None where nothing was requested."""

    cpu: float | None
    ram: float | None


class Quota(Struct, frozen=True, kw_only=True):
    """One resource of a namespace's quota; cores, bytes or a count."""

    name: str
    resource: str
    hard: float | None
    used: float | None


class NamespaceRow(CostRow, frozen=True, kw_only=True):
    quota: tuple[Quota, ...]
    utilization: Utilization


class Namespaces(ClusterStatement, frozen=True, kw_only=True):
    metadata: MetadataState
    namespaces: tuple[NamespaceRow, ...]
    total_count: int | UnsetType = UNSET
    next_cursor: str | UnsetType | None = UNSET


class Limits(Struct, frozen=True, kw_only=True):
    """Requests and limits of a workload, now; cores and bytes, None where not set or not known."""

    cpu_request: float | None = None
    cpu_limit: float | None = None
    ram_request: float | None = None
    ram_limit: float | None = None


class WorkloadCosts(CostRow, frozen=True, kw_only=True):
    resources: Limits
    utilization: Utilization


class Workloads(ClusterStatement, frozen=True, kw_only=True):
    namespace: str
    metadata: MetadataState
    workloads: tuple[WorkloadCosts, ...]
    total_count: int | UnsetType = UNSET
    next_cursor: str | UnsetType | None = UNSET


class NamedWorkloads(ClusterStatement, frozen=True, kw_only=True):
    workloads: tuple[CostRow, ...]


class AssetRow(Asset, frozen=True, kw_only=True):
    """An asset; a node with its specification, None where it is not known."""

    specification: NodeRow | UnsetType | None = UNSET


class ClusterAssets(ClusterView, frozen=True, kw_only=True):
    currency: str
    totals: dict[str, float]
    total_cost: Usd
    metadata: MetadataState
    assets: tuple[AssetRow, ...]
    total_count: int | UnsetType = UNSET
    next_cursor: str | UnsetType | None = UNSET


Points = tuple[tuple[float, float], ...]


class ClusterMetrics(ClusterView, frozen=True, kw_only=True):
    metric: str
    unit: str
    step: int
    series: dict[str, Points]


class Optimization(ClusterView, frozen=True, kw_only=True):
    currency: str
    potential_savings: Usd
    by_category: dict[str, float]
    right_sizing: tuple[Recommendation, ...]
    under_provisioned: tuple[Recommendation, ...]
    abandoned_workloads: tuple[Recommendation, ...]
    unclaimed_volumes: tuple[Recommendation, ...]
    idle_nodes: tuple[Recommendation, ...]

    @property
    def recommendations(self) -> tuple[Recommendation, ...]:
        """All of them, kind by kind."""
        return (
            *self.right_sizing,
            *self.under_provisioned,
            *self.abandoned_workloads,
            *self.unclaimed_volumes,
            *self.idle_nodes,
        )


class Freshness(Struct, frozen=True):
    fetched_at: int | None
    final_until: str


class ClusterSummary(Struct, frozen=True, kw_only=True):
    """One cluster of an organization; where it failed, ``error`` says why and nothing of its cost is known."""

    cluster_id: str
    cluster_name: str
    name: str
    state: str
    flavour: str
    total_cost: Usd = None
    summary: SummaryColumns | None = None
    idle_cost: Usd = None
    efficiency: Efficiency | None = None
    currency: str | None = None
    complete: bool = False
    sources: tuple[SourceState, ...] = ()
    not_covered: tuple[str, ...] = ()
    freshness: Freshness | None = None
    error: Failure | None = None


class SeenOrganization(Struct, frozen=True, kw_only=True):
    id: str
    name: str
    role: str


class SeenCluster(Struct, frozen=True, kw_only=True):
    cluster_id: str
    name: str
    state: str
    flavour: str


class OrganizationClusters(SeenOrganization, frozen=True, kw_only=True):
    """An organization with its clusters, by name."""

    clusters: tuple[SeenCluster, ...]


class SeenOrganizations(Struct, frozen=True, kw_only=True):
    """The organizations that a token sees, by name, with the role that its user has in each."""

    user: str
    read_only: bool
    organizations: tuple[SeenOrganization, ...]


class OrganizationCosts(Struct, frozen=True, kw_only=True):
    organization_id: str
    start_date: int
    end_date: int
    clusters: tuple[ClusterSummary, ...]
    total_count: int | UnsetType = UNSET
    next_cursor: str | UnsetType | None = UNSET
    totals: dict[str, Usd]
    total_cost: Usd
    known_cost: Usd
    complete: bool


class CleanExpenseRow(Columns, frozen=True, kw_only=True, gc=False):
    """A stored row in OptScale's words beside ours."""

    cloud_account_id: str
    cloud_account_name: str
    k8s_namespace: str
    k8s_controller: str
    k8s_node: str
    resource_name: str
    name: str
    resource_type: str = "K8s Pod"
    cost: Money
    total_cost: Money
    management_cost: Usd
    currency: str | UnsetType = UNSET
    """Where rows are in different ones."""
    cpu_efficiency: float | None
    ram_efficiency: float | None
    total_efficiency: float | None


class ClusterCost(Struct, frozen=True, kw_only=True):
    """What one cluster says now; where it failed, ``error`` says why."""

    cloud_account_id: str
    cloud_account_name: str
    cost: Usd = None
    currency: str | None = None
    breakdown: SummaryColumns | None = None
    complete: bool = False
    sources: tuple[SourceState, ...] = ()
    not_covered: tuple[str, ...] = ()
    error: Failure | None = None


class KubernetesCosts(Struct, frozen=True, kw_only=True):
    k8s_total_cost: Usd
    complete: bool
    k8s_cost_breakdown: tuple[ClusterCost, ...]


class CleanExpenses(Struct, frozen=True, kw_only=True):
    organization_id: str
    start_date: int
    end_date: int
    currency: str
    total_cost: Usd
    coverage: float | None
    complete: bool
    accounts: tuple[AccountCoverage, ...]
    error: Failure | None
    k8s_costs: KubernetesCosts
    clean_expenses: tuple[CleanExpenseRow, ...]
    total_count: int | UnsetType = UNSET
    next_cursor: str | UnsetType | None = UNSET


class MonthOfCluster(Struct, frozen=True, kw_only=True, gc=False):
    cloud_account_id: str
    cloud_account_name: str
    total_cost: Usd
    coverage: float | None
    complete: bool
    projection: Projection | None
    currency: str | None


class MonthProjection(Struct, frozen=True, kw_only=True):
    """The sum of the clusters' projections; the band is the sum of bands, which is wide: few go the same way."""

    total_cost: Usd
    low: Usd
    high: Usd
    method: str


class Month(SummaryColumns, frozen=True, kw_only=True):
    """One month of all clusters; a sum is None where a cluster's part of it is not known.

    ``currency`` names several where the clusters' money is in several; then there are no sums.
    """

    month: str
    start: str
    end: str
    currency: str | None
    complete: bool
    month_to_date: Usd
    projection: MonthProjection | None
    clusters: tuple[MonthOfCluster, ...]


class UnavailableCluster(Struct, frozen=True, kw_only=True):
    cloud_account_id: str
    cloud_account_name: str
    error: Failure


class Monthly(Struct, frozen=True, kw_only=True):
    organization_id: str | UnsetType = UNSET
    currency: str
    months: tuple[Month, ...]
    unavailable: tuple[UnavailableCluster, ...]
    timezone: str = "UTC"
    warnings: tuple[str, ...] = ()


class KubecentItem(Struct, frozen=True, kw_only=True):
    name: str
    namespace: str | UnsetType = UNSET
    total_cost: Money
    cpu_cost: Usd
    memory_cost: Usd
    storage_cost: Usd
    idle_cost: Money
    pod_count: int


class KubecentListing(Struct, frozen=True, kw_only=True):
    window: TimeWindow
    item_count: int
    total: Usd
    complete: bool
    sources: tuple[SourceState, ...]


class KubecentNamespaces(KubecentListing, frozen=True, kw_only=True):
    namespaces: tuple[KubecentItem, ...]


class KubecentPods(KubecentListing, frozen=True, kw_only=True):
    pods: tuple[KubecentItem, ...]


class KubecentRecommendations(Struct, frozen=True, kw_only=True):
    window: TimeWindow
    item_count: int
    potential_savings: Usd
    complete: bool
    sources: tuple[SourceState, ...]
    recommendations: tuple[Recommendation, ...]
