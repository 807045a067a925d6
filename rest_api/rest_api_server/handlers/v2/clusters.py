"""``/restapi/v2``: what organizations' clusters cost, and linking them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from optscale_client.metroculus_client import structs
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import DEFAULT_WINDOW, Needs, RestHandler, ViewHandler
from rest_api.rest_api_server.controllers.clusters import (
    ChangeBody,
    ChangedCluster,
    ClustersController,
    LinkBody,
    LinkedCluster,
    PushToken,
    shown,
)
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.controllers.metrics import MetricsController
from rest_api.rest_api_server.errors import CODES, INVALID
from rest_api.rest_api_server.exports.files import MEDIA_TYPES, Format
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import assets_table, clusters_table, costs_table, dates_of, savings_table
from rest_api.rest_api_server.kept import KeptAnswer
from rest_api.rest_api_server.paging import PageQuery, paged, refuse_pages, whole_of
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import (
    DnsLabel,
    FilterText,
    Groups,
    RowFilter,
    Step,
    Text,
    Uuid,
    WindowQuery,
    resolve_window,
)
from tools.tornado_service.streamed import StreamedFile
from tools.window import Window


class Aggregate(Text):
    """A property to group by."""

    pattern = structs.AGGREGATE_PATTERN
    what = f"{', '.join(structs.PROPERTIES)}, label:NAME or annotation:NAME"


class PropertyFilter(Text):
    """A property and a value that rows must have; several of one property are alternatives."""

    pattern = structs.FILTER_PATTERN
    what = "PROPERTY=VALUE, such as controller=web, label:team=blue, or label:team= for what has no such label"
    listed = False


class OrganizationQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid


class ClusterQuery(OrganizationQuery, frozen=True, kw_only=True):
    cluster_id: Uuid


class CostHandler(ViewHandler):
    costs: CostsController

    def file(self, what: str, window: Window, form: Format, make: Callable[[], Awaitable[Table]]) -> StreamedFile:
        """A file of this cluster."""
        name = f"{what}-{self.cluster.name}-{dates_of(window)}"
        return self.files.file(name, form, self.cluster.organization_id, make)


class OverviewQuery(PageQuery, frozen=True, kw_only=True):
    organization_id: Uuid
    format: Format = "json"


class OrganizationClusters(RestHandler):
    """The organization's clusters, each with its cost; and linking a new one."""

    costs: CostsController
    links: ClustersController

    @operation(needs=Needs.READ_COSTS, query=OverviewQuery, answer=answers.OrganizationCosts, files=MEDIA_TYPES)
    async def get(self, query: OverviewQuery) -> answers.OrganizationCosts | StreamedFile:
        now = self.service.clock()
        window = resolve_window(query, now, CODES, DEFAULT_WINDOW)
        clusters = await self.gate.clusters(query.organization_id)
        asked = (query.organization_id, clusters, window, self.request_id)
        if query.format == "json":
            return await paged(await self.costs.overview(*asked), query, "clusters")
        refuse_pages(query)

        async def table() -> Table:
            found = await self.costs.overview(*asked)
            return await asyncio.to_thread(lambda: clusters_table(whole_of(found, query, "clusters"), window, now))

        return self.files.file(f"clusters-{dates_of(window)}", query.format, query.organization_id, table)

    @operation(needs=Needs.MANAGE_CLUSTERS, query=OrganizationQuery, body=LinkBody, answer=ChangedCluster, status=201)
    async def post(self, query: OrganizationQuery, body: LinkBody) -> ChangedCluster:
        linked = await self.links.link(query.organization_id, body, self.request_id)
        self.tell_audit(cluster_id=linked.cluster_id)
        return linked


class Deleted(Struct, frozen=True):
    deleted: bool


class OrganizationCluster(RestHandler):
    """One linked cluster: read, change, unlink."""

    links: ClustersController

    @operation(needs=Needs.READ_LINKS, query=ClusterQuery, answer=LinkedCluster)
    async def get(self, query: ClusterQuery) -> LinkedCluster:
        return shown(self.cluster)

    @operation(needs=Needs.MANAGE_CLUSTERS, query=ClusterQuery, body=ChangeBody, answer=ChangedCluster)
    async def patch(self, query: ClusterQuery, body: ChangeBody) -> ChangedCluster:
        return await self.links.change(self.cluster, body, self.request_id)

    @operation(needs=Needs.MANAGE_CLUSTERS, query=ClusterQuery, answer=Deleted)
    async def delete(self, query: ClusterQuery) -> Deleted:
        await self.links.unlink(self.cluster, self.request_id)
        return Deleted(True)


class ClusterPushToken(RestHandler):
    """A new token for the agent of a cluster that pushes; the one before is good for a quarter of an hour more."""

    links: ClustersController

    @operation(needs=Needs.MANAGE_CLUSTERS, query=ClusterQuery, answer=PushToken, status=201)
    async def post(self, query: ClusterQuery) -> PushToken:
        return await self.links.push_token(self.cluster, self.request_id)


class ViewQuery(WindowQuery, frozen=True, kw_only=True):
    cluster_id: Uuid


class ClusterRowsQuery(PageQuery, frozen=True, kw_only=True):
    cluster_id: Uuid


class ClusterCostsQuery(ClusterRowsQuery, frozen=True, kw_only=True):
    format: Format = "json"
    aggregate: tuple[Aggregate, ...] = (Aggregate("namespace"),)
    k8s_namespace: tuple[FilterText, ...] = ()
    k8s_node: tuple[RowFilter, ...] = ()
    k8s_service: tuple[FilterText, ...] = ()
    filter: tuple[PropertyFilter, ...] = ()
    idle: Literal["separate", "share", "hide"] | None = None
    step: Literal["hour", "day", "week", "month"] | None = None
    groups: Groups | None = None


