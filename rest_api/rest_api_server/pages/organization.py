"""The organizations that are seen, and one of them: its clusters, months, budgets and alerts."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from math import fsum

from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import DEFAULT_WINDOW, Needs
from rest_api.rest_api_server.controllers.alerts import AlertsController
from rest_api.rest_api_server.controllers.budgets import BudgetsController
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.controllers.expenses import ExpensesController
from rest_api.rest_api_server.errors import CODES
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import clusters_table, dates_of
from rest_api.rest_api_server.pages.base import PageHandler
from rest_api.rest_api_server.pages.parts import FEW, WINDOWS, cluster_trouble, in_address, named, part, period_text
from rest_api.rest_api_server.paging import PageQuery, page_of, refuse_pages, whole_of
from tools.tornado_service.operation import NoQuery, operation
from tools.tornado_service.params import Uuid, resolve_window
from tools.tornado_service.streamed import StreamedFile

MONTHS = 6


class Home(PageHandler):
    """The organizations that are seen; where there is one, it is shown."""

    @operation(needs=Needs.READ_COSTS, answer=str, content="text/html", also=(303,))
    async def get(self, query: NoQuery) -> bytes | None:
        found = await self.gate.organizations(self.identity)
        if len(found) == 1:
            self.go(f"/organizations/{found[0].id}")
            return None
        return self.page("home.html", organizations=found, roles=self.identity.roles)


class OrganizationPageQuery(PageQuery, frozen=True, kw_only=True):
    organization_id: Uuid
    format: Format = "json"


class OrganizationPage(PageHandler):
    """An organization: its clusters, months, budgets and alerts."""

    costs: CostsController
    expenses: ExpensesController
    budgets: BudgetsController
    alerts: AlertsController

    @operation(needs=Needs.READ_COSTS, query=OrganizationPageQuery, answer=str, content="text/html", files=MEDIA_TYPES)
    async def get(self, query: OrganizationPageQuery) -> bytes | StreamedFile:
        now = self.service.clock()
        window = resolve_window(query, now, CODES, DEFAULT_WINDOW)
        organization_id, clusters = query.organization_id, await self.gate.clusters(query.organization_id)
        if query.format != "json":
            refuse_pages(query)

            async def table() -> Table:
                found = await self.costs.overview(organization_id, clusters, window, self.request_id)
                return await asyncio.to_thread(lambda: clusters_table(whole_of(found, query, "clusters"), window, now))

            return self.files.file(f"clusters-{dates_of(window)}", query.format, organization_id, table)
        asked = (organization_id, clusters)
        listed, months, budgets, alerts = await asyncio.gather(
            self.costs.overview(organization_id, clusters, window, self.request_id),
            part(self.expenses.monthly(clusters, MONTHS, query.zone, self.request_id)),
            part(self.budgets.budgets(*asked, False, self.request_id)),
            part(self.alerts.alerts(*asked, "firing", self.request_id)),
        )
        organization = await self.gate.organization_named(self.identity, organization_id)
        shown = page_of(listed, query, "clusters")
        return await self.rendered(
            "organization.html",
            organization=organization,
            tab="",
            may_link=self.may(organization_id, Needs.MANAGE_CLUSTERS),
            overview=shown,
            troubles={one.cluster_id: cluster_trouble(one) for one in shown.clusters},
            window=window,
            asked=in_address(query, {"sort": "total_cost"}),
            path=f"/organizations/{organization_id}",
            windows=WINDOWS,
            months=months,
            failing=[one for one in listed.clusters if one.total_cost is None]
            if None in listed.totals.values()
            else [],
            known=known_by_currency(listed.clusters),
            few=FEW,
            named=partial(named, {one.id: one.name for one in clusters}),
            period=period_text,
            budgets=budgets,
            alerts=alerts,
            start=window.zone.iso(window.start),
            end=window.zone.iso(window.end),
        )


def known_by_currency(clusters: Iterable[answers.ClusterSummary]) -> dict[str, float]:
    """What is known of clusters whose totals are not, by currency."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in clusters:
        if one.currency is not None and one.summary is not None and one.summary.known_cost is not None:
            found[one.currency].append(one.summary.known_cost)
    return {currency: fsum(costs) for currency, costs in found.items()}
