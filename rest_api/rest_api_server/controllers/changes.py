"""What changed in a cluster's costs, and what stands out."""

from __future__ import annotations

from collections.abc import Sequence

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.controllers.costs import asked_of
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster
from tools.window import Window


class ChangesController:
    def __init__(self, metroculus: MetroculusPool) -> None:
        self._metroculus = metroculus

    async def changes(
        self, cluster: Cluster, window: Window, against: Window, aggregate: Sequence[str], request_id: str
    ) -> structs.Changes:
        """From one window to another, step by step.

        Raises:
            MetroculusError
        """
        asked = asked_of(window) | {"against": f"{against.start},{against.end}", "aggregate": tuple(aggregate)}
        method = self._metroculus.client.get_changes
        return await self._metroculus.call(
            cluster, method, cluster.id, **asked, request_id=request_id, shape=structs.Changes
        )

    async def anomalies(self, cluster: Cluster, window: Window, request_id: str) -> structs.Anomalies:
        """Hours that cost far more than such hours do.

        Raises:
            MetroculusError
        """
        method = self._metroculus.client.get_anomalies
        return await self._metroculus.call(
            cluster, method, cluster.id, **asked_of(window), request_id=request_id, shape=structs.Anomalies
        )
