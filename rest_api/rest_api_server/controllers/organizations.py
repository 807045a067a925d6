"""What Metroculus decides and reckons for a whole organization, over the clusters that are linked now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server.controllers.metroculus import Method, MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster

T = TypeVar("T")


class OrganizationController:
    """Asks Metroculus about an organization, after it was told which accounts that has."""

    def __init__(self, metroculus: MetroculusPool) -> None:
        self._metroculus = metroculus

    async def _ask(
        self,
        organization_id: str,
        clusters: Sequence[Cluster],
        request_id: str,
        method: Method,
        *args: Any,
        shape: type[T],
    ) -> T:
        """An answer over the clusters that the organization has now.

        Raises:
            MetroculusError
        """
        about, accounts = clusters or None, [cluster.id for cluster in clusters]
        keep = self._metroculus.client.put_organization
        kept = (organization_id, accounts)
        await self._metroculus.call(about, keep, *kept, request_id=request_id, shape=structs.OrganizationAccounts)
        return await self._metroculus.call(about, method, organization_id, *args, request_id=request_id, shape=shape)
