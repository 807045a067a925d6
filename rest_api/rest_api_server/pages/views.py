"""The pages: an organization, and one of its clusters by anything that costs can be grouped by."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Generic, Literal, TypeVar

from msgspec import UNSET, Struct
from msgspec.structs import asdict

from optscale_client.metroculus_client import MetroculusError
from optscale_client.metroculus_client.structs import SourceState
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import DEFAULT_WINDOW, Needs
from rest_api.rest_api_server.controllers.alerts import AlertsController
from rest_api.rest_api_server.controllers.budgets import BudgetsController
from rest_api.rest_api_server.controllers.changes import ChangesController
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.controllers.expenses import ExpensesController
from rest_api.rest_api_server.errors import CODES, map_error
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import MANAGEMENT, clusters_table, costs_table, dates_of
from rest_api.rest_api_server.handlers.v2.clusters import Aggregate
from rest_api.rest_api_server.pages.base import PageHandler
from rest_api.rest_api_server.pages.charts import PARTS, stacked
from rest_api.rest_api_server.paging import PageQuery, page_of, refuse_pages, whole_of
from tools.tornado_service.operation import NoQuery, operation
from tools.tornado_service.params import AgainstQuery, FilterText, RowFilter, Uuid, against_of, resolve_window
from tools.tornado_service.streamed import StreamedFile
from tools.window import DAY

T = TypeVar("T")
WINDOWS = ("24h", "7d", "2w", "today", "yesterday", "week", "lastweek", "month", "lastmonth")
GROUPS = ("namespace", "controller", "pod", "container", "node", "service")
MONTHS = 6
FEW = 10
"""Rows of a list beside the main one."""
HOURLY_SECONDS = 2 * DAY
"""A window of so long is charted by the hour, a longer one by the day."""
SPECIAL = {
    "__idle__": "idle",
    "__unmounted__": "volumes that nobody mounts",
    MANAGEMENT: "cluster management",
}


class Part(Struct, Generic[T], frozen=True):
    """A part of a page: what there is, or why there is nothing."""

    found: T | None
    why: str = ""


async def part(asked: Awaitable[T]) -> Part[T]:
    """A part that may fail by itself, and leaves the others whole."""
    try:
        return Part(await asked)
    except MetroculusError as problem:
        mapped = map_error(problem)
        return Part(None, mapped.reason if mapped is not None else "it cannot be asked now")


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
        (organization,) = [one for one in await self.gate.organizations(self.identity) if one.id == organization_id]
        shown = page_of(listed, query, "clusters")
        return self.page(
            "organization.html",
            organization=organization,
            overview=shown,
            troubles={one.cluster_id: cluster_trouble(one) for one in shown.clusters},
            window=window,
            asked=_asked(query),
            path=f"/organizations/{organization_id}",
            windows=WINDOWS,
            months=months,
            budgets=budgets,
            alerts=alerts,
            start=window.zone.iso(window.start),
            end=window.zone.iso(window.end),
        )


class ClusterPageQuery(AgainstQuery, frozen=True, kw_only=True):
    cluster_id: Uuid
    by: tuple[Aggregate, ...] = (Aggregate("namespace"),)
    k8s_namespace: tuple[FilterText, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[FilterText, ...] = ()
    idle: Literal["separate", "share", "hide"] = "separate"
    sort: Literal["name", "total_cost", "cpu_cost", "ram_cost", "gpu_cost", "pv_cost", "network_cost"] = "total_cost"
    order: Literal["asc", "desc"] | None = None
    page: Literal["1", "all"] = "1"
    format: Format = "json"


FILTERS = ("k8s_namespace", "k8s_node", "k8s_service")
SHOWN_ROWS = 200


class ClusterPage(PageHandler):
    """One cluster: total, over time, by namespace or anything else, what changed, what could be saved."""

    costs: CostsController
    changes: ChangesController

    @operation(needs=Needs.READ_COSTS, query=ClusterPageQuery, answer=str, content="text/html", files=MEDIA_TYPES)
    async def get(self, query: ClusterPageQuery) -> bytes | StreamedFile:
        now = self.service.clock()
        window = resolve_window(query, now, CODES, DEFAULT_WINDOW)
        ranked = PageQuery(sort=query.sort, order=query.order)
        filters = {name: value for name in FILTERS if (value := getattr(query, name))}
        if query.format != "json":
            asked = {"aggregate": query.by, "idle": query.idle, **filters}

            async def table() -> Table:
                by = (self.cluster, window, query.by, self.request_id)
                told = await self.costs.costs(*by, idle=query.idle, **filters)
                return await asyncio.to_thread(lambda: costs_table(whole_of(told, ranked, "costs"), asked, now))

            name = f"costs-{self.cluster.name}-{dates_of(window)}"
            return self.files.file(name, query.format, self.cluster.organization_id, table)
        step = "hour" if window.end - window.start <= HOURLY_SECONDS else "day"
        before = against_of(query, window, now, CODES)
        statement, timeline, changes, savings = await asyncio.gather(
            part(self.costs.costs(self.cluster, window, query.by, self.request_id, idle=query.idle, **filters)),
            part(self.costs.costs(self.cluster, window, ("namespace",), self.request_id, step=step, **filters)),
            part(self.changes.changes(self.cluster, window, before, ("namespace",), self.request_id)),
            part(self.costs.optimization(self.cluster, window, self.request_id)),
        )
        (organization,) = [
            one for one in await self.gate.organizations(self.identity) if one.id == self.cluster.organization_id
        ]
        return self.page(
            "cluster.html",
            organization=organization,
            cluster=self.cluster,
            path=f"/clusters/{self.cluster.id}",
            asked=_asked(query),
            query=query,
            filters=[(name, value) for name in FILTERS for value in getattr(query, name)],
            window=window,
            windows=WINDOWS,
            groups=GROUPS,
            statement=statement,
            rows=_rows(statement.found, ranked, query.page == "all") if statement.found is not None else (),
            special=_special(statement.found, query.idle) if statement.found is not None else (),
            parts=_parts(statement.found) if statement.found is not None else (),
            troubles=troubles_of(statement.found) if statement.found is not None else (),
            chart=stacked(timeline.found.data_points) if timeline.found is not None else None,
            step=step,
            timeline=timeline,
            changes=changes,
            savings=savings,
            recommendations=sorted(savings.found.recommendations, key=lambda one: -one.monthly_saving)
            if savings.found is not None
            else (),
            few=FEW,
            start=window.zone.iso(window.start),
            end=window.zone.iso(window.end),
        )


def _asked(query: Struct) -> dict[str, Any]:
    """What stands in the page's address, so that links keep it."""
    left_out = ("organization_id", "cluster_id", "format", "cursor", "limit", "page")
    default = {"by": ("namespace",), "idle": "separate", "sort": "total_cost"}
    return {
        name: value
        for name, value in asdict(query).items()
        if name not in left_out and value not in (None, (), UNSET) and value != default.get(name)
    }


