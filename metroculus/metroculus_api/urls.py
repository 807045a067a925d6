"""Metroculus' routes."""

from __future__ import annotations

from typing import Any

from metroculus.metroculus_api.handlers.v2 import (
    alerts,
    budgets,
    cache,
    changes,
    chargeback,
    costs,
    history,
    live,
    push,
    sources,
)
from tools.tornado_service.application import Route

ORGANIZATION = r"(?P<organization_id>[^/]+)"
ACCOUNT = r"(?P<cloud_account_id>[^/]+)"


def routes(parts: dict[str, Any], controllers: dict[str, Any]) -> list[Route]:
    """Every route with the one controller that its handler calls."""

    def route(pattern: str, handler: type, *names: str) -> Route:
        return (rf"/metroculus/v2/{pattern}", handler, parts | {name: controllers[name] for name in names})

    return [
        route("kubecost_cluster_costs", costs.ClusterCosts, "costs", "cache"),
        route("k8s_costs", costs.ClusterSummaries, "summaries"),
        route("kubecost_savings", costs.ClusterSavings, "savings", "cache"),
        route("kubecost_assets", costs.ClusterAssets, "inventory", "cache"),
        route("kubecost_metrics", costs.ClusterMetrics, "inventory", "cache"),
        route("k8s_metadata", costs.ClusterMetadata, "inventory", "cache"),
        route("cache_stats", cache.CacheFigures, "cache"),
        route("k8s_expenses", history.K8sExpenses, "expenses"),
        route("k8s_expense_rows", history.K8sExpenseRows, "rows"),
        route("k8s_monthly", history.K8sMonthly, "monthly"),
        route("k8s_months", history.K8sMonths, "monthly"),
        route("changes", changes.CostChanges, "changes"),
        route("anomalies", changes.CostAnomalies, "changes"),
        route("live", live.ClusterLive, "live"),
        route("backfills", history.Backfills, "backfills"),
        route(r"backfills/(?P<backfill_id>[^/]+)", history.BackfillEntry, "backfills"),
        route(f"organizations/{ORGANIZATION}", chargeback.Organizations, "chargeback"),
        route(f"rules/{ORGANIZATION}", chargeback.AllocationRules, "chargeback"),
        route(f"rules/{ORGANIZATION}/preview", chargeback.RulesPreview, "chargeback"),
        route(f"chargeback/{ORGANIZATION}", chargeback.Chargeback, "chargeback"),
        route(rf"chargeback/{ORGANIZATION}/months/(?P<month>[^/]+)/close", chargeback.MonthClose, "chargeback"),
        route(f"budgets/{ORGANIZATION}", budgets.Budgets, "budgets"),
        route(rf"budgets/{ORGANIZATION}/(?P<budget_id>[^/]+)", budgets.BudgetEntry, "budgets"),
        route(f"alerts/{ORGANIZATION}", alerts.Alerts, "alerts"),
        route(rf"alerts/{ORGANIZATION}/(?P<alert_id>[^/]+)/ack", alerts.AlertAck, "alerts"),
        route("push_tokens/check", push.PushTokenCheck, "push"),
        route(f"push_tokens/{ACCOUNT}", push.PushTokens, "push"),
        route(f"push/{ACCOUNT}/wanted", push.PushWanted, "push"),
        route(
            rf"push/{ACCOUNT}/answers/(?P<kind>[^/]+)/(?P<start>[^/]+)/(?P<end>[^/]+)/(?P<step>[^/]+)",
            push.PushAnswers,
            "push",
            "budget",
        ),
        route("kubecost_sources", sources.KubecostSources, "sources"),
        route(f"kubecost_sources/{ACCOUNT}", sources.KubecostSourceEntry, "sources"),
    ]
