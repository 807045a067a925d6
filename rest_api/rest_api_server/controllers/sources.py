"""Sources of clusters that are no more: held against the directory, and forgotten."""

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
LARGEST_SHARE = 10
"""Where more than one source in so many is unknown to the directory, it may be the wrong one."""


class SourcesSweep:
    """Forgets the sources that this service has written for clusters that were unlinked, or whose organization is gone.

    That is what is left where a service ended half way, and what deleting an organization leaves. A cluster that the
    directory knows to be gone is certain. One that it never heard of may be another directory's: then a few are
    forgotten, many are not, and an empty directory forgets none.
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
        """One round; the accounts whose sources were forgotten.

        Raises:
            MetroculusError, DirectoryError
        """
        written = await self._written()  # first: what is linked meanwhile is in the directory by then
        known = await self._gate.ask(lambda directory: directory.cluster_ids())
        if not known:
            return []
        gone = [account for account in written if known.get(account) is False]
        strange = [account for account in written if account not in known]
        if len(strange) * LARGEST_SHARE > len(written):
            log.error("the directory never heard of %d of %d sources: they are left", len(strange), len(written))
            strange = []
        for account in (*gone, *strange):
            with suppress(NotFound):
                forget = self._metroculus.client.delete_kubecost_source
                await self._metroculus.call(None, forget, account, request_id=uuid4().hex, shape=structs.Deleted)
            log.info("the source of cluster %s, which is gone, was forgotten", account)
        return [*gone, *strange]

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