FILTERS = ("k8s_namespace", "k8s_node", "k8s_service", "filter")


class ClusterCosts(CostHandler):
    """What one cluster cost, by namespace, controller, pod, service, node or label."""

    @operation(needs=Needs.READ_COSTS, query=ClusterCostsQuery, answer=answers.ClusterCosts, files=MEDIA_TYPES)
    async def get(self, query: ClusterCostsQuery) -> KeptAnswer | StreamedFile:
        names = (*FILTERS, "idle", "step", "groups")
        asked = {name: value for name in names if (value := getattr(query, name))}

        async def read(window: Window) -> answers.ClusterCosts:
            found = await self.costs.costs(self.cluster, window, query.aggregate, self.request_id, **asked)
            return replace(found, aggregate=",".join(query.aggregate))

        async def made(window: Window) -> Struct:
            return await paged(await read(window), query, "costs")

        if query.format == "json":
            return await self.kept(self.cluster, query, made)
        if query.step is not None and query.idle in ("share", "hide"):
            raise ApiError(INVALID, "steps tell idle cost by itself: leave out idle, or step", ["idle", "step"])
        refuse_pages(query)
        now = self.service.clock()
        window, told = self.window(query, now), {"aggregate": query.aggregate, **asked}

        async def table() -> Table:
            found = await read(window)
            return await asyncio.to_thread(lambda: costs_table(whole_of(found, query, "costs"), told, now))

        return self.file("costs", window, query.format, table)


class ClusterNamespaces(CostHandler):
    """Namespaces with cost, quota and utilisation."""

    @operation(needs=Needs.READ_COSTS, query=ClusterRowsQuery, answer=answers.Namespaces)
    async def get(self, query: ClusterRowsQuery) -> KeptAnswer:
        async def made(window: Window) -> Struct:
            found = await self.costs.namespaces(self.cluster, window, self.request_id)
            return await paged(found, query, "namespaces")

        return await self.kept(self.cluster, query, made)


class WorkloadsQuery(ClusterRowsQuery, frozen=True, kw_only=True):
    namespace: DnsLabel


class NamespaceWorkloads(CostHandler):
    """Workloads of a namespace: cost, requests and limits against usage."""

    @operation(needs=Needs.READ_COSTS, query=WorkloadsQuery, answer=answers.Workloads)
    async def get(self, query: WorkloadsQuery) -> KeptAnswer:
        async def made(window: Window) -> Struct:
            found = await self.costs.workloads(self.cluster, query.namespace, window, self.request_id)
            return await paged(found, query, "workloads")

        return await self.kept(self.cluster, query, made)


class ClusterAssetsQuery(ClusterRowsQuery, frozen=True, kw_only=True):
    format: Format = "json"
    asset_type: Literal["node", "disk", "load_balancer", "network", "cluster_management"] | None = None


class ClusterAssets(CostHandler):
    """Nodes, disks and load balancers: cost, utilisation, specification."""

    @operation(needs=Needs.READ_COSTS, query=ClusterAssetsQuery, answer=answers.ClusterAssets, files=MEDIA_TYPES)
    async def get(self, query: ClusterAssetsQuery) -> KeptAnswer | StreamedFile:
        async def read(window: Window) -> answers.ClusterAssets:
            return await self.costs.assets(self.cluster, window, query.asset_type, self.request_id)

        async def made(window: Window) -> Struct:
            return await paged(await read(window), query, "assets")

        if query.format == "json":
            return await self.kept(self.cluster, query, made)
        refuse_pages(query)
        now = self.service.clock()
        window, asked = self.window(query, now), {"asset_type": query.asset_type}

        async def table() -> Table:
            found = await read(window)
            return await asyncio.to_thread(lambda: assets_table(whole_of(found, query, "assets"), asked, now))

        return self.file("assets", window, query.format, table)


class ClusterMetricsQuery(ViewQuery, frozen=True, kw_only=True):
    metric: Literal["cpu", "memory", "network", "storage"]
    step: Step | None = None


class ClusterMetrics(CostHandler):
    """Utilisation series of one cluster."""

    metrics: MetricsController

    @operation(needs=Needs.READ_COSTS, query=ClusterMetricsQuery, answer=answers.ClusterMetrics)
    async def get(self, query: ClusterMetricsQuery) -> KeptAnswer:
        async def made(window: Window) -> Struct:
            return await self.metrics.series(self.cluster, query.metric, window, query.step, self.request_id)

        return await self.kept(self.cluster, query, made)


class OptimizationQuery(ViewQuery, frozen=True, kw_only=True):
    format: Format = "json"


class ClusterOptimization(CostHandler):
    """Right-sizing, abandoned workloads, unclaimed volumes, idle nodes; each with saving, evidence and risk."""

    @operation(needs=Needs.READ_COSTS, query=OptimizationQuery, answer=answers.Optimization, files=MEDIA_TYPES)
    async def get(self, query: OptimizationQuery) -> KeptAnswer | StreamedFile:
        async def made(window: Window) -> answers.Optimization:
            return await self.costs.optimization(self.cluster, window, self.request_id)

        if query.format == "json":
            return await self.kept(self.cluster, query, made)
        now = self.service.clock()
        window = self.window(query, now)

        async def table() -> Table:
            return await asyncio.to_thread(savings_table, await made(window), {}, now)

        return self.file("savings", window, query.format, table)
