"""``/metroculus/v2/changes`` and ``/metroculus/v2/anomalies``: what changed, why, and what stands out."""

from __future__ import annotations

from metroculus.codes import CODES, INVALID
from metroculus.metroculus_api.controllers.changes import ChangesController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from optscale_client.metroculus_client import structs
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import AgainstQuery, Text, Uuid, WindowQuery, against_of


class ChangeAggregate(Text):
    pattern = structs.AGGREGATE_PATTERN
    what = f"{', '.join(structs.PROPERTIES)}, or label:NAME"


class ChangesQuery(AgainstQuery, frozen=True, kw_only=True):
    cloud_account_id: Uuid
    aggregate: tuple[ChangeAggregate, ...] = (ChangeAggregate("namespace"),)


class AnomaliesQuery(WindowQuery, frozen=True, kw_only=True):
    cloud_account_id: Uuid


class CostChanges(MetroculusHandler):
    """From what one window cost to what another did: steps that add up to the difference."""

    changes: ChangesController

    @operation(needs=Needs.CLUSTER_SECRET, query=ChangesQuery, answer=structs.Changes)
    async def get(self, query: ChangesQuery) -> structs.Changes:
        if any(name.startswith("annotation:") for name in query.aggregate):
            raise ApiError(INVALID, "annotations are not compared: aggregate by a label", ["aggregate"])
        window = self.window_of(query)
        before = against_of(query, window, self.service.clock(), CODES)
        return await self.changes.changes(query.cloud_account_id, window, before, query.aggregate, self.deadline())


class CostAnomalies(MetroculusHandler):
    """Hours that cost far more than such hours do, with what caused it."""

    changes: ChangesController

    @operation(needs=Needs.CLUSTER_SECRET, query=AnomaliesQuery, answer=structs.Anomalies)
    async def get(self, query: AnomaliesQuery) -> structs.Anomalies:
        return await self.changes.anomalies(query.cloud_account_id, self.window_of(query), self.deadline())
