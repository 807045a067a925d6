"""Clusters that join: linking them, what to install, and whether their first hours have arrived."""

from __future__ import annotations

import shlex
from typing import Literal

from msgspec import Struct

from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import Needs
from rest_api.rest_api_server.controllers.clusters import (
    AuthBody,
    ChangedCluster,
    ClustersController,
    LinkBody,
)
from rest_api.rest_api_server.controllers.costs import CostsController
from rest_api.rest_api_server.errors import CODES, INVALID
from rest_api.rest_api_server.pages.base import REFUSALS, ChangeForm, PageHandler
from rest_api.rest_api_server.pages.parts import PageNumber, cluster_trouble
from rest_api.rest_api_server.pages.sections import OrganizationSection
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import operation
from tools.tornado_service.params import Cell, Uuid, WindowQuery, resolve_window

ARRIVED_WITHIN = "24h"
SHOWN_CLUSTERS = 100
EXAMPLE_GATEWAY = "https://push.example.com"


class ClustersQuery(Struct, frozen=True, kw_only=True):
    organization_id: Uuid
    page: PageNumber = PageNumber("1")


class JoinForm(ChangeForm, frozen=True, kw_only=True):
    name: Cell
    flavour: Literal["push", "opencost", "kubecost"] = "push"
    url: Cell = Cell("")
    token: Cell = Cell("")
    currency: Cell = Cell("")

    def body(self) -> LinkBody:
        if self.flavour == "push" and (self.url.strip() or self.token.strip()):
            raise ApiError(INVALID, "a cluster that pushes has no address: leave it empty", ["url"])
        auth = AuthBody("bearer", token=self.token.strip()) if self.token.strip() else None
        return LinkBody(
            name=self.name.strip(),
            flavour=self.flavour,
            url=self.url.strip(),
            auth=auth,
            currency=self.currency.strip() or None,
        )


class ClusterFormQuery(Struct, frozen=True, kw_only=True):
    cluster_id: Uuid


class UnlinkForm(ChangeForm, frozen=True, kw_only=True):
    name: Cell = Cell("")


class Arrival(Struct, frozen=True):
    """Whether anything of a cluster's last day is known."""

    state: Literal["complete", "partial", "waiting"]
    known: float | None
    """The share of the last day of which something is known."""
    why: str


def arrival_of(one: answers.ClusterSummary) -> Arrival:
    """What a cluster's statement of the last day says of its freshness."""
    shares = [source.coverage for source in one.sources if source.coverage is not None]
    known = max(shares, default=None)
    if one.error is not None or not known:
        return Arrival("waiting", known, cluster_trouble(one))
    return Arrival("complete" if one.complete else "partial", known, cluster_trouble(one))


class JoiningSection(OrganizationSection):
    tab = "clusters"
    costs: CostsController
    links: ClustersController
    gateway_url: str | None

    async def shown(
        self, organization_id: str, problem: str = "", form: JoinForm | None = None, page: int = 1
    ) -> bytes:
        about = await self.about(organization_id, Needs.MANAGE_CLUSTERS)
        everything = about["clusters"]
        clusters = everything[(page - 1) * SHOWN_CLUSTERS : page * SHOWN_CLUSTERS]
        window = resolve_window(WindowQuery(window=ARRIVED_WITHIN), self.service.clock(), CODES)
        told = await self.costs.overview(organization_id, clusters, window, self.request_id)
        return await self.rendered(
            "clusters.html",
            **about,
            shown=[(cluster, arrival_of(one)) for cluster, one in zip(clusters, told.clusters, strict=True)],
            count=len(everything),
            first=(page - 1) * SHOWN_CLUSTERS,
            page_number=page,
            problem=problem,
            form=form,
        )

    async def token_shown(self, cluster_id: str, name: str, organization_id: str, token: str) -> bytes:
        """What to install, with a push token that is shown this once."""
        return self.page(
            "joined.html",
            organization=await self.gate.organization_named(self.identity, organization_id),
            tab=self.tab,
            cluster_id=cluster_id,
            name=name,
            token=token,
            gateway=shlex.quote(self.gateway_url or EXAMPLE_GATEWAY),
            gateway_known=self.gateway_url is not None,
        )


class ClustersPage(JoiningSection):
    """The organization's clusters with how fresh each is; and linking a new one."""

    @operation(needs=Needs.READ_LINKS, query=ClustersQuery, answer=str, content="text/html")
    async def get(self, query: ClustersQuery) -> bytes:
        return await self.shown(query.organization_id, page=int(query.page))

    @operation(
        needs=Needs.MANAGE_CLUSTERS,
        query=ClustersQuery,
        form=JoinForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: ClustersQuery, form: JoinForm) -> bytes | None:
        self.refuse_forged(form.csrf)

        async def link() -> ChangedCluster:
            return await self.links.link(query.organization_id, form.body(), self.request_id)

        linked = await self.attempt(link())
        if linked.found is None:
            return await self.shown(query.organization_id, linked.why, form)
        made = linked.found
        self.tell_audit(cluster_id=made.cluster_id)
        if made.push_token:
            return await self.token_shown(made.cluster_id, made.name, query.organization_id, made.push_token)
        self.go(self.path(query.organization_id))
        return None


class PushTokenPage(JoiningSection):
    """A new token for the agent of a cluster that pushes."""

    @operation(
        needs=Needs.MANAGE_CLUSTERS,
        query=ClusterFormQuery,
        form=ChangeForm,
        answer=str,
        content="text/html",
        also=REFUSALS,
    )
    async def post(self, query: ClusterFormQuery, form: ChangeForm) -> bytes:
        self.refuse_forged(form.csrf)
        made = await self.attempt(self.links.push_token(self.cluster, self.request_id))
        if made.found is None:
            return await self.shown(self.cluster.organization_id, made.why)
        about = (self.cluster.id, self.cluster.name, self.cluster.organization_id)
        return await self.token_shown(*about, made.found.push_token)


class UnlinkPage(JoiningSection):
    """Unlinks a cluster whose name was typed."""

    @operation(
        needs=Needs.MANAGE_CLUSTERS,
        query=ClusterFormQuery,
        form=UnlinkForm,
        answer=str,
        content="text/html",
        also=(303, *REFUSALS),
    )
    async def post(self, query: ClusterFormQuery, form: UnlinkForm) -> bytes | None:
        self.refuse_forged(form.csrf)
        organization_id = self.cluster.organization_id
        if form.name.strip() != self.cluster.name:
            self.set_status(400)
            return await self.shown(organization_id, f"to unlink {self.cluster.name}, type its name")
        unlinked = await self.attempt(self.links.unlink(self.cluster, self.request_id))
        if unlinked.refused:
            return await self.shown(organization_id, unlinked.why)
        self.go(self.path(organization_id))
        return None


class ArrivalPart(PageHandler):
    """A line that says whether the cluster's first hours have arrived; a page asks for it again and again."""

    costs: CostsController

    @operation(needs=Needs.READ_COSTS, query=ClusterFormQuery, answer=str, content="text/html")
    async def get(self, query: ClusterFormQuery) -> bytes:
        window = resolve_window(WindowQuery(window=ARRIVED_WITHIN), self.service.clock(), CODES)
        asked = (self.cluster.organization_id, [self.cluster], window, self.request_id)
        (one,) = (await self.costs.overview(*asked)).clusters
        return self.page("arrival.html", cluster=self.cluster, arrival=arrival_of(one))
