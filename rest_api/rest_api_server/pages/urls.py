"""The routes of the pages."""

from __future__ import annotations

from collections.abc import Callable

from rest_api.rest_api_server.pages import (
    assets,
    budgets,
    chargeback,
    cluster,
    joining,
    organization,
    savings,
    signing,
)
from tools.tornado_service.application import Route

ORGANIZATION = r"/organizations/(?P<organization_id>[^/]+)"
CLUSTER = r"/clusters/(?P<cluster_id>[^/]+)"


def page_routes(route: Callable[..., Route]) -> list[Route]:
    """Every page; ``route`` takes a pattern, a handler and the names of the controllers that it calls."""
    return [
        route("/", organization.Home),
        route("/sign-in", signing.SignIn),
        route("/sign-out", signing.SignOut),
        route(r"/static/(?P<name>[^/]+)", assets.Static),
        route(ORGANIZATION, organization.OrganizationPage, "costs", "expenses", "budgets", "alerts"),
        route(rf"{ORGANIZATION}/chargeback", chargeback.ChargebackPage, "chargebacks"),
        route(rf"{ORGANIZATION}/chargeback/preview", chargeback.PreviewRules, "chargebacks"),
        route(rf"{ORGANIZATION}/chargeback/rules", chargeback.SaveRules, "chargebacks"),
        route(rf"{ORGANIZATION}/chargeback/close", chargeback.CloseMonth, "chargebacks"),
        route(rf"{ORGANIZATION}/budgets", budgets.BudgetsPage, "budgets"),
        route(rf"{ORGANIZATION}/budgets/(?P<budget_id>[^/]+)", budgets.BudgetPage, "budgets"),
        route(rf"{ORGANIZATION}/budgets/(?P<budget_id>[^/]+)/delete", budgets.DeleteBudget, "budgets"),
        route(rf"{ORGANIZATION}/alerts", budgets.AlertsPage, "alerts"),
        route(rf"{ORGANIZATION}/alerts/(?P<alert_id>[^/]+)/ack", budgets.AcknowledgeAlert, "alerts"),
        route(rf"{ORGANIZATION}/clusters", joining.ClustersPage, "costs", "links", "gateway_url"),
        route(CLUSTER, cluster.ClusterPage, "costs", "changes", "live", "backfills"),
        route(rf"{CLUSTER}/savings", savings.SavingsPage, "costs"),
        route(rf"{CLUSTER}/assets", savings.AssetsPage, "costs"),
        route(rf"{CLUSTER}/arrival", joining.ArrivalPart, "costs"),
        route(rf"{CLUSTER}/push-token", joining.PushTokenPage, "costs", "links", "gateway_url"),
        route(rf"{CLUSTER}/unlink", joining.UnlinkPage, "costs", "links", "gateway_url"),
    ]
