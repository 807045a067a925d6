"""``/metroculus/v2/live``: what a cluster costs an hour now."""

from __future__ import annotations

from msgspec import Struct

from metroculus.metroculus_api.controllers.live import LiveController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from optscale_client.metroculus_client import structs
from tools.tornado_service.operation import operation
from tools.tornado_service.params import FilterText, Minutes, Uuid


class LiveQuery(Struct, frozen=True, kw_only=True):
    cloud_account_id: Uuid
    minutes: Minutes = Minutes("60")
    namespace: FilterText | None = None


class ClusterLive(MetroculusHandler):
    """What a cluster costs an hour, minute by minute: a rate, never added to costs."""

    live: LiveController

    @operation(needs=Needs.CLUSTER_SECRET, query=LiveQuery, answer=structs.Live)
    async def get(self, query: LiveQuery) -> structs.Live:
        return await self.live.live(query.cloud_account_id, int(query.minutes), query.namespace, self.deadline())
