"""``/restapi/v2/kubecost/clusters/{cluster_id}/live``."""

from __future__ import annotations

from msgspec import Struct

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import Needs, RestHandler
from rest_api.rest_api_server.controllers.live import LiveController
from tools.tornado_service.operation import operation
from tools.tornado_service.params import FilterText, Minutes, Uuid


class LiveQuery(Struct, frozen=True, kw_only=True):
    cluster_id: Uuid
    minutes: Minutes = Minutes("60")
    namespace: FilterText | None = None


class ClusterLive(RestHandler):
    """What a cluster costs an hour, minute by minute: a rate, never added to costs."""

    live: LiveController

    @operation(needs=Needs.READ_COSTS, query=LiveQuery, answer=structs.Live)
    async def get(self, query: LiveQuery) -> structs.Live:
        return await self.live.live(self.cluster, int(query.minutes), query.namespace, self.request_id)
