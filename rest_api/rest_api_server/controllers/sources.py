"""Deletes the source entries of clusters that the directory does not have any more."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from uuid import uuid4

from optscale_client.metroculus_client import MetroculusError, NotFound, structs
from rest_api.rest_api_server.auth import Gate
from rest_api.rest_api_server.controllers.clusters import MANAGER
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import DirectoryError

log = logging.getLogger("sources")

SWEEP_SECONDS = 600.0
MOST_UNKNOWN = 10
"""Where more than one source in so many is of an unknown cluster, none of these is deleted."""


class SourcesSweep:
    """Deletes sources that this service wrote, where their cluster was unlinked or its organization deleted.

    They remain where a service stopped half way through an unlink, and where an organization is deleted. The directory
    keeps deleted clusters, so these are certain. Sources of clusters that it never had may mean that it is the wrong
    directory: they are deleted only while they are few, and nothing is deleted where it is empty.
    """

    def __init__(self, gate: Gate, metroculus: MetroculusPool) -> None:
        self._gate = gate
        self._metroculus = metroculus

    async def keep_sweeping(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                await self.sweep()
            except (MetroculusError, DirectoryError) as failure:
                log.warning("sources cannot be held against the directory: %s", failure)

    async def sweep(self) -> list[str]:
        """Delete such sources once.

        Returns:
            the accounts whose sources were deleted.

        Raises:
            MetroculusError, DirectoryError
        """
        written = await self._written()  # first: a cluster that is linked meanwhile is in the directory by then
        known = await self._gate.ask(lambda directory: directory.cluster_ids())
        if not known:
            return []
        gone = [account for account in written if known.get(account) is False]
        unknown = [account for account in written if account not in known]
        if len(unknown) * MOST_UNKNOWN > len(written):
            log.error("%d of %d sources are of clusters that the directory never had: kept", len(unknown), len(written))
            unknown = []
        for account in (*gone, *unknown):
            with suppress(NotFound):
                forget = self._metroculus.client.delete_kubecost_source
                await self._metroculus.call(None, forget, account, request_id=uuid4().hex, shape=structs.Deleted)
            log.info("deleted the source of cluster %s, which does not exist any more", account)
        return [*gone, *unknown]

    async def _written(self) -> list[str]:
        accounts: list[str] = []
        after: str | None = None
        while True:
            ask = self._metroculus.client.get_kubecost_sources
            page = await self._metroculus.call(None, ask, MANAGER, after, request_id=uuid4().hex, shape=structs.Sources)
            accounts += [one.cloud_account_id for one in page.sources]
            after = page.after
            if after is None:
                return accounts
