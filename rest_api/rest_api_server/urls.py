"""The REST API's routes, the pages', and the second table of older paths over the same controllers."""

from __future__ import annotations

from typing import Any

from rest_api.rest_api_server.handlers.v1 import kubecent
from rest_api.rest_api_server.handlers.v2 import (
    alerts,
    backfills,
    budgets,
    changes,
    chargeback,
    clusters,
    expenses,
    live,
    organizations,
)
from rest_api.rest_api_server.pages.urls import page_routes
from tools.tornado_service.application import Route

OWNER = r"/restapi/v2/organizations/(?P<organization_id>[^/]+)"
ORGANIZATION = rf"{OWNER}/kubecost/clusters"
CLUSTER = r"/restapi/v2/kubecost/clusters/(?P<cluster_id>[^/]+)"
NAMED = r"/api/v1/costs/kubernetes/(?P<cluster>[^/]+)"


def routes(parts: dict[str, Any], controllers: dict[str, Any]) -> list[Route]:
    """Every route with the controllers that its handler calls."""

    def route(pattern: str, handler: type, *names: str) -> Route:
        return (pattern, handler, parts | {name: controllers[name] for name in names})

    return [
        *page_routes(route),
        route(r"/restapi/v2/organizations", organizations.Organizations),
        route(OWNER, organizations.SeenOrganization),
        route(ORGANIZATION, clusters.OrganizationClusters, "costs", "links"),
        route(rf"{ORGANIZATION}/(?P<cluster_id>[^/]+)", clusters.OrganizationCluster, "links"),
        route(rf"{ORGANIZATION}/(?P<cluster_id>[^/]+)/push_token", clusters.ClusterPushToken, "links"),
        route(rf"{OWNER}/kubecost/monthly", expenses.OrganizationMonthly, "expenses"),
        route(rf"{OWNER}/kubecost/allocation_rules", chargeback.AllocationRules, "chargebacks"),
        route(rf"{OWNER}/kubecost/allocation_rules/preview", chargeback.AllocationRulesPreview, "chargebacks"),
        route(rf"{OWNER}/kubecost/chargeback", chargeback.Chargeback, "chargebacks"),
        route(rf"{OWNER}/kubecost/budgets", budgets.Budgets, "budgets"),
        route(rf"{OWNER}/kubecost/budgets/(?P<budget_id>[^/]+)", budgets.BudgetEntry, "budgets"),
        route(rf"{OWNER}/kubecost/alerts", alerts.Alerts, "alerts"),
        route(rf"{OWNER}/kubecost/alerts/(?P<alert_id>[^/]+)/ack", alerts.AlertAck, "alerts"),
        route(rf"{OWNER}/kubecost/months/(?P<month>[^/]+)/close", chargeback.MonthClose, "chargebacks"),
        route(rf"{OWNER}/clean_expenses", expenses.OrganizationCleanExpenses, "expenses"),
        route(r"/restapi/v2/clean_expenses", expenses.CleanExpenses, "expenses"),
        route(rf"{CLUSTER}/costs", clusters.ClusterCosts, "costs", "answers"),
        route(rf"{CLUSTER}/namespaces", clusters.ClusterNamespaces, "costs", "answers"),
        route(rf"{CLUSTER}/namespaces/(?P<namespace>[^/]+)/workloads", clusters.NamespaceWorkloads, "costs", "answers"),
        route(rf"{CLUSTER}/assets", clusters.ClusterAssets, "costs", "answers"),
        route(rf"{CLUSTER}/metrics", clusters.ClusterMetrics, "costs", "metrics", "answers"),
        route(rf"{CLUSTER}/changes", changes.ClusterChanges, "changes"),
        route(rf"{CLUSTER}/anomalies", changes.ClusterAnomalies, "changes"),
        route(rf"{CLUSTER}/live", live.ClusterLive, "live"),
        route(rf"{CLUSTER}/backfills", backfills.ClusterBackfills, "backfills"),
        route(rf"{CLUSTER}/optimization", clusters.ClusterOptimization, "costs", "answers"),
        (r"/api/v1/health", kubecent.KubecentHealth, {}),
        route(r"/api/v1/cost/namespaces", kubecent.KubecentNamespaces, "costs", "answers"),
        route(r"/api/v1/cost/pods", kubecent.KubecentPods, "costs", "answers"),
        route(r"/api/v1/cost/monthly", kubecent.KubecentMonthly, "expenses"),
        route(r"/api/v1/savings/recommendations", kubecent.KubecentRecommendations, "costs", "answers"),
        route(NAMED, kubecent.KubernetesCosts, "costs", "answers"),
        route(rf"{NAMED}/namespaces", kubecent.KubernetesNamespaces, "costs", "answers"),
        route(rf"{NAMED}/workloads", kubecent.KubernetesWorkloads, "costs", "answers"),
        route(rf"{NAMED}/optimization", kubecent.KubernetesOptimization, "costs", "answers"),
    ]
