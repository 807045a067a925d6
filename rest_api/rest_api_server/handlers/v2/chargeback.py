"""``/restapi/v2/organizations/{organization_id}/kubecost/allocation_rules`` and ``…/chargeback``."""

from __future__ import annotations

import asyncio
from typing import Annotated

from msgspec import Meta, Struct

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import Needs, RestHandler
from rest_api.rest_api_server.controllers.chargeback import ChargebackController
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import chargeback_table
from rest_api.rest_api_server.handlers.v2.clusters import OrganizationQuery
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Month, Text
from tools.tornado_service.streamed import StreamedFile


class By(Text):
    pattern = structs.CHARGEBACK_BY_PATTERN
    what = "cost_center, namespace, cluster, or label:NAME"


class RulesQuery(OrganizationQuery, frozen=True, kw_only=True):
    version: Text | None = None


class ChargebackQuery(OrganizationQuery, frozen=True, kw_only=True):
    month: Month
    by: By = By("cost_center")


class ChargebackFileQuery(ChargebackQuery, frozen=True, kw_only=True):
    format: Format = "json"


class CloseQuery(OrganizationQuery, frozen=True, kw_only=True):
    month: Month


class CloseBody(Struct, frozen=True, forbid_unknown_fields=True):
    accept_incomplete: Annotated[str, Meta(max_length=1000)] | None = None


class ChargebackHandler(RestHandler):
    chargebacks: ChargebackController


class AllocationRules(ChargebackHandler):
    """How the organization's months are shared out to cost centers; every version stays readable."""

    @operation(needs=Needs.READ_COSTS, query=OrganizationQuery, answer=structs.AllocationRules)
    async def get(self, query: OrganizationQuery) -> structs.AllocationRules:
        clusters = await self.gate.clusters(query.organization_id)
        return await self.chargebacks.rules(query.organization_id, clusters, self.request_id)

    @operation(needs=Needs.CHANGE_RULES, query=RulesQuery, body=structs.Rules, answer=structs.AllocationRules)
    async def put(self, query: RulesQuery, body: structs.Rules) -> structs.AllocationRules:
        self.tell_audit(change=f"rules from {body.valid_from[:7]}")
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, body, query.version, self.request_id)
        return await self.chargebacks.put_rules(*asked)


class AllocationRulesPreview(ChargebackHandler):
    """A month under the rules in the body, beside the ones that hold; nothing is saved."""

    @operation(needs=Needs.READ_COSTS, query=ChargebackQuery, body=structs.Rules, answer=structs.ChargebackPreview)
    async def post(self, query: ChargebackQuery, body: structs.Rules) -> structs.ChargebackPreview:
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, query.month, query.by, body, self.request_id)
        return await self.chargebacks.preview(*asked)


class Chargeback(ChargebackHandler):
    """A month's cost by cost center, namespace, cluster or label: all of it, and the overhead."""

    @operation(needs=Needs.READ_COSTS, query=ChargebackFileQuery, answer=structs.Chargeback, files=MEDIA_TYPES)
    async def get(self, query: ChargebackFileQuery) -> structs.Chargeback | StreamedFile:
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, query.month, query.by, self.request_id)
        if query.format == "json":
            return await self.chargebacks.chargeback(*asked)

        async def table() -> Table:
            found = await self.chargebacks.chargeback(*asked)
            return await asyncio.to_thread(chargeback_table, found, self.service.clock())

        name = f"chargeback-{query.month}-{query.by}"
        return self.files.file(name, query.format, query.organization_id, table)


class MonthClose(ChargebackHandler):
    """Freeze a month: its figures never change after that, corrections are adjustments of a later month."""

    @operation(needs=Needs.CHANGE_RULES, query=CloseQuery, body=CloseBody, answer=structs.Chargeback)
    async def post(self, query: CloseQuery, body: CloseBody) -> structs.Chargeback:
        self.tell_audit(change=f"close {query.month}")
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, query.month, body.accept_incomplete, self.request_id)
        return await self.chargebacks.close(*asked)
