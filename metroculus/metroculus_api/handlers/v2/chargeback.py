"""``/metroculus/v2/rules`` and ``/metroculus/v2/chargeback``: months shared out to cost centers."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from metroculus.codes import INVALID
from metroculus.cost_model.rules import Rules
from metroculus.metroculus_api.controllers.chargeback import ChargebackController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from optscale_client.metroculus_client import structs
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Month, Text, Uuid

MAX_ACCOUNTS = 10_000


class By(Text):
    pattern = structs.CHARGEBACK_BY_PATTERN
    what = "cost_center, namespace, cluster, or label:NAME"


class OrganizationQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid


class RulesQuery(OrganizationQuery, frozen=True, kw_only=True):
    version: Text | None = None


class ViewQuery(OrganizationQuery, frozen=True, kw_only=True):
    month: Month
    by: By = By("cost_center")


class CloseQuery(OrganizationQuery, frozen=True, kw_only=True):
    month: Month


class AccountsBody(Struct, frozen=True, forbid_unknown_fields=True):
    cloud_account_ids: Annotated[tuple[str, ...], Meta(max_length=MAX_ACCOUNTS)]


class CloseBody(Struct, frozen=True, forbid_unknown_fields=True):
    accept_incomplete: Annotated[str, Meta(max_length=1000)] | None = None


class Organizations(MetroculusHandler):
    """Which accounts an organization has."""

    chargeback: ChargebackController

    @operation(
        needs=Needs.CLUSTER_SECRET, query=OrganizationQuery, body=AccountsBody, answer=structs.OrganizationAccounts
    )
    async def put(self, query: OrganizationQuery, body: AccountsBody) -> structs.OrganizationAccounts:
        try:
            accounts = tuple(sorted({str(Uuid.parse(one)) for one in body.cloud_account_ids}))
        except ValueError as problem:
            raise ApiError(INVALID, f"cloud_account_ids {problem}", ["cloud_account_ids"]) from None
        await self.chargeback.keep_accounts(query.organization_id, accounts, self.deadline())
        return structs.OrganizationAccounts(query.organization_id, accounts)


class AllocationRules(MetroculusHandler):
    """How an organization's months are shared out; every version is kept."""

    chargeback: ChargebackController

    @operation(needs=Needs.CLUSTER_SECRET, query=OrganizationQuery, answer=structs.AllocationRules)
    async def get(self, query: OrganizationQuery) -> structs.AllocationRules:
        return await self.chargeback.rules(query.organization_id, self.deadline())

    @operation(needs=Needs.CLUSTER_SECRET, query=RulesQuery, body=Rules, answer=structs.AllocationRules)
    async def put(self, query: RulesQuery, body: Rules) -> structs.AllocationRules:
        self.tell_audit(organization_id=str(query.organization_id), change=f"rules from {body.valid_from}")
        return await self.chargeback.put_rules(query.organization_id, body, query.version, self.deadline())


class RulesPreview(MetroculusHandler):
    """A month under other rules; nothing is kept."""

    chargeback: ChargebackController

    @operation(needs=Needs.CLUSTER_SECRET, query=ViewQuery, body=Rules, answer=structs.ChargebackPreview)
    async def post(self, query: ViewQuery, body: Rules) -> structs.ChargebackPreview:
        return await self.chargeback.preview(query.organization_id, query.month, query.by, body, self.deadline())


class Chargeback(MetroculusHandler):
    """A month's cost by cost center, namespace, cluster or label."""

    chargeback: ChargebackController

    @operation(needs=Needs.CLUSTER_SECRET, query=ViewQuery, answer=structs.Chargeback)
    async def get(self, query: ViewQuery) -> structs.Chargeback:
        return await self.chargeback.chargeback(query.organization_id, query.month, query.by, self.deadline())


class MonthClose(MetroculusHandler):
    """Freeze a month: its figures never change after that."""

    chargeback: ChargebackController

    @operation(needs=Needs.CLUSTER_SECRET, query=CloseQuery, body=CloseBody, answer=structs.Chargeback)
    async def post(self, query: CloseQuery, body: CloseBody) -> structs.Chargeback:
        self.tell_audit(organization_id=str(query.organization_id), change=f"close {query.month}")
        asked = (query.organization_id, query.month, body.accept_incomplete)
        return await self.chargeback.close(*asked, self.deadline())
