"""What Metroculus answers, as types: for callers that have ``msgspec``; the client itself needs none of it.

Only what is relied upon is named; an answer may hold more. Money is in the answer's ``currency``, None is unknown;
stamps are Unix seconds, times RFC 3339.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

MAX_USD = 1e15
Money: TypeAlias = Annotated[float, Meta(ge=-MAX_USD, le=MAX_USD)]
Usd: TypeAlias = Money | None
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
