"""Alerts: Metroculus' worker makes them, of the clusters that are linked."""

from __future__ import annotations

from collections.abc import Sequence

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.controllers.organizations import OrganizationController
from rest_api.rest_api_server.directory.model import Cluster


class AlertsController(OrganizationController):
    async def alerts(
        self, organization_id: str, clusters: Sequence[Cluster], state: str | None, request_id: str
    ) -> structs.Alerts:
        """The organization's alerts with their history.

        Raises:
            MetroculusError
        """
        method = self._metroculus.client.get_alerts
        return await self._ask(organization_id, clusters, request_id, method, state, shape=structs.Alerts)

    async def acknowledge(
        self,
        organization_id: str,
        clusters: Sequence[Cluster],
        alert_id: str,
        who: str,
        note: str | None,
        request_id: str,
    ) -> structs.Alert:
        """Note that somebody has seen an alert.

        Raises:
            MetroculusError
        """
        asked = (self._metroculus.client.acknowledge_alert, alert_id, who, note)
        return await self._ask(organization_id, clusters, request_id, *asked, shape=structs.Alert)
