"""``/restapi/v2/kubecost/clusters/{cluster_id}/changes`` and ``…/anomalies``."""

from __future__ import annotations

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.auth import DEFAULT_WINDOW, Needs, RestHandler
from rest_api.rest_api_server.controllers.changes import ChangesController
from rest_api.rest_api_server.errors import CODES
from rest_api.rest_api_server.handlers.v2.clusters import Aggregate, ViewQuery
from tools.tornado_service.operation import operation
from tools.tornado_service.params import AgainstQuery, Uuid, against_of, resolve_window


class ChangesQuery(AgainstQuery, frozen=True, kw_only=True):
    cluster_id: Uuid
    aggregate: tuple[Aggregate, ...] = (Aggregate("namespace"),)


class ChangesHandler(RestHandler):
    changes: ChangesController


class ClusterChanges(ChangesHandler):
    """From what one window cost to what another did: steps that add up to the difference."""

    @operation(needs=Needs.READ_COSTS, query=ChangesQuery, answer=structs.Changes)
    async def get(self, query: ChangesQuery) -> structs.Changes:
        now = self.service.clock()
        window = resolve_window(query, now, CODES, DEFAULT_WINDOW)
        before = against_of(query, window, now, CODES)
        return await self.changes.changes(self.cluster, window, before, query.aggregate, self.request_id)


class ClusterAnomalies(ChangesHandler):
    """Hours that cost far more than such hours do, with what caused it."""

    @operation(needs=Needs.READ_COSTS, query=ViewQuery, answer=structs.Anomalies)
    async def get(self, query: ViewQuery) -> structs.Anomalies:
        window = resolve_window(query, self.service.clock(), CODES, DEFAULT_WINDOW)
        return await self.changes.anomalies(self.cluster, window, self.request_id)
