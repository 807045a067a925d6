"""``/restapi/v2/organizations/{organization_id}/kubecost/budgets``: what may be spent, held against what is."""

from __future__ import annotations

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import Needs, RestHandler
from rest_api.rest_api_server.controllers.budgets import BudgetsController
from rest_api.rest_api_server.handlers.v2.clusters import OrganizationQuery
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Flag, Text, Uuid


class BudgetsQuery(OrganizationQuery, frozen=True, kw_only=True):
    upstream: Flag = Flag("true")


class BudgetQuery(OrganizationQuery, frozen=True, kw_only=True):
    budget_id: Uuid


class BudgetChangeQuery(BudgetQuery, frozen=True, kw_only=True):
    version: Text | None = None


class Budgets(RestHandler):
    """The organization's budgets in their running periods, and beside them those that its Kubecost keep."""

    budgets: BudgetsController

    @operation(needs=Needs.READ_COSTS, query=BudgetsQuery, answer=structs.Budgets)
    async def get(self, query: BudgetsQuery) -> structs.Budgets:
        clusters = await self.gate.clusters(query.organization_id)
        upstream = query.upstream == "true"
        return await self.budgets.budgets(query.organization_id, clusters, upstream, self.request_id)

    @operation(
        needs=Needs.CHANGE_RULES, query=OrganizationQuery, body=structs.Budget, answer=structs.BudgetState, status=201
    )
    async def post(self, query: OrganizationQuery, body: structs.Budget) -> structs.BudgetState:
        self.tell_audit(change="a new budget")
        clusters = await self.gate.clusters(query.organization_id)
        return await self.budgets.create(query.organization_id, clusters, body, self.request_id)


class BudgetEntry(RestHandler):
    """One budget."""

    budgets: BudgetsController

    @operation(needs=Needs.READ_COSTS, query=BudgetQuery, answer=structs.BudgetState)
    async def get(self, query: BudgetQuery) -> structs.BudgetState:
        clusters = await self.gate.clusters(query.organization_id)
        return await self.budgets.budget(query.organization_id, clusters, query.budget_id, self.request_id)

    @operation(needs=Needs.CHANGE_RULES, query=BudgetChangeQuery, body=structs.BudgetChange, answer=structs.BudgetState)
    async def patch(self, query: BudgetChangeQuery, body: structs.BudgetChange) -> structs.BudgetState:
        self.tell_audit(change=f"budget {query.budget_id}")
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, query.budget_id, body, query.version, self.request_id)
        return await self.budgets.change(*asked)

    @operation(needs=Needs.CHANGE_RULES, query=BudgetQuery, answer=structs.BudgetState)
    async def delete(self, query: BudgetQuery) -> structs.BudgetState:
        self.tell_audit(change=f"no budget {query.budget_id}")
        clusters = await self.gate.clusters(query.organization_id)
        return await self.budgets.delete(query.organization_id, clusters, query.budget_id, self.request_id)
