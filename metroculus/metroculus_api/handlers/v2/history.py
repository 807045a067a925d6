"""``/metroculus/v2/k8s_expenses`` and ``/metroculus/v2/backfills``: what is stored, and having more of it stored."""

from __future__ import annotations

from msgspec import Struct

from metroculus.metroculus_api.controllers.backfills import BackfillBody, BackfillsController
from metroculus.metroculus_api.controllers.expenses import ExpensesController
from metroculus.metroculus_api.controllers.monthly import MonthlyController
from metroculus.metroculus_api.handlers.v2.base import AccountId, AccountsQuery, MetroculusHandler, Needs
from optscale_client.metroculus_client import structs
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Text, TimeZone, Uuid


class GroupBy(Text):
    """What expenses are summed by."""

    pattern = structs.GROUP_BY_PATTERN
    what = f"one of {', '.join(structs.GROUPS)}, or label:NAME"


class ExpensesQuery(AccountsQuery, frozen=True, kw_only=True):
    group_by: tuple[GroupBy, ...] = ()


class K8sExpenses(MetroculusHandler):
    """Stored hours, summed by the database (USD)."""

    expenses: ExpensesController

    @operation(needs=Needs.CLUSTER_SECRET, query=ExpensesQuery, answer=structs.Expenses)
    async def get(self, query: ExpensesQuery) -> structs.Expenses:
        asked = (query.cloud_account_id, self.window_of(query), query.group_by, query.filters)
        return await self.expenses.expenses(*asked, self.deadline())


class MonthCount(Text):
    pattern = r"[1-9]|1[0-9]|2[0-5]"
    what = "1 to 25"


class MonthlyQuery(Struct, frozen=True, kw_only=True):
    cloud_account_id: Uuid
    months: MonthCount = MonthCount("12")
    timezone: TimeZone = TimeZone("UTC")


class K8sMonthly(MetroculusHandler):
    """Month by month (USD), with where the running month is going."""

    monthly: MonthlyController

    @operation(needs=Needs.CLUSTER_SECRET, query=MonthlyQuery, answer=structs.StoredMonths)
    async def get(self, query: MonthlyQuery) -> structs.StoredMonths:
        return await self.monthly.months(
            query.cloud_account_id, int(query.months), query.timezone.zone, self.deadline()
        )


class MonthsQuery(Struct, frozen=True, kw_only=True):
    cloud_account_id: tuple[AccountId, ...]
    months: MonthCount = MonthCount("12")
    timezone: TimeZone = TimeZone("UTC")


class K8sMonths(MetroculusHandler):
    """Month by month of many clusters at once (USD): each as ``k8s_monthly`` tells it, or why it cannot be told."""

    monthly: MonthlyController

    @operation(needs=Needs.CLUSTER_SECRET, query=MonthsQuery, answer=structs.MonthsOfAccounts)
    async def get(self, query: MonthsQuery) -> structs.MonthsOfAccounts:
        accounts = tuple(dict.fromkeys(query.cloud_account_id))
        return await self.monthly.months_of(accounts, int(query.months), query.timezone.zone, self.deadline())


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
