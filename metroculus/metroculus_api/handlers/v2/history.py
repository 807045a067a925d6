"""``/metroculus/v2/k8s_expenses`` and ``/metroculus/v2/backfills``: what is stored, and having more of it stored."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from metroculus.codes import INVALID
from metroculus.cost_model.grouping import TIMES
from metroculus.metroculus_api.controllers.backfills import BackfillBody, BackfillsController
from metroculus.metroculus_api.controllers.expense_rows import ExpenseRowsController, Position, RowsQuestion
from metroculus.metroculus_api.controllers.expenses import ExpensesController
from metroculus.metroculus_api.controllers.monthly import MonthlyController
from metroculus.metroculus_api.handlers.v2.base import AccountId, AccountsQuery, MetroculusHandler, Needs
from metroculus.storage.history import Page
from optscale_client.metroculus_client import structs
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Text, TimeZone, Uuid

BY_CLUSTER = "by cluster, and not by time: group_by cluster, and no hour, day or month"


class GroupBy(Text):
    """What expenses are summed by."""

    pattern = structs.GROUP_BY_PATTERN
    what = f"one of {', '.join(structs.GROUPS)}, or label:NAME"


class RowLimit(Text):
    pattern = r"[1-9][0-9]{0,5}"
    what = "a whole number from 1 to 999999"


class Offset(Text):
    pattern = r"0|[1-9][0-9]{0,5}"
    what = "a whole number from 0 to 999999"


class ExpensesQuery(AccountsQuery, frozen=True, kw_only=True):
    group_by: tuple[GroupBy, ...] = ()
    limit: RowLimit | None = None
    offset: Offset | None = None
    sort: (
        Literal["total_cost", "cpu_cost", "ram_cost", "gpu_cost", "pv_cost", "network_cost", "load_balancer_cost"]
        | None
    ) = None
    order: Literal["asc", "desc"] | None = None

    @property
    def page(self) -> Page | None:
        """Raises: ApiError: a page of rows that are summed over accounts."""
        if self.limit is None:
            if self.offset or self.sort or self.order:
                raise ApiError(INVALID, "offset, sort and order are of a page: give a limit", ["limit"])
            return None
        if "cluster" not in self.group_by or not TIMES.isdisjoint(self.group_by):
            raise ApiError(INVALID, f"a page is of rows {BY_CLUSTER}", ["group_by", "limit"])
        by = (self.sort or "total_cost").removesuffix("_cost")
        return Page(by, self.order != "asc", int(self.offset or 0), int(self.limit))


class K8sExpenses(MetroculusHandler):
    """Stored hours, summed by the database (USD)."""

    expenses: ExpensesController

    @operation(needs=Needs.CLUSTER_SECRET, query=ExpensesQuery, answer=structs.Expenses)
    async def get(self, query: ExpensesQuery) -> structs.Expenses:
        asked = (query.cloud_account_id, self.window_of(query), query.group_by, query.filters)
        return await self.expenses.expenses(*asked, self.deadline(), query.page)


class PageRows(Text):
    pattern = r"[1-9][0-9]{0,3}|10000"
    what = "a whole number from 1 to 10000"


class RowCursor(Text):
    """What the last page gave as ``next_cursor``."""

    pattern = r"[A-Za-z0-9_-]{1,40000}"
    what = "the next_cursor of an earlier answer"
    longest = 40_000

    @property
    def position(self) -> Position:
        """Raises: ApiError"""
        try:
            return Position.read(self)
        except ValueError as problem:
            raise ApiError(INVALID, f"cursor {problem}", ["cursor"]) from None


class ExpenseRowsQuery(AccountsQuery, frozen=True, kw_only=True):
    group_by: tuple[GroupBy, ...] = (GroupBy("cluster"),)
    limit: PageRows = PageRows("1000")
    cursor: RowCursor | None = None


class K8sExpenseRows(MetroculusHandler):
    """Stored hours, summed by the database, page after page of what was committed when the first page was asked for."""

    rows: ExpenseRowsController

    @operation(needs=Needs.CLUSTER_SECRET, query=ExpenseRowsQuery, answer=structs.ExpenseRows)
    async def get(self, query: ExpenseRowsQuery) -> structs.ExpenseRows:
        if "cluster" not in query.group_by or not TIMES.isdisjoint(query.group_by):
            raise ApiError(INVALID, f"rows are {BY_CLUSTER}", ["group_by"])
        position = query.cursor.position if query.cursor is not None else None
        question = RowsQuestion(query.cloud_account_id, self.window_of(query), query.group_by, query.filters)
        return await self.rows.page(question, position, int(query.limit), self.deadline(), self.service.clock())


class MonthCount(Text):
    pattern = r"[1-9]|1[0-9]|2[0-5]"
    what = "1 to 25"


class LastMonths(Struct, frozen=True, kw_only=True):
    months: MonthCount = MonthCount("12")
    timezone: TimeZone = TimeZone("UTC")


class MonthlyQuery(LastMonths, frozen=True, kw_only=True):
    cloud_account_id: Uuid


class K8sMonthly(MetroculusHandler):
    """Month by month (USD), with where the running month is going."""

    monthly: MonthlyController

    @operation(needs=Needs.CLUSTER_SECRET, query=MonthlyQuery, answer=structs.StoredMonths)
    async def get(self, query: MonthlyQuery) -> structs.StoredMonths:
        return await self.monthly.months(
            query.cloud_account_id, int(query.months), query.timezone.zone, self.deadline()
        )


class MonthsQuery(LastMonths, frozen=True, kw_only=True):
    cloud_account_id: tuple[AccountId, ...]


class K8sMonths(MetroculusHandler):
    """Month by month of many clusters at once (USD): each as ``k8s_monthly`` tells it, or why it cannot be told."""

    monthly: MonthlyController

    @operation(needs=Needs.CLUSTER_SECRET, query=MonthsQuery, answer=structs.MonthsOfAccounts)
    async def get(self, query: MonthsQuery) -> structs.MonthsOfAccounts:
        return await self.monthly.months_of(
            query.cloud_account_id, int(query.months), query.timezone.zone, self.deadline()
        )


class BackfillsQuery(Struct, frozen=True, kw_only=True):
    cloud_account_id: Uuid


class Backfills(MetroculusHandler):
    """Ask for a back-fill, or with a reason for a repair; and list an account's."""

    backfills: BackfillsController

    @operation(needs=Needs.CLUSTER_SECRET, query=BackfillsQuery, answer=structs.Backfills)
    async def get(self, query: BackfillsQuery) -> structs.Backfills:
        return await self.backfills.listed(query.cloud_account_id, self.deadline())

    @operation(needs=Needs.CLUSTER_SECRET, body=BackfillBody, answer=structs.Backfill, status=202)
    async def post(self, query: Struct, body: BackfillBody) -> structs.Backfill:
        self.tell_audit(cloud_account_id=body.cloud_account_id, change="repair" if body.repair else "backfill")
        return await self.backfills.create(body, self.deadline())


class BackfillQuery(Struct, frozen=True, kw_only=True):
    backfill_id: Uuid


class BackfillEntry(MetroculusHandler):
    """How far a back-fill is; and ending it."""

    backfills: BackfillsController

    @operation(needs=Needs.CLUSTER_SECRET, query=BackfillQuery, answer=structs.Backfill)
    async def get(self, query: BackfillQuery) -> structs.Backfill:
        return await self.backfills.get(query.backfill_id, self.deadline())

    @operation(needs=Needs.CLUSTER_SECRET, query=BackfillQuery, answer=structs.Backfill)
    async def delete(self, query: BackfillQuery) -> structs.Backfill:
        return await self.backfills.cancel(query.backfill_id, self.deadline())
