"""``/metroculus/v2/push_tokens`` and ``/metroculus/v2/push``: what the gateway asks on behalf of tenants' agents."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from metroculus.metroculus_api.controllers.push import PushController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from optscale_client.metroculus_client import structs
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Currency, Stamp, Uuid
from tools.tornado_service.uploads import UploadHandler


class AccountQuery(Struct, frozen=True):
    cloud_account_id: Uuid


class AnswerQuery(AccountQuery, frozen=True):
    kind: Literal["allocation", "assets"]
    start: Stamp
    end: Stamp
    step: Literal["hour", "day"]
    asked_at: Stamp | None = None
    currency: Currency | None = None


class PushTokenBody(Struct, frozen=True, forbid_unknown_fields=True):
    push_token: Annotated[str, Meta(max_length=1024)]


class PushTokens(MetroculusHandler):
    """A new push token of an account; the one before is good for a quarter of an hour more."""

    push: PushController

    @operation(needs=Needs.CLUSTER_SECRET, query=AccountQuery, answer=structs.PushToken, status=201)
    async def post(self, query: AccountQuery) -> structs.PushToken:
        return await self.push.new_token(query.cloud_account_id)


class PushTokenCheck(MetroculusHandler):
    """Whose push token this is."""

    push: PushController

    @operation(needs=Needs.CLUSTER_SECRET, body=PushTokenBody, answer=structs.CheckedPushToken)
    async def post(self, query: Struct, body: PushTokenBody) -> structs.CheckedPushToken:
        return await self.push.check(body.push_token)


class PushWanted(MetroculusHandler):
    """What an account's agent is to ask its upstream for now, the newest first."""

    push: PushController

    @operation(needs=Needs.CLUSTER_SECRET, query=AccountQuery, answer=structs.Wanted)
    async def get(self, query: AccountQuery) -> structs.Wanted:
        return await self.push.wanted(query.cloud_account_id)


class PushAnswers(UploadHandler, MetroculusHandler):
    """An answer of the account's own Kubecost or OpenCost, as it came; kept once this answers."""

    push: PushController

    @property
    def uploader(self) -> str:
        return str(self.path_kwargs.get("cloud_account_id", ""))

    @operation(
        needs=Needs.CLUSTER_SECRET,
        query=AnswerQuery,
        answer=structs.PushReceipt,
        status=202,
        also=(200,),
        raw_body=True,
    )
    async def put(self, query: AnswerQuery, body: bytes) -> structs.PushReceipt:
        headers = self.request.headers
        receipt = await self.push.put(
            query.cloud_account_id,
            (query.kind, query.step, int(query.start), int(query.end)),
            body,
            headers.get("Content-Encoding", "identity").strip().lower(),
            headers.get("Digest"),
            int(query.asked_at) if query.asked_at is not None else None,
            query.currency or "",
        )
        self.set_status(202 if receipt.state == "kept" else 200)
        return receipt
