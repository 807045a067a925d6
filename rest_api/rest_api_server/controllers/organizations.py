"""What Metroculus decides and reckons for a whole organization, over the clusters that are linked now."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, TypeVar
from uuid import uuid4

from optscale_client.metroculus_client import MetroculusError, NoSourceConfigured, structs
from rest_api.rest_api_server.auth import Gate
from rest_api.rest_api_server.controllers.metroculus import Method, MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster, DirectoryError

T = TypeVar("T")

log = logging.getLogger("organizations")

TELL_SECONDS = 60.0
"""Between two looks at which clusters organizations have: alerts of one that was linked begin so soon."""
TOLD_AGAIN = 60
"""Every so many looks all are told, whatever was told before."""


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


class OrganizationsSync:
    """Tells Metroculus which accounts each organization has: its worker watches those, also where nobody asks."""

    def __init__(self, gate: Gate, metroculus: MetroculusPool) -> None:
        self._gate = gate
        self._metroculus = metroculus
        self._told: dict[str, frozenset[str]] = {}

    async def keep_telling(self) -> None:
        """Until it is cancelled."""
        look = 0
        while True:
            try:
                await self.tell(everything=look % TOLD_AGAIN == 0)
                look += 1
            except NoSourceConfigured as failure:  # it keeps no history, and watches nothing
                log.info("organizations are not told to Metroculus: %s", failure)
            except (MetroculusError, DirectoryError) as failure:
                log.warning("organizations cannot be told to Metroculus: %s", failure)
            await asyncio.sleep(TELL_SECONDS)

    async def tell(self, everything: bool = False) -> list[str]:
        """Tell what has changed, once.

        Returns:
            the organizations that were told of.

        Raises:
            MetroculusError, DirectoryError
        """
        found: dict[str, set[str]] = {organization: set() for organization in self._told}
        for cluster in await self._gate.ask(lambda directory: directory.linked_clusters()):
            found.setdefault(cluster.organization_id, set()).add(cluster.id)
        accounts = {organization: frozenset(ids) for organization, ids in found.items()}
        changed = [one for one in sorted(accounts) if everything or self._told.get(one) != accounts[one]]
        keep = self._metroculus.client.put_organization
        for organization in changed:
            kept = (organization, sorted(accounts[organization]))
            await self._metroculus.call(None, keep, *kept, request_id=uuid4().hex, shape=structs.OrganizationAccounts)
            self._told[organization] = accounts[organization]
        return changed
