"""What Metroculus answers, as types: for callers that have ``msgspec``; the client itself needs none of it.

Every key of an answer is named, in its order. Money is in the answer's ``currency``, None is unknown; stamps are Unix
seconds, times RFC 3339. A key that came later has a default, so that an older service's answer is still read.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

LARGEST = 1e30
"""Beyond what any sum of figures that are let in can come to."""
Money: TypeAlias = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Usd: TypeAlias = Money | None
PROPERTIES = ("namespace", "controller", "controllerKind", "pod", "container", "node", "service", "cluster")
"""What statements may be grouped by (``aggregate``), beside ``label:x`` and ``annotation:x``."""
GROUPS = ("cluster", "namespace", "controller", "pod", "node", "service", "day", "hour", "month")
"""What expenses may be summed by (``group_by``), beside ``label:x``."""
LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9_./-]{0,251}[A-Za-z0-9])?"
ACCOUNTS_AT_ONCE = 1000
"""Of how many accounts expenses may be asked for in one call."""
AGGREGATE_PATTERN = rf"({'|'.join(PROPERTIES)}|(label|annotation):{LABEL_NAME})"
FILTER_PATTERN = rf"{AGGREGATE_PATTERN}=[^\x00-\x1f\x7f]{{0,253}}"
CHARGEBACK_BY_PATTERN = rf"cost_center|namespace|cluster|label:{LABEL_NAME}"
GROUP_BY_PATTERN = rf"({'|'.join(GROUPS)}|label:{LABEL_NAME})"

SourceStatus: TypeAlias = Annotated[
    str,
    Meta(extra_json_schema={"enum": ["ok", "stale", "partial", "no_data", "unavailable", "not_configured"]}),
]
"""A newer service may say one that this list does not have yet."""


class SourceState(Struct, frozen=True, kw_only=True):
    """What became of asking one source; ``coverage`` is time with data over time asked.

    ``residual_bound`` is how far its figures may be from its own totals, where they do not agree.
    """

    name: str
    status: SourceStatus
    fetched_at: int | None
    coverage: float | None
    error: str | None
    warnings: tuple[str, ...] = ()
    residual_bound: float | None = None


class TimeWindow(Struct, frozen=True, kw_only=True):
    """RFC 3339, with the offset of the zone that was asked for."""

    start: str
    end: str
    final_until: str
    timezone: str = "UTC"
    warnings: tuple[str, ...] = ()


class Columns(Struct, frozen=True, kw_only=True):
    total_cost: Usd
    cpu_cost: Usd
    ram_cost: Usd
    gpu_cost: Usd
    pv_cost: Usd
    network_cost: Usd
    load_balancer_cost: Usd
    shared_cost: Usd
    external_cost: Usd


class SummaryColumns(Columns, frozen=True, kw_only=True):
    management_cost: Usd
    known_cost: Usd


class DataPoint(SummaryColumns, frozen=True, kw_only=True, gc=False):
    """One step of a statement: ``[start, end)``."""

    start: str
    end: str
    complete: bool
    idle_cost: Usd
    groups: dict[str, float] | UnsetType = UNSET
    """Where ``groups`` was asked for: what is known of the dearest rows of the whole window, by name."""


class CostRow(Columns, frozen=True, kw_only=True):
    """One line of a breakdown; averages in cores and bytes, efficiencies are ratios."""

    name: str
    namespace: str | UnsetType = UNSET
    controller: str | UnsetType = UNSET
    controller_kind: str | UnsetType = UNSET
    pod: str | UnsetType = UNSET
    total_cost: Money
    cpu_efficiency: float | None
    ram_efficiency: float | None
    total_efficiency: float | None
    pod_count: int
    cpu_core_request_average: float | None
    cpu_core_usage_average: float | None
    ram_byte_request_average: float | None
    ram_byte_usage_average: float | None


class Windowed(Struct, frozen=True, kw_only=True):
    start_date: int
    end_date: int
    window: TimeWindow


class WithSources(Windowed, frozen=True, kw_only=True):
    complete: bool
    sources: tuple[SourceState, ...]


class Efficiency(Struct, frozen=True, kw_only=True):
    cpu_efficiency: float | None
    ram_efficiency: float | None
    total_efficiency: float | None


class Breakdown(Struct, frozen=True, kw_only=True):
    """Two columns of the summary again, and the parts of the network cost."""

    management_cost: Usd
    load_balancer_cost: Usd
    network_internet_cost: Usd
    network_region_cost: Usd
    network_zone_cost: Usd


class Figures(WithSources, frozen=True, kw_only=True):
    """What a statement of one cluster tells, in Metroculus' answer and in the REST API's."""

    currency: str
    not_covered: tuple[str, ...]
    total_cost: Usd
    summary: SummaryColumns
    idle_cost: Usd
    unallocated_cost: Usd
    special: dict[str, float]
    efficiency: Efficiency | None
    potential_savings: Usd
    breakdown: Breakdown
    data_points: tuple[DataPoint, ...]


class Statement(Figures, frozen=True, kw_only=True):
    """``kubecost_cluster_costs``."""

    cloud_account_id: str
    breakdown_by_namespace: tuple[CostRow, ...] | UnsetType = UNSET
    breakdown_by_workload: tuple[CostRow, ...] | UnsetType = UNSET
    breakdown_by_pod: tuple[CostRow, ...] | UnsetType = UNSET
    breakdown_by_aggregate: tuple[CostRow, ...] | UnsetType = UNSET
    savings_recommendations: dict[str, Any]


class Failure(Struct, frozen=True):
    """Why one of several accounts has no answer."""

    status_code: int
    error_code: str
    reason: str


class AccountStatement(Struct, frozen=True):
    """One account's statement, or why there is none."""

    cloud_account_id: str
    statement: Statement | None = None
    error: Failure | None = None