def _rows(answer: answers.ClusterCosts, ranked: PageQuery, every: bool) -> tuple[Any, ...]:
    rows = whole_of(answer, ranked, "costs").costs
    return rows if every else rows[:SHOWN_ROWS]


def _parts(answer: answers.ClusterCosts) -> list[tuple[str, str]]:
    """The components that are a column: all of which there is any, or something is not known."""
    return [
        (name, title)
        for name, title in PARTS
        if name != "management_cost" and any(getattr(row, name) != 0 for row in (*answer.costs, answer.summary))
    ]


def _special(answer: answers.ClusterCosts, idle: str) -> list[tuple[str, float | None]]:
    """What the total holds beside the rows, in the field's words."""
    own = {**answer.special, MANAGEMENT: answer.summary.management_cost}
    if idle == "hide":
        own["__idle__"] = answer.idle_cost if answer.idle_cost is not None else 0.0
    return [(SPECIAL.get(name, name.strip("_")), cost) for name, cost in sorted(own.items()) if cost != 0]


def troubles_of(answer: answers.ClusterStatement) -> list[str]:
    """Why a statement is not all that happened; empty where it is complete."""
    found = [] if answer.complete else _source_troubles(answer.sources) or ["a component is not known"]
    if answer.not_covered:
        found.append(f"no source that is configured tells {', '.join(answer.not_covered)}: totals are of the rest")
    return found


def cluster_trouble(one: answers.ClusterSummary) -> str:
    """The same of a cluster in a list, in one line."""
    if one.error is not None:
        return one.error.reason
    found = [] if one.complete else _source_troubles(one.sources) or ["a component is not known"]
    if one.not_covered:
        found.append(f"{', '.join(one.not_covered)} not told")
    return "; ".join(found)


def _source_troubles(sources: tuple[SourceState, ...]) -> list[str]:
    found = []
    for source in sources:
        if source.status not in ("ok", "not_configured"):
            coverage = source.coverage
            known = f"knows {coverage:.1%} of the time" if coverage is not None and coverage < 1 else source.status
            found.append(f"{source.name}: {', '.join(filter(None, (known, source.error, *source.warnings)))}")
    return found
