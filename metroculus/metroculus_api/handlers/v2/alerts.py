"""``/metroculus/v2/alerts``: what fires of an organization, and what did."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from metroculus.metroculus_api.controllers.alerts import AlertsController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from metroculus.metroculus_api.handlers.v2.chargeback import OrganizationQuery
from optscale_client.metroculus_client import structs
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Uuid


class AlertsQuery(OrganizationQuery, frozen=True, kw_only=True):
    state: Literal["firing", "resolved"] | None = None


class AlertQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid
    alert_id: Uuid


class AckBody(Struct, frozen=True, forbid_unknown_fields=True):
    acknowledged_by: Annotated[str, Meta(min_length=1, max_length=200)]
    note: Annotated[str, Meta(max_length=1000)] | None = None


class Alerts(MetroculusHandler):
    """Alerts with their history, those that fire first; the operator's own are of an organization of zeros."""

    alerts: AlertsController

    @operation(needs=Needs.CLUSTER_SECRET, query=AlertsQuery, answer=structs.Alerts)
    async def get(self, query: AlertsQuery) -> structs.Alerts:
        return await self.alerts.alerts(query.organization_id, query.state, self.deadline())


class AlertAck(MetroculusHandler):
    """Say that somebody has seen an alert that fires."""

    alerts: AlertsController

    @operation(needs=Needs.CLUSTER_SECRET, query=AlertQuery, body=AckBody, answer=structs.Alert)
    async def post(self, query: AlertQuery, body: AckBody) -> structs.Alert:
        self.tell_audit(organization_id=str(query.organization_id), change=f"alert {query.alert_id} acknowledged")
        asked = (query.organization_id, query.alert_id, body.acknowledged_by, body.note)
        return await self.alerts.acknowledge(*asked, self.deadline())
