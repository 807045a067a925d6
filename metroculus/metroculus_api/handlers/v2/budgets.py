"""``/metroculus/v2/budgets``: what an organization may spend, held against what it does."""

from __future__ import annotations

from msgspec import Struct

from metroculus.cost_model.budgets import Budget
from metroculus.metroculus_api.controllers.budgets import BudgetsController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from metroculus.metroculus_api.handlers.v2.chargeback import OrganizationQuery
from optscale_client.metroculus_client import structs
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Flag, Text, Uuid


class BudgetsQuery(OrganizationQuery, frozen=True, kw_only=True):
    upstream: Flag = Flag("true")


class BudgetQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid
    budget_id: Uuid


class BudgetChangeQuery(BudgetQuery, frozen=True, kw_only=True):
    version: Text | None = None


class Budgets(MetroculusHandler):
    """Budgets in their running periods, and beside them what the clusters' Kubecost keep themselves."""

    budgets: BudgetsController

    @operation(needs=Needs.CLUSTER_SECRET, query=BudgetsQuery, answer=structs.Budgets)
    async def get(self, query: BudgetsQuery) -> structs.Budgets:
        return await self.budgets.budgets(query.organization_id, query.upstream == "true", self.deadline())

    @operation(needs=Needs.CLUSTER_SECRET, query=OrganizationQuery, body=Budget, answer=structs.BudgetState, status=201)
    async def post(self, query: OrganizationQuery, body: Budget) -> structs.BudgetState:
        self.tell_audit(organization_id=str(query.organization_id), change="a new budget")
        return await self.budgets.create(query.organization_id, body, self.deadline())


class BudgetEntry(MetroculusHandler):
    """One budget."""

    budgets: BudgetsController

    @operation(needs=Needs.CLUSTER_SECRET, query=BudgetQuery, answer=structs.BudgetState)
    async def get(self, query: BudgetQuery) -> structs.BudgetState:
        return await self.budgets.budget(query.organization_id, query.budget_id, self.deadline())

    @operation(
        needs=Needs.CLUSTER_SECRET, query=BudgetChangeQuery, body=structs.BudgetChange, answer=structs.BudgetState
    )
    async def patch(self, query: BudgetChangeQuery, body: structs.BudgetChange) -> structs.BudgetState:
        self.tell_audit(organization_id=str(query.organization_id), change=f"budget {query.budget_id}")
        asked = (query.organization_id, query.budget_id, body, query.version)
        return await self.budgets.change(*asked, self.deadline())

    @operation(needs=Needs.CLUSTER_SECRET, query=BudgetQuery, answer=structs.BudgetState)
    async def delete(self, query: BudgetQuery) -> structs.BudgetState:
        self.tell_audit(organization_id=str(query.organization_id), change=f"no budget {query.budget_id}")
        return await self.budgets.delete(query.organization_id, query.budget_id, self.deadline())