class Statements(Struct, frozen=True):
    """``k8s_costs``."""

    accounts: tuple[AccountStatement, ...]


class Asset(Struct, frozen=True, kw_only=True):
    """One asset; ``total_cost`` holds the adjustment, hours are the time that it existed, utilisations are shares."""

    type: str
    name: str
    provider: str
    provider_id: str
    instance_type: str
    zone: str
    spot: bool
    cpu_cores: float | None
    ram_bytes: float | None
    gpu_count: float | None
    hours: float
    cpu_cost: Money
    ram_cost: Money
    gpu_cost: Money
    adjustment: Money
    total_cost: Money
    cpu_utilization: float | None
    ram_utilization: float | None
    storage_bytes: float | None
    storage_class: str
    volume_name: str
    claim_name: str
    claim_namespace: str
    ip: str
    last_seen: int | None = None
    cluster: str = ""


class Assets(WithSources, frozen=True, kw_only=True):
    """``kubecost_assets``; ``totals`` covers everything listed, by type."""

    cloud_account_id: str
    currency: str
    nodes: tuple[Asset, ...]
    disks: tuple[Asset, ...]
    load_balancers: tuple[Asset, ...]
    network: tuple[Asset, ...]
    cluster_management: tuple[Asset, ...]
    totals: dict[str, float]
    total_cost: Usd


class Recommendation(Struct, frozen=True, kw_only=True):
    """One thing to do: what it saves a month, why, and how much could go wrong."""

    kind: str
    namespace: str
    controller: str
    controller_kind: str
    container: str
    name: str
    resource: str
    monthly_saving: Money
    requested: float | None
    recommended: float | None
    freed: float | None
    evidence: dict[str, Any]
    risk: str


class Savings(WithSources, frozen=True, kw_only=True):
    """``kubecost_savings``; USD a month."""

    cloud_account_id: str
    currency: str
    potential_savings: Usd
    cpu_savings: tuple[Recommendation, ...]
    memory_savings: tuple[Recommendation, ...]
    recommendations: tuple[Recommendation, ...]
    by_category: dict[str, float]


class MetricSeries(Struct, frozen=True, kw_only=True):
    labels: dict[str, str]
    values: tuple[tuple[float, float], ...]


