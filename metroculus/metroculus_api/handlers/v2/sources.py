"""``/metroculus/v2/kubecost_sources/{cloud_account_id}``."""

from __future__ import annotations

from msgspec import Struct

from metroculus.metroculus_api.controllers.sources import SourceBody, SourcesController
from metroculus.metroculus_api.handlers.v2.base import MetroculusHandler, Needs
from optscale_client.metroculus_client import structs
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Text, Uuid


class SourceQuery(Struct, frozen=True):
    cloud_account_id: Uuid


class Manager(Text):
    pattern = r"[a-z0-9-]{1,64}"
    what = "1 to 64 of a-z, 0-9 and -"


class PageSize(Text):
    pattern = r"[1-9][0-9]{0,2}|1000"
    what = "1 to 1000"


class SourcesQuery(Struct, frozen=True):
    managed_by: Manager | None = None
    after: Uuid | None = None
    limit: PageSize = PageSize("1000")


class KubecostSources(MetroculusHandler):
    """Which upstreams there are, by account; ``after`` of an answer asks for the next ones."""

    sources: SourcesController

    @operation(needs=Needs.CLUSTER_SECRET, query=SourcesQuery, answer=structs.Sources)
    async def get(self, query: SourcesQuery) -> structs.Sources:
        return await self.sources.listed(query.managed_by, query.after or "", int(query.limit))


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
