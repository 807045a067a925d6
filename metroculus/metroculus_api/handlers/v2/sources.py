"""``/metroculus/v2/kubecost_sources/{cloud_account_id}``."""

from __future__ import annotations

from msgspec import Struct

from metroculus.metroculus_api.controllers.sources import SourceBody, SourcesController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from optscale_client.metroculus_client import structs
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Uuid


class SourceQuery(Struct, frozen=True):
    cloud_account_id: Uuid


class KubecostSourceEntry(MetroculusHandler):
    """Which upstream an account has; credentials are written and never read back."""

    sources: SourcesController

    @operation(needs=Needs.CLUSTER_SECRET, query=SourceQuery, body=SourceBody, answer=structs.Source)
    async def put(self, query: SourceQuery, body: SourceBody) -> structs.Source:
        return await self.sources.put(query.cloud_account_id, body)

    @operation(needs=Needs.CLUSTER_SECRET, query=SourceQuery, answer=structs.Source)
    async def get(self, query: SourceQuery) -> structs.Source:
        return await self.sources.get(query.cloud_account_id)

    @operation(needs=Needs.CLUSTER_SECRET, query=SourceQuery, answer=structs.Deleted)
    async def delete(self, query: SourceQuery) -> structs.Deleted:
        return await self.sources.delete(query.cloud_account_id)
