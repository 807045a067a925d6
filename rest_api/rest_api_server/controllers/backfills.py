"""History of a cluster that is being filled."""

from __future__ import annotations

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster


class BackfillsController:
    def __init__(self, metroculus: MetroculusPool) -> None:
        self._metroculus = metroculus

    async def backfills(self, cluster: Cluster, request_id: str) -> structs.Backfills:
        """Those that are open, and for thirty days those that are not.

        Raises:
            MetroculusError
        """
        ask = self._metroculus.client.get_backfills
        return await self._metroculus.call(cluster, ask, cluster.id, request_id=request_id, shape=structs.Backfills)
