"""What clusters are made of: asked of Metroculus now and again, kept in the directory, shown with its age."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Literal
from uuid import uuid4

import msgspec
from msgspec import Struct

from optscale_client.metroculus_client import MetroculusError, NoSourceConfigured
from optscale_client.metroculus_client.structs import Metadata, NodeRow, QuotaRow, WorkloadRow
from rest_api.rest_api_server.answers import MetadataState
from rest_api.rest_api_server.auth import Gate
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster, DirectoryError, Resources
from rest_api.rest_api_server.kept import forbid_keeping, limit, without_validity

log = logging.getLogger("resources")

VIEWED_SECONDS = 60.0
STALE_AFTER = 3
"""Refreshes that were missed in a row."""
AT_ONCE = 4


class ClusterResources(Struct, frozen=True):
    """What a cluster is made of; Metroculus' rows of ``k8s_metadata``."""

    quotas: tuple[QuotaRow, ...] = ()
    workloads: tuple[WorkloadRow, ...] = ()
    nodes: tuple[NodeRow, ...] = ()


class ResourcesController:
    """Instances of the service share the work: what another has just refreshed is left alone.

    Args:
        clock: Unix seconds.
        seconds: from one refresh of a cluster to the next.
    """

    def __init__(self, gate: Gate, metroculus: MetroculusPool, clock: Callable[[], float], seconds: float) -> None:
        self._gate = gate
        self._metroculus = metroculus
        self._clock = clock
        self._seconds = seconds

    async def known(self, cluster: Cluster, request_id: str) -> tuple[ClusterResources, MetadataState]:
        """What is kept of a cluster, asked for now where nothing is; that it is not to be had fails no view of cost.

        It is shown with its age, so that a view with it is made anew within a minute.
        """
        limit(VIEWED_SECONDS)
        kept = await self._gate.ask(lambda directory: directory.resources(cluster.id))
        status: Literal["ok", "no_data", "unavailable", "not_configured"] = "ok"
        if kept is None:
            try:
                with without_validity():
                    kept = await self.refresh(cluster, request_id)
            except NoSourceConfigured:
                status = "not_configured"
            except MetroculusError:
                status = "unavailable"
                forbid_keeping()
        if kept is None:
            return ClusterResources(), MetadataState(status, None, None)
        age = max(0, int(self._clock()) - kept.fetched_at)
        resources = _typed(kept)
        if not (resources.quotas or resources.workloads or resources.nodes):
            return resources, MetadataState("no_data", kept.fetched_at, age)
        stale = age > STALE_AFTER * self._seconds
        return resources, MetadataState("stale" if stale else "ok", kept.fetched_at, age)

    async def refresh(self, cluster: Cluster, request_id: str) -> Resources:
        """Ask for a cluster's resources and keep them.

        Raises:
            MetroculusError, DirectoryError
        """
        ask = self._metroculus.client.get_k8s_metadata
        metadata = await self._metroculus.call(cluster, ask, cluster.id, request_id=request_id, shape=Metadata)
        found = Resources(
            metadata.fetched_at, *map(msgspec.to_builtins, (metadata.quotas, metadata.workloads, metadata.nodes))
        )
        await self._gate.ask(lambda directory: directory.put_resources(cluster.id, found))
        return found

    async def refresh_all(self) -> int:
        """Refresh every linked cluster that is due; how many there were."""
        clusters = await self._gate.ask(lambda directory: directory.linked_clusters())
        places = asyncio.Semaphore(AT_ONCE)

        async def refresh(cluster: Cluster) -> int:
            async with places:
                kept = await self._gate.ask(lambda directory: directory.resources(cluster.id))
                if kept is not None and self._clock() - kept.fetched_at < 0.8 * self._seconds:
                    return 0
                try:
                    await self.refresh(cluster, uuid4().hex)
                except NoSourceConfigured:
                    return 0
                except MetroculusError as failure:
                    log.info("what %s is made of could not be refreshed: %s", cluster.id, failure)
                return 1

        return sum(await asyncio.gather(*(refresh(cluster) for cluster in clusters)))

    async def keep_fresh(self) -> None:
        """Refresh again and again until cancelled, at moments that instances of the service do not share."""
        while True:
            try:
                await self.refresh_all()
            except DirectoryError as problem:
                log.warning("what clusters are made of could not be refreshed: %s", problem)
            await asyncio.sleep(self._seconds * random.uniform(0.8, 1.0))


def _typed(kept: Resources) -> ClusterResources:
    """What is kept as rows; what an older program kept in another shape is nothing, until the next refresh."""
    try:
        return msgspec.convert(
            {"quotas": kept.quotas, "workloads": kept.workloads, "nodes": kept.nodes}, ClusterResources
        )
    except msgspec.ValidationError:
        return ClusterResources()
