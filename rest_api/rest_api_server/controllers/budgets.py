"""Budgets: Metroculus keeps them, and holds them against the clusters that are linked now."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.controllers.organizations import OrganizationController
from rest_api.rest_api_server.directory.model import Cluster


class BudgetsController(OrganizationController):
    async def budgets(
        self, organization_id: str, clusters: Sequence[Cluster], upstream: bool, request_id: str
    ) -> structs.Budgets:
        """Every budget in its running period.

        Raises:
            MetroculusError
        """
        method = self._metroculus.client.get_budgets
        return await self._ask(organization_id, clusters, request_id, method, upstream, shape=structs.Budgets)

    async def budget(
        self, organization_id: str, clusters: Sequence[Cluster], budget_id: str, request_id: str
    ) -> structs.BudgetState:
        """One budget.

        Raises:
            MetroculusError
        """
        method = self._metroculus.client.get_budget
        return await self._ask(organization_id, clusters, request_id, method, budget_id, shape=structs.BudgetState)

    async def create(
        self, organization_id: str, clusters: Sequence[Cluster], budget: structs.Budget, request_id: str
    ) -> structs.BudgetState:
        """A new budget.

        Raises:
            MetroculusError
        """
        method, body = self._metroculus.client.create_budget, msgspec.to_builtins(budget)
        return await self._ask(organization_id, clusters, request_id, method, body, shape=structs.BudgetState)

    async def change(
        self,
        organization_id: str,
        clusters: Sequence[Cluster],
        budget_id: str,
        change: structs.BudgetChange,
        version: str | None,
        request_id: str,
    ) -> structs.BudgetState:
        """Some of a budget other than it was.

        Args:
            version: of the budget that the change was made from; None to change it as it is.

        Raises:
            MetroculusError
        """
        asked = (self._metroculus.client.change_budget, budget_id, msgspec.to_builtins(change), version)
        return await self._ask(organization_id, clusters, request_id, *asked, shape=structs.BudgetState)

    async def delete(
        self, organization_id: str, clusters: Sequence[Cluster], budget_id: str, request_id: str
    ) -> structs.BudgetState:
        """Remove a budget; it is answered as it was last.

        Raises:
            MetroculusError
        """
        method = self._metroculus.client.delete_budget
        return await self._ask(organization_id, clusters, request_id, method, budget_id, shape=structs.BudgetState)
