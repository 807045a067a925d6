"""``/api/v1``: Kubecent's paths and those of the extraction design, over the same controllers and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Any

from msgspec import UNSET, Struct, UnsetType

from optscale_client.metroculus_client.structs import CostRow, Figures
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import Needs, RestHandler, ViewHandler
from rest_api.rest_api_server.controllers.costs import CostsController, fields_of, rows_of
from rest_api.rest_api_server.controllers.expenses import ExpensesController
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import NOT_FOUND, SEVERAL_CLUSTERS
from rest_api.rest_api_server.handlers.v2.expenses import Months
from rest_api.rest_api_server.kept import KeptAnswer
from tools.tornado_service.application import OpenHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import NoQuery, operation
from tools.tornado_service.params import DnsLabel, Flag, Text, TimeZone, Uuid, WindowQuery
from tools.window import Window


class HealthAnswer(Struct, frozen=True):
    status: str
    opencost: str
    service: str


class KubecentHealth(OpenHandler):
    """The service is up; what it last saw of its cost source is in ``opencost``."""

    @operation(needs=None, answer=HealthAnswer)
    async def get(self, query: NoQuery) -> HealthAnswer:
        return HealthAnswer("healthy", self.service.ready().get("metroculus", "unknown"), self.service.name)


class Kubecent(RestHandler):
    """A cluster by query, needed where the token sees more than one."""

    costs: CostsController

    async def chosen(self, cluster_id: str | None) -> Cluster:
        """The cluster named, or the only one there is.

        Raises:
            ApiError: 404, 403, or 400 that lists the clusters.
        """
        if cluster_id is not None:
            return await self.gate.cluster(self.identity, cluster_id, self.needs)
        visible = await self.gate.visible(self.identity, self.needs)
        if not visible:
            raise ApiError(NOT_FOUND)
        if len(visible) > 1:
            listed = ", ".join(f"{one.id} ({one.name})" for one in visible[:20])
            raise ApiError(SEVERAL_CLUSTERS, f"cluster_id is required, one of: {listed}", ["cluster_id"])
        return await self.gate.cluster(self.identity, visible[0].id, self.needs)


class KubecentView(Kubecent, ViewHandler):
    """What one cluster's window looks like."""


class NamespacesQuery(WindowQuery, frozen=True, kw_only=True):
    cluster_id: Uuid | None = None
    idle: Flag | None = None


class KubecentNamespaces(KubecentView):
    """Cost of each namespace."""

    @operation(needs=Needs.READ_COSTS, query=NamespacesQuery, answer=answers.KubecentNamespaces)
    async def get(self, query: NamespacesQuery) -> KeptAnswer:
        cluster = await self.chosen(query.cluster_id)

        async def made(window: Window) -> Struct:
            statement = await self.costs.statement(cluster, window, self.request_id, aggregate="namespace")
            items = [_item(row, row.namespace or row.name) for row in rows_of(statement)]
            if query.idle == "true" and statement.idle_cost is not None:
                items.append(_idle_item(statement.idle_cost))
            return answers.KubecentNamespaces(**_listing(statement, items), namespaces=tuple(items))

        return await self.kept(cluster, query, made)


class PodsQuery(NamespacesQuery, frozen=True, kw_only=True):
    namespace: DnsLabel | None = None


class KubecentPods(KubecentView):
    """Cost of each pod, of one namespace or all."""

    @operation(needs=Needs.READ_COSTS, query=PodsQuery, answer=answers.KubecentPods)
    async def get(self, query: PodsQuery) -> KeptAnswer:
        cluster = await self.chosen(query.cluster_id)

        async def made(window: Window) -> Struct:
            statement = await self.costs.statement(
                cluster, window, self.request_id, aggregate="namespace,pod", namespace=query.namespace
            )
            items = [_item(row, row.pod or row.name, row.namespace) for row in rows_of(statement)]
            if query.idle == "true" and query.namespace is None and statement.idle_cost is not None:
                items.append(_idle_item(statement.idle_cost, ""))
            return answers.KubecentPods(**_listing(statement, items), pods=tuple(items))

        return await self.kept(cluster, query, made)


def _item(row: CostRow, name: str, namespace: str | UnsetType = UNSET) -> answers.KubecentItem:
    return answers.KubecentItem(
        name=name,
        namespace=namespace,
        total_cost=row.total_cost,
        cpu_cost=row.cpu_cost,
        memory_cost=row.ram_cost,
        storage_cost=row.pv_cost,
        idle_cost=0.0,
        pod_count=row.pod_count,
    )


def _idle_item(usd: float, namespace: str | UnsetType = UNSET) -> answers.KubecentItem:
    return answers.KubecentItem(
        name="__idle__",
        namespace=namespace,
        total_cost=usd,
        cpu_cost=None,
        memory_cost=None,
        storage_cost=None,
        idle_cost=usd,
        pod_count=0,
    )


