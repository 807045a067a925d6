"""``/metroculus/v2/k8s_expenses`` and ``/metroculus/v2/backfills``: what is stored, and having more of it stored."""

from __future__ import annotations

from msgspec import Struct

from metroculus.metroculus_api.controllers.backfills import BackfillAnswer, BackfillBody, BackfillsController
from metroculus.metroculus_api.controllers.expenses import Expenses, ExpensesController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from metroculus.storage.history import Filters
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Text, Uuid, WindowQuery

GROUPS = ("cluster", "namespace", "controller", "pod", "node", "service", "day", "hour", "month")


class GroupBy(Text):
    """What expenses are summed by."""

    pattern = rf"({'|'.join(GROUPS)}|label:[A-Za-z0-9]([A-Za-z0-9_./-]{{0,251}}[A-Za-z0-9])?)"
    what = f"one of {', '.join(GROUPS)}, or label:NAME"


class RowFilter(Text):
    """A name to filter by: compared, never interpreted. Names of nodes and special entities are names like any."""


class ExpensesQuery(WindowQuery, frozen=True, kw_only=True):
    cloud_account_id: tuple[Uuid, ...]
    group_by: tuple[GroupBy, ...] = ()
    k8s_namespace: tuple[RowFilter, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[RowFilter, ...] = ()


class K8sExpenses(MetroculusHandler):
    """Stored hours, summed by the database (USD)."""

    expenses: ExpensesController

    @operation(needs=Needs.CLUSTER_SECRET, query=ExpensesQuery, answer=Expenses)
    async def get(self, query: ExpensesQuery) -> Expenses:
        filters = Filters(query.k8s_namespace, query.k8s_node, query.k8s_service)
        return await self.expenses.expenses(query.cloud_account_id, self.window_of(query), query.group_by, filters)


class Backfills(MetroculusHandler):
    """Ask for a back-fill, or with a reason for a repair."""

    backfills: BackfillsController

    @operation(needs=Needs.CLUSTER_SECRET, body=BackfillBody, answer=BackfillAnswer, status=202)
    async def post(self, query: Struct, body: BackfillBody) -> BackfillAnswer:
        return await self.backfills.create(body)


class BackfillQuery(Struct, frozen=True, kw_only=True):
    backfill_id: Uuid


class BackfillEntry(MetroculusHandler):
    """How far a back-fill is."""

    backfills: BackfillsController

    @operation(needs=Needs.CLUSTER_SECRET, query=BackfillQuery, answer=BackfillAnswer)
    async def get(self, query: BackfillQuery) -> BackfillAnswer:
        return await self.backfills.get(query.backfill_id)
