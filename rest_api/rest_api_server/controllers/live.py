"""What a cluster costs an hour now."""

from __future__ import annotations

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster


class LiveController:
    def __init__(self, metroculus: MetroculusPool) -> None:
        self._metroculus = metroculus

    async def live(self, cluster: Cluster, minutes: int, namespace: str | None, request_id: str) -> structs.Live:
        """The rates of the last minutes, of the cluster or of one namespace.

        Raises:
            MetroculusError
        """
        return await self._metroculus.call(
            cluster,
            self._metroculus.client.get_live,
            cluster.id,
            minutes=minutes,
            namespace=namespace,
            request_id=request_id,
            shape=structs.Live,
        )
