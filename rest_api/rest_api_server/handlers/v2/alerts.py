"""``/restapi/v2/organizations/{organization_id}/kubecost/alerts``: what fires, and who has seen it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import Needs, RestHandler
from rest_api.rest_api_server.controllers.alerts import AlertsController
from rest_api.rest_api_server.handlers.v2.clusters import OrganizationQuery
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Uuid


class AlertsQuery(OrganizationQuery, frozen=True, kw_only=True):
    state: Literal["firing", "resolved"] | None = None


class AlertQuery(OrganizationQuery, frozen=True, kw_only=True):
    alert_id: Uuid


class AckBody(Struct, frozen=True, forbid_unknown_fields=True):
    note: Annotated[str, Meta(max_length=1000)] | None = None


class Alerts(RestHandler):
    """The organization's alerts with their history, those that fire first."""

    alerts: AlertsController

    @operation(needs=Needs.READ_COSTS, query=AlertsQuery, answer=structs.Alerts)
    async def get(self, query: AlertsQuery) -> structs.Alerts:
        clusters = await self.gate.clusters(query.organization_id)
        return await self.alerts.alerts(query.organization_id, clusters, query.state, self.request_id)


class AlertAck(RestHandler):
    """Say that one has seen an alert that fires."""

    alerts: AlertsController

    @operation(needs=Needs.CHANGE_RULES, query=AlertQuery, body=AckBody, answer=structs.Alert)
    async def post(self, query: AlertQuery, body: AckBody) -> structs.Alert:
        self.tell_audit(change=f"alert {query.alert_id} acknowledged")
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.alert_id, self.actor["user"], body.note)
        return await self.alerts.acknowledge(query.organization_id, clusters, *asked, self.request_id)
