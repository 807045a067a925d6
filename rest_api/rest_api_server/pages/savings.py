"""What a cluster could save, each with its evidence and a command; and what the cluster is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

from optscale_client.metroculus_client.structs import Recommendation
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import DEFAULT_WINDOW, Needs
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.errors import CODES
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import assets_table, dates_of, savings_table
from rest_api.rest_api_server.pages.parts import in_address, part, source_troubles, usage_part
from rest_api.rest_api_server.pages.patches import amount, bytes_text, evidence_of, patch_of
from rest_api.rest_api_server.pages.sections import ClusterSection
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Uuid, WindowQuery, resolve_window
from tools.tornado_service.streamed import StreamedFile

RISKS = ("low", "medium", "high")
SORTS: dict[str, Callable[[Recommendation], Any]] = {
    "saving": lambda one: (-one.monthly_saving, one.name, one.resource),
    "kind": lambda one: (one.kind, -one.monthly_saving, one.name),
    "where": lambda one: (one.namespace, one.controller, one.container, one.name, one.resource),
    "risk": lambda one: (RISKS.index(one.risk) if one.risk in RISKS else 3, -one.monthly_saving),
}


class SavingsPageQuery(WindowQuery, frozen=True, kw_only=True):
    cluster_id: Uuid
    sort: Literal["saving", "kind", "where", "risk"] = "saving"
    format: Format = "json"


class AssetsPageQuery(WindowQuery, frozen=True, kw_only=True):
    cluster_id: Uuid
    asset_type: Literal["node", "disk", "load_balancer", "network", "cluster_management"] | None = None
    format: Format = "json"


class SavingsPage(ClusterSection):
    """Everything that could be had for less: how much, why, how risky, and what to type."""

    costs: CostsController

    @operation(needs=Needs.READ_COSTS, query=SavingsPageQuery, answer=str, content="text/html", files=MEDIA_TYPES)
    async def get(self, query: SavingsPageQuery) -> bytes | StreamedFile:
        now = self.service.clock()
        asked_window = resolve_window(query, now, CODES, DEFAULT_WINDOW)
        window = usage_part(asked_window)
        if query.format != "json":

            async def table() -> Table:
                found = await self.costs.optimization(self.cluster, window, self.request_id)
                return await asyncio.to_thread(savings_table, found, {}, now)

            name = f"savings-{self.cluster.name}-{dates_of(window)}"
            return self.files.file(name, query.format, self.cluster.organization_id, table)
        told = await part(self.costs.optimization(self.cluster, window, self.request_id))
        listed = sorted(told.found.recommendations, key=SORTS[query.sort]) if told.found is not None else []
        return await self.rendered(
            "savings.html",
            **await self.about(in_address(query, {"sort": "saving"}), "savings", asked_window),
            query=query,
            usage_start=window.zone.iso(window.start),
            usage_end=window.zone.iso(window.end),
            told=told,
            listed=listed,
            troubles=source_troubles(told.found.sources) if told.found is not None else (),
            amount=amount,
            evidence_of=evidence_of,
            patch_of=patch_of,
        )


class AssetsPage(ClusterSection):
    """Nodes, disks, load balancers, network and management: what each cost and how far it was used."""

    costs: CostsController

    @operation(needs=Needs.READ_COSTS, query=AssetsPageQuery, answer=str, content="text/html", files=MEDIA_TYPES)
    async def get(self, query: AssetsPageQuery) -> bytes | StreamedFile:
        now = self.service.clock()
        window = resolve_window(query, now, CODES, DEFAULT_WINDOW)

        async def found() -> answers.ClusterAssets:
            return await self.costs.assets(self.cluster, window, query.asset_type, self.request_id)

        if query.format != "json":

            async def table() -> Table:
                return await asyncio.to_thread(assets_table, await found(), {"asset_type": query.asset_type}, now)

            name = f"assets-{self.cluster.name}-{dates_of(window)}"
            return self.files.file(name, query.format, self.cluster.organization_id, table)
        told = await part(found())
        listed = (
            sorted(told.found.assets, key=lambda one: (-one.total_cost, one.name)) if told.found is not None else []
        )
        return await self.rendered(
            "assets.html",
            **await self.about(in_address(query, {}), "assets", window),
            query=query,
            told=told,
            listed=listed,
            troubles=source_troubles(told.found.sources) if told.found is not None else (),
            bytes_text=bytes_text,
        )
