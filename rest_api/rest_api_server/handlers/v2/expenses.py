"""``/restapi/v2/…/clean_expenses`` and ``…/kubecost/monthly``: what is stored of an organization's clusters."""

from __future__ import annotations

import asyncio

from msgspec import Struct
from msgspec.structs import replace

from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import DEFAULT_WINDOW, Needs, RestHandler
from rest_api.rest_api_server.controllers.expenses import ExpensesController
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import CODES, NOT_FOUND
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import dates_of, months_table
from rest_api.rest_api_server.handlers.v2.clusters import FILTERS, PropertyFilter
from rest_api.rest_api_server.paging import PageQuery, paged, refuse_pages, row_page
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import FilterText, RowFilter, Text, TimeZone, Uuid, resolve_window
from tools.tornado_service.streamed import StreamedFile


class CleanExpensesQuery(PageQuery, frozen=True, kw_only=True):
    format: Format = "json"
    organization_id: Uuid
    cloud_account_id: tuple[Uuid, ...] = ()
    k8s_namespace: tuple[FilterText, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[FilterText, ...] = ()
    filter: tuple[PropertyFilter, ...] = ()


class OrganizationCleanExpenses(RestHandler):
    """Stored expenses of an organization's clusters, and what the clusters say beside them."""

    expenses: ExpensesController

    @operation(needs=Needs.READ_COSTS, query=CleanExpensesQuery, answer=answers.CleanExpenses, files=MEDIA_TYPES)
    async def get(self, query: CleanExpensesQuery) -> answers.CleanExpenses | StreamedFile:
        window = resolve_window(query, self.service.clock(), CODES, DEFAULT_WINDOW)
        clusters = await self.chosen(query)
        filters = {name: values for name in FILTERS if (values := getattr(query, name))}
        if query.format != "json":
            refuse_pages(query, ("sort", "order"))

            async def table() -> Table:
                return await self.expenses.exported(clusters, window, filters, self.request_id)

            name = f"expenses-{dates_of(window)}"
            return self.files.file(name, query.format, query.organization_id, table)
        page = row_page(query)
        found = await self.expenses.clean_expenses(
            query.organization_id, clusters, window, filters, self.request_id, page
        )
        return found if page is not None else await paged(found, query, "clean_expenses")

    async def chosen(self, query: CleanExpensesQuery) -> list[Cluster]:
        """The organization's clusters, or those of them that are named.

        Raises:
            ApiError: 404 for one that is not there, or another's.
        """
        clusters = await self.gate.clusters(query.organization_id)
        known = {cluster.id: cluster for cluster in clusters}
        if any(id not in known for id in query.cloud_account_id):
            raise ApiError(NOT_FOUND)
        return [known[id] for id in query.cloud_account_id] or list(clusters)


class CleanExpenses(OrganizationCleanExpenses):
    """The same, with the organization in the query."""

    async def chosen(self, query: CleanExpensesQuery) -> list[Cluster]:
        await self.gate.organization(self.identity, query.organization_id, self.needs)
        return await super().chosen(query)


class Months(Text):
    pattern = r"[1-9]|1[0-9]|2[0-5]"
    what = "1 to 25"


class MonthlyQuery(Struct, frozen=True, kw_only=True):
    format: Format = "json"
    organization_id: Uuid
    months: Months = Months("12")
    timezone: TimeZone = TimeZone("UTC")


class OrganizationMonthly(RestHandler):
    """Month by month, with month to date and projection."""

    expenses: ExpensesController

    @operation(needs=Needs.READ_COSTS, query=MonthlyQuery, answer=answers.Monthly, files=MEDIA_TYPES)
    async def get(self, query: MonthlyQuery) -> answers.Monthly | StreamedFile:
        clusters = await self.gate.clusters(query.organization_id)
        asked = (clusters, int(query.months), query.timezone.zone, self.request_id)

        async def read() -> answers.Monthly:
            return replace(await self.expenses.monthly(*asked), organization_id=query.organization_id)

        async def table() -> Table:
            return await asyncio.to_thread(months_table, await read(), self.service.clock())

        if query.format == "json":
            return await read()
        return self.files.file(f"months-{query.months}", query.format, query.organization_id, table)
