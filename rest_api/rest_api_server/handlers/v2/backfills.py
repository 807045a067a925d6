"""``/restapi/v2/kubecost/clusters/{cluster_id}/backfills``: how far a cluster's history has been filled."""

from __future__ import annotations

from msgspec import Struct

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import Needs, RestHandler
from rest_api.rest_api_server.controllers.backfills import BackfillsController
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Uuid


class BackfillsQuery(Struct, frozen=True, kw_only=True):
    cluster_id: Uuid


class ClusterBackfills(RestHandler):
    """The cluster's back-fills: those that run, with how far they are, and for thirty days those that have ended."""

    backfills: BackfillsController

    @operation(needs=Needs.READ_COSTS, query=BackfillsQuery, answer=structs.Backfills)
    async def get(self, query: BackfillsQuery) -> structs.Backfills:
        return await self.backfills.backfills(self.cluster, self.request_id)