def _listing(statement: Figures, items: Sequence[answers.KubecentItem]) -> dict[str, Any]:
    """The fields of a ``KubecentListing``."""
    known = statement.summary.known_cost is not None
    return {
        "window": statement.window,
        "item_count": len(items),
        "total": fsum(item.total_cost for item in items) if known else None,
        "complete": statement.complete,
        "sources": statement.sources,
    }


class UpToFifty(Text):
    pattern = r"[1-9]|[1-4][0-9]|50"
    what = "a whole number from 1 to 50"


class RecommendationsQuery(WindowQuery, frozen=True, kw_only=True):
    cluster_id: Uuid | None = None
    limit: UpToFifty | None = None


class KubecentRecommendations(KubecentView):
    """The dearest savings."""

    @operation(needs=Needs.READ_COSTS, query=RecommendationsQuery, answer=answers.KubecentRecommendations)
    async def get(self, query: RecommendationsQuery) -> KeptAnswer:
        cluster = await self.chosen(query.cluster_id)

        async def made(window: Window) -> Struct:
            found = await self.costs.optimization(cluster, window, self.request_id)
            listed = (*found.right_sizing, *found.abandoned_workloads, *found.unclaimed_volumes, *found.idle_nodes)
            dearest = sorted(listed, key=lambda one: -one.monthly_saving)
            limit = int(query.limit or 10)
            return answers.KubecentRecommendations(
                window=found.window,
                item_count=min(limit, len(dearest)),
                potential_savings=found.potential_savings,
                complete=found.complete,
                sources=found.sources,
                recommendations=tuple(dearest[:limit]),
            )

        return await self.kept(cluster, query, made)


class KubecentMonthlyQuery(Struct, frozen=True, kw_only=True):
    cluster_id: Uuid | None = None
    months: Months = Months("12")
    timezone: TimeZone = TimeZone("UTC")


class KubecentMonthly(Kubecent):
    """A cluster's cost month by month."""

    expenses: ExpensesController

    @operation(needs=Needs.READ_COSTS, query=KubecentMonthlyQuery, answer=answers.Monthly)
    async def get(self, query: KubecentMonthlyQuery) -> answers.Monthly:
        cluster = await self.chosen(query.cluster_id)
        return await self.expenses.monthly([cluster], int(query.months), query.timezone.zone, self.request_id)


class NamedCluster(Text):
    """An id, or a name where that is the only one."""

    pattern = r"[^\x00-\x1f\x7f/]{1,128}"
    what = "a cluster's id or name"


class ClusterPathQuery(WindowQuery, frozen=True, kw_only=True):
    cluster: NamedCluster


class ByName(KubecentView):
    """One cluster, by id or by name."""

    async def named(self, name: str) -> Cluster:
        """The cluster of that id or name.

        Raises:
            ApiError: 404 where there is none, or several of the name.
        """
        visible = await self.gate.visible(self.identity, self.needs)
        found = [one for one in visible if one.id == name] or [one for one in visible if one.name == name]
        if len(found) != 1:
            raise ApiError(NOT_FOUND)
        return await self.gate.cluster(self.identity, found[0].id, self.needs)


class KubernetesCosts(ByName):
    """What one cluster cost, by id or by name."""

    @operation(needs=Needs.READ_COSTS, query=ClusterPathQuery, answer=answers.ClusterCosts)
    async def get(self, query: ClusterPathQuery) -> KeptAnswer:
        cluster = await self.named(query.cluster)
        return await self.kept(
            cluster, query, lambda window: self.costs.costs(cluster, window, ("namespace",), self.request_id)
        )


class KubernetesNamespaces(ByName):
    """A cluster's namespaces."""

    @operation(needs=Needs.READ_COSTS, query=ClusterPathQuery, answer=answers.Namespaces)
    async def get(self, query: ClusterPathQuery) -> KeptAnswer:
        cluster = await self.named(query.cluster)
        return await self.kept(cluster, query, lambda window: self.costs.namespaces(cluster, window, self.request_id))


class KubernetesWorkloads(ByName):
    """A cluster's workloads, of every namespace."""

    @operation(needs=Needs.READ_COSTS, query=ClusterPathQuery, answer=answers.NamedWorkloads)
    async def get(self, query: ClusterPathQuery) -> KeptAnswer:
        cluster = await self.named(query.cluster)

        async def made(window: Window) -> Struct:
            aggregate = ("namespace", "controller", "controllerKind")
            found = await self.costs.costs(cluster, window, aggregate, self.request_id)
            return answers.NamedWorkloads(**fields_of(found, answers.ClusterStatement), workloads=found.costs)

        return await self.kept(cluster, query, made)


class KubernetesOptimization(ByName):
    """What a cluster could save."""

    @operation(needs=Needs.READ_COSTS, query=ClusterPathQuery, answer=answers.Optimization)
    async def get(self, query: ClusterPathQuery) -> KeptAnswer:
        cluster = await self.named(query.cluster)
        return await self.kept(cluster, query, lambda window: self.costs.optimization(cluster, window, self.request_id))
