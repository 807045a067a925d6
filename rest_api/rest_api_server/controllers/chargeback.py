"""Allocation rules and chargebacks: Metroculus keeps and reckons them, over the clusters that are linked now."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.controllers.organizations import OrganizationController
from rest_api.rest_api_server.directory.model import Cluster


class ChargebackController(OrganizationController):
    async def rules(
        self, organization_id: str, clusters: Sequence[Cluster], request_id: str
    ) -> structs.AllocationRules:
        """Every version of the rules.

        Raises:
            MetroculusError
        """
        method = self._metroculus.client.get_rules
        return await self._ask(organization_id, clusters, request_id, method, shape=structs.AllocationRules)

    async def put_rules(
        self,
        organization_id: str,
        clusters: Sequence[Cluster],
        rules: structs.Rules,
        version: str | None,
        request_id: str,
    ) -> structs.AllocationRules:
        """Rules that hold from a month on.

        Args:
            version: of the rules that these were made from; None to replace whatever is there.

        Raises:
            MetroculusError
        """
        asked = (self._metroculus.client.put_rules, msgspec.to_builtins(rules), version)
        return await self._ask(organization_id, clusters, request_id, *asked, shape=structs.AllocationRules)

    async def preview(
        self,
        organization_id: str,
        clusters: Sequence[Cluster],
        month: str,
        by: str,
        rules: structs.Rules,
        request_id: str,
    ) -> structs.ChargebackPreview:
        """A month under other rules.

        Raises:
            MetroculusError
        """
        asked = (self._metroculus.client.preview_rules, month, msgspec.to_builtins(rules), by)
        return await self._ask(organization_id, clusters, request_id, *asked, shape=structs.ChargebackPreview)

    async def chargeback(
        self, organization_id: str, clusters: Sequence[Cluster], month: str, by: str, request_id: str
    ) -> structs.Chargeback:
        """A month row by row.

        Raises:
            MetroculusError
        """
        asked = (self._metroculus.client.get_chargeback, month, by)
        return await self._ask(organization_id, clusters, request_id, *asked, shape=structs.Chargeback)

    async def close(
        self, organization_id: str, clusters: Sequence[Cluster], month: str, why: str | None, request_id: str
    ) -> structs.Chargeback:
        """Freeze a month.

        Raises:
            MetroculusError
        """
        asked = (self._metroculus.client.close_month, month, why)
        return await self._ask(organization_id, clusters, request_id, *asked, shape=structs.Chargeback)