class Metrics(WithSources, frozen=True, kw_only=True):
    """``kubecost_metrics``: series as stored, by metric; ``step`` in seconds."""

    cloud_account_id: str
    step: int
    metrics: dict[str, tuple[MetricSeries, ...]]


class QuotaRow(Struct, frozen=True, kw_only=True):
    """One resource of one namespace's quota; cores, bytes or a count."""

    namespace: str
    name: str
    resource: str
    hard: float | None
    used: float | None


class WorkloadRow(Struct, frozen=True, kw_only=True):
    """Requests and limits of a workload's containers together, now; cores and bytes, None where not set."""

    namespace: str
    controller: str
    controller_kind: str
    pods: int
    cpu_request: float | None
    cpu_limit: float | None
    ram_request: float | None
    ram_limit: float | None


class NodeRow(Struct, frozen=True, kw_only=True):
    name: str
    instance_type: str
    zone: str
    provider_id: str
    spot: bool | None
    cpu_cores: float | None
    ram_bytes: float | None
    gpu_count: float | None


class Metadata(Struct, frozen=True, kw_only=True):
    """``k8s_metadata``."""

    cloud_account_id: str
    fetched_at: int
    sources: tuple[SourceState, ...]
    quotas: tuple[QuotaRow, ...]
    workloads: tuple[WorkloadRow, ...]
    nodes: tuple[NodeRow, ...]


class ExpenseRow(Columns, frozen=True, kw_only=True, gc=False):
    """Stored hours summed; a key for each property that was asked for in ``group_by``, others are not there."""

    cluster: str | UnsetType = UNSET
    namespace: str | UnsetType = UNSET
    controller: str | UnsetType = UNSET
    pod: str | UnsetType = UNSET
    node: str | UnsetType = UNSET
    service: str | UnsetType = UNSET
    day: str | UnsetType = UNSET
    hour: str | UnsetType = UNSET
    month: str | UnsetType = UNSET
    currency: str | UnsetType = UNSET
    total_cost: Money
    management_cost: Usd
    cpu_efficiency: float | None
    ram_efficiency: float | None
    total_efficiency: float | None


class AccountCoverage(Struct, frozen=True, kw_only=True):
    """How much of the final time of a window is stored for one account."""

    cloud_account_id: str
    coverage: float | None
    complete: bool
    source: SourceState


class ExpensesBase(Windowed, frozen=True, kw_only=True):
    """``k8s_expenses`` without its rows; ``coverage`` is time with data over time asked, over all accounts."""

    currency: str
    complete: bool
    coverage: float | None
    total_cost: Usd
    accounts: tuple[AccountCoverage, ...]
    row_count: int = 0
    """Of the whole list, where one page of it was asked for."""


class Expenses(ExpensesBase, frozen=True, kw_only=True):
    """``k8s_expenses``.

    A row has a key for each property of ``group_by``, ``label:team`` among them, and the columns of ``ExpenseRow``.
    """

    expenses: tuple[dict[str, Any], ...]


class ExpensesWithoutLabels(ExpensesBase, frozen=True, kw_only=True):
    """``k8s_expenses`` where ``group_by`` names no label."""

    expenses: tuple[ExpenseRow, ...]


class ExpenseRows(Struct, frozen=True, kw_only=True):
    """``k8s_expense_rows``: one page; rows as those of ``Expenses``, each with its ``currency``."""

    as_of: int
    """When the list began: nothing that was committed later is in it."""
    whole: ExpensesBase | None
    """What all rows come to; with the first page alone."""
    rows: tuple[dict[str, Any], ...]
    next_cursor: str | None
    """None with the last page."""


class ExpenseRowsWithoutLabels(Struct, frozen=True, kw_only=True):
    """``k8s_expense_rows`` where ``group_by`` names no label."""

    as_of: int
    whole: ExpensesBase | None
    rows: tuple[ExpenseRow, ...]
    next_cursor: str | None


class Weights(Struct, frozen=True, forbid_unknown_fields=True):
    """Shares by name, in any unit."""

    weights: dict[str, float]


Split: TypeAlias = Literal["weighted", "even"] | Weights


class Match(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an allocation must have, all of it; ``*`` stands for any text."""

    cluster: str | None = None
    namespace: str | None = None
    label: str | None = None
    values: tuple[str, ...] = ()


class CostCenter(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    match: tuple[Match, ...]


class Shared(CostCenter, frozen=True, forbid_unknown_fields=True, kw_only=True):
    split: Split = "weighted"


class Overhead(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    amount_month: float
    currency: str = "USD"
    split: Split = "weighted"


class Rules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an organization's months are shared out, from ``valid_from`` (``2026-11``) on."""

    valid_from: str
    cost_centers: tuple[CostCenter, ...] = ()
    shared: tuple[Shared, ...] = ()
    overhead: tuple[Overhead, ...] = ()
    idle: Literal["separate", "weighted", "even"] = "separate"
    management: Literal["separate", "weighted", "even"] = "separate"


class AllocationRules(Struct, frozen=True):
    """``rules``: every version, the oldest first, and the months that are closed; ``version`` is of the rules."""

    organization_id: str
    versions: tuple[Rules, ...]
    closed_months: tuple[str, ...]
    version: str = ""


class OrganizationAccounts(Struct, frozen=True):
    """``organizations``: the accounts that an organization has."""

    organization_id: str
    cloud_account_ids: tuple[str, ...]


class ChargebackRow(Columns, frozen=True, kw_only=True):
    """What one bears: ``direct_cost`` by component, its part of shared costs and overhead by their names, of idle and
    of management. ``total_cost`` is the sum of it all.
    """

    name: str
    kind: str
    currency: str
    direct_cost: Money
    shared: dict[str, Money]
    overhead: dict[str, Money]
    idle_cost: Money
    management_cost: Money
    previous_total_cost: Usd


class ChargebackStatement(Struct, frozen=True, kw_only=True):
    """What is stored of a cluster's month."""

    cloud_account_id: str
    currency: str
    total_cost: Money


class ChargebackAdjustment(Struct, frozen=True, kw_only=True):
    """What a closed month costs more than it said when it was closed, for the row of that name."""

    month: str
    name: str
    kind: str
    currency: str
    amount: Money


class Chargeback(Struct, frozen=True, kw_only=True):
    """``chargeback``: the rows add up to ``totals``, by currency; those to the statements and the overhead.

    ``adjustments`` are beside the rows, never in them.
    """

    organization_id: str
    month: str
    start: str
    end: str
    by: str
    rules_valid_from: str | None
    closed_at: int | None
    accept_incomplete: str | None
    complete: bool
    totals: dict[str, Money]
    overhead: dict[str, Money]
    statements: tuple[ChargebackStatement, ...]
    accounts: tuple[AccountCoverage, ...]
    rows: tuple[ChargebackRow, ...]
    adjustments: tuple[ChargebackAdjustment, ...]
    notes: tuple[str, ...]


class PreviewRow(Struct, frozen=True, kw_only=True):
    """A row under the rules that hold, and under others; None where one of them has no such row."""

    name: str
    kind: str
    currency: str
    current_total_cost: Usd
    total_cost: Usd


class ChargebackPreview(Struct, frozen=True, kw_only=True):
    """``rules/preview``: a month under other rules; nothing of it is kept."""

    organization_id: str
    month: str
    by: str
    rows: tuple[PreviewRow, ...]


class BudgetScope(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What counts: all of it that is given must fit; nothing is the whole organization."""

    cluster_id: str | None = None
    namespace: str | None = None
    label: str | None = None
    values: tuple[str, ...] = ()
    cost_center: str | None = None


class BudgetThreshold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A share of the amount, held against what is spent or against what will be at the period's end."""

    percent: float
    on: Literal["actual", "forecast"] = "actual"


class Budget(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may be spent in each period of UTC."""

    name: str
    amount: float
    scope: BudgetScope = BudgetScope()
    period: Literal["week", "month", "quarter", "year"] = "month"
    currency: str = "USD"
    thresholds: tuple[BudgetThreshold, ...] = (
        BudgetThreshold(percent=80.0),
        BudgetThreshold(percent=100.0),
        BudgetThreshold(percent=100.0, on="forecast"),
    )


class BudgetChange(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to be other in a budget; what is not named stays as it is."""

    name: str | UnsetType = UNSET
    amount: float | UnsetType = UNSET
    scope: BudgetScope | UnsetType = UNSET
    period: Literal["week", "month", "quarter", "year"] | UnsetType = UNSET
    currency: str | UnsetType = UNSET
    thresholds: tuple[BudgetThreshold, ...] | UnsetType = UNSET


class BudgetCrossing(Struct, frozen=True, kw_only=True):
    """A threshold, and whether it is ``crossed``, ``not_crossed`` or ``unknown``."""

    percent: float
    on: str
    state: str


class BudgetForecast(Struct, frozen=True, kw_only=True):
    """What the whole period will have cost: ``low`` to ``high`` holds it four times in five."""

    expected: Usd
    low: Usd
    high: Usd


class BudgetState(Struct, frozen=True, kw_only=True):
    """A budget in its running period.

    ``spent`` is what is known, ``spent_at_most`` with what ``missing`` names (None where nothing bounds that).
    ``percent`` is of ``spent``; ``as_of`` the end of the newest hour that is counted.
    ``version`` is of what was decided.
    """

    id: str
    name: str
    scope: BudgetScope
    period: Literal["week", "month", "quarter", "year"]
    amount: Money
    currency: str
    source: str
    start: str
    end: str
    state: str
    spent: Money
    spent_at_most: Usd
    percent: float
    forecast: BudgetForecast
    thresholds: tuple[BudgetCrossing, ...]
    coverage: float | None
    as_of: str | None
    missing: tuple[str, ...]
    version: str = ""


class UpstreamBudget(Struct, frozen=True, kw_only=True):
    """A budget that a cluster's Kubecost keeps itself, as it says; ``scope`` by its own words."""

    cloud_account_id: str
    id: str
    name: str
    scope: dict[str, tuple[str, ...]]
    period: str
    amount: Usd
    currency: str
    source: str
    start: str | None
    end: str | None
    state: str
    spent: Usd
    percent: float | None


class UpstreamForecast(Struct, frozen=True, kw_only=True):
    """What a cluster's Kubecost expects of the days to come."""

    cloud_account_id: str
    currency: str
    start: str
    end: str
    expected: Usd
    low: Usd
    high: Usd


class Budgets(Struct, frozen=True, kw_only=True):
    """``budgets``: the organization's own, and beside them what its clusters' Kubecost has.

    ``failures`` says by cluster why its Kubecost could not be asked.
    """

    organization_id: str
    budgets: tuple[BudgetState, ...]
    kubecost_budgets: tuple[UpstreamBudget, ...] = ()
    kubecost_forecasts: tuple[UpstreamForecast, ...] = ()
    failures: dict[str, Failure] = {}


class AlertCause(Struct, frozen=True, kw_only=True):
    """A namespace, by how much it rose an hour, and its share of the rise."""

    namespace: str
    rise: Money
    share: float


class AlertTransition(Struct, frozen=True, kw_only=True):
    """A time that an alert fired, was resolved, or was acknowledged; ``key`` is what it was sent with."""

    state: str
    at: str
    key: str
    summary: str
    resolved_because: str | None
    acknowledged_by: str | None


class Alert(Struct, frozen=True, kw_only=True):
    """An alert as it stands, and its history, the newest first.

    ``unknown_since``: since when it cannot be told whether it still holds. ``figures`` are of when it fired.
    """

    id: str
    kind: str
    severity: str
    state: str
    cloud_account_id: str | None
    budget_id: str | None
    fired_at: str
    changed_at: str
    summary: str
    resolved_because: str | None
    unknown_since: str | None
    figures: dict[str, float | str | None]
    causes: tuple[AlertCause, ...]
    acknowledged_at: str | None
    acknowledged_by: str | None
    note: str | None
    history: tuple[AlertTransition, ...]


class Alerts(Struct, frozen=True, kw_only=True):
    """``alerts``: those that fire first, then the others, the newest first."""

    organization_id: str
    alerts: tuple[Alert, ...]


class ChangeStep(Struct, frozen=True, kw_only=True):
    """One part of a difference; ``before`` and ``after`` are of what changed, in ``unit``."""

    kind: str
    amount: Money
    group: str | None
    resource: str | None
    before: float | None
    after: float | None
    unit: str | None
    because: str | None


class Changes(Struct, frozen=True, kw_only=True):
    """``changes``: the steps add up to ``difference``, ``total_cost - before_cost``."""

    cloud_account_id: str
    window: TimeWindow
    against: TimeWindow
    aggregate: str
    currency: str | None
    before_cost: Usd
    total_cost: Usd
    difference: Usd
    complete: bool
    before_source: SourceState
    source: SourceState
    missing_hours_before: int
    missing_hours: int
    steps: tuple[ChangeStep, ...]


class AnomalyCause(Struct, frozen=True, kw_only=True):
    """A namespace that cost more, and which share of all that cost more it has."""

    namespace: str
    rise: Money
    share: float


class Anomaly(Struct, frozen=True, kw_only=True):
    """An hour that cost more than ``limit_cost``; its steps are those from ``against_hour``."""

    hour: int
    total_cost: Money
    typical_cost: Money
    limit_cost: Money
    mean_cost_before: Money
    against_hour: int | None
    causes: tuple[AnomalyCause, ...]
    steps: tuple[ChangeStep, ...]


class Anomalies(Struct, frozen=True, kw_only=True):
    """``anomalies``: of the hours that are whole; ``unknown_hours`` are not judged."""

    cloud_account_id: str
    window: TimeWindow
    currency: str | None
    hours: int
    unknown_hours: int
    anomalies: tuple[Anomaly, ...]


class HourlyCosts(Struct, frozen=True, kw_only=True, gc=False):
    """Money an hour by component; None is not known. It is a rate, and never added to costs."""

    total: Usd
    cpu: Usd
    ram: Usd
    gpu: Usd
    pv: Usd
    network: Usd
    load_balancer: Usd


class LiveUsage(Struct, frozen=True, kw_only=True, gc=False):
    """What is requested and used; None is not known."""

    cpu_request_cores: float | None
    cpu_usage_cores: float | None
    ram_request_bytes: float | None
    ram_usage_bytes: float | None
    network_bytes_per_second: float | None
    storage_bytes: float | None


class LiveNamespace(Struct, frozen=True, kw_only=True, gc=False):
    namespace: str
    per_hour: HourlyCosts
    usage: LiveUsage


class LiveMoment(Struct, frozen=True, kw_only=True, gc=False):
    """A cluster, or one namespace of it, at one moment (Unix seconds).

    ``total_per_hour`` is that of all namespaces with idle and management; of one namespace it is its own.
    """

    at: int
    complete: bool
    total_per_hour: Usd
    per_hour: HourlyCosts
    idle_per_hour: Usd
    management_per_hour: Usd
    usage: LiveUsage


class LiveNow(LiveMoment, frozen=True, kw_only=True, gc=False):
    """The last moment of which anything is known, with its namespaces."""

    namespaces: tuple[LiveNamespace, ...]


class Live(Struct, frozen=True, kw_only=True):
    """``live``: what a cluster costs an hour, minute by minute.

    ``complete`` says that the last moment is whole and not older than five minutes; ``missing_minutes`` counts those
    before it of which nothing is known.
    """

    cloud_account_id: str
    minutes: int
    namespace: str | None
    currency: str | None
    as_of: int | None
    age_seconds: int | None
    complete: bool
    source: SourceState
    missing_minutes: int
    latest: LiveNow | None
    points: tuple[LiveMoment, ...]


class Projection(Struct, frozen=True, kw_only=True, gc=False):
    """What a whole month will have cost: ``low`` to ``high`` holds it four times in five."""

    total_cost: Usd
    low: Usd
    high: Usd
    method: str
    hours_left: int


class StoredMonth(Struct, frozen=True, kw_only=True, gc=False):
    """One calendar month of a zone, as far as it is stored; ``projection`` is of the running month alone."""

    month: str
    start: str
    end: str
    coverage: float | None
    complete: bool
    costs: DataPoint | None
    projection: Projection | None
    currency: str | None = None
    """What its money is in; None where nothing is stored of it."""


class StoredMonths(Struct, frozen=True, kw_only=True):
    """``k8s_monthly``: the months of one account, the running one last."""

    cloud_account_id: str
    currency: str
    months: tuple[StoredMonth, ...]
    timezone: str = "UTC"
    warnings: tuple[str, ...] = ()


class AccountMonths(Struct, frozen=True):
    """One account's months, or why there are none."""

    cloud_account_id: str
    months: StoredMonths | None = None
    error: Failure | None = None


class MonthsOfAccounts(Struct, frozen=True):
    """``k8s_months``."""

    accounts: tuple[AccountMonths, ...]


class CustomPrices(Struct, frozen=True, kw_only=True):
    """USD, for clusters whose upstream has no prices."""

    core_hour: float | None = None
    ram_gib_hour: float | None = None
    gpu_hour: float | None = None
    storage_gib_hour: float | None = None


class MetricsCluster(Struct, frozen=True, kw_only=True):
    """The label that says which cluster a series is of, and the account's value of it."""

    value: str
    label: str = "cluster_id"


class Source(Struct, frozen=True, kw_only=True):
    """``kubecost_sources``: which upstream an account has, without what is secret about it."""

    cloud_account_id: str
    flavour: str
    url: str
    has_credentials: bool
    has_ca: bool
    custom_prices: CustomPrices | None
    cluster: tuple[str, ...] = ()
    thanos: MetricsCluster | None = None
    currency: str = ""
    managed_by: str = ""
    version: int = 0


OUTDATED = "OM0031"
"""The error code of a source entry that is older than what is there."""


class Sources(Struct, frozen=True):
    """``kubecost_sources``, a page of them; ``after`` asks for the next one, and is None on the last."""

    sources: tuple[Source, ...]
    after: str | None


class PushToken(Struct, frozen=True):
    """``push_tokens/{cloud_account_id}``: a new credential of the account's agent; it is not shown again."""

    cloud_account_id: str
    push_token: str


class CheckedPushToken(Struct, frozen=True):
    """``push_tokens/check``: whose token it is; None where it is nobody's, or not any more."""

    cloud_account_id: str | None


class WantedAnswer(Struct, frozen=True, kw_only=True):
    """One question that an agent is to ask its Kubecost or OpenCost, and to push the answer to.

    ``start`` and ``end`` are Unix seconds. ``asked_at`` goes back with the answer: of two the later question counts.
    """

    kind: str
    start: int
    end: int
    step: str
    aggregate: tuple[str, ...]
    asked_at: int


class Wanted(Struct, frozen=True):
    """``push/{cloud_account_id}/wanted``: what is not known yet, or may have changed, the newest first."""

    cloud_account_id: str
    wanted: tuple[WantedAnswer, ...]


class PushReceipt(Struct, frozen=True):
    """``push/{cloud_account_id}/answers/…``: what became of an answer.

    ``state`` is kept (202), known (the same is there already) or superseded (a later question was answered already).
    ``hours`` is how many hours it tells.
    """

    state: str
    hours: int


class Deleted(Struct, frozen=True):
    deleted: bool


class Backfill(Struct, frozen=True, kw_only=True):
    """``backfills``: how far one is, in hours.

    ``state`` is queued, running, done, incomplete (at its end, with hours that could not be had), failed or cancelled.
    """

    id: str
    cloud_account_id: str
    start: str
    end: str
    state: str
    repair: bool
    hours_total: int
    hours_done: int
    hours_missing: int
    reason: str
    asked_at: str
    updated_at: str


class Backfills(Struct, frozen=True, kw_only=True):
    """``backfills`` of an account: those that are open, and for thirty days those that are not."""

    cloud_account_id: str
    backfills: tuple[Backfill, ...]
