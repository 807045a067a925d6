"""``/restapi/v2/organizations``: what a token sees, without any cost."""

from __future__ import annotations

from rest_api.rest_api_server import answers
from rest_api.rest_api_server.auth import Needs, RestHandler
from rest_api.rest_api_server.handlers.v2.clusters import OrganizationQuery
from tools.tornado_service.operation import NoQuery, operation


class Organizations(RestHandler):
    """The organizations that the token sees, and what its user may do in each."""

    @operation(needs=Needs.READ_COSTS, answer=answers.SeenOrganizations)
    async def get(self, query: NoQuery) -> answers.SeenOrganizations:
        found = await self.gate.organizations(self.identity)
        return answers.SeenOrganizations(
            user=self.identity.user_name,
            read_only=self.identity.read_only,
            organizations=tuple(
                answers.SeenOrganization(id=one.id, name=one.name, role=self.identity.roles[one.id].name.lower())
                for one in found
            ),
        )


class SeenOrganization(RestHandler):
    """An organization and its clusters."""

    @operation(needs=Needs.READ_COSTS, query=OrganizationQuery, answer=answers.OrganizationClusters)
    async def get(self, query: OrganizationQuery) -> answers.OrganizationClusters:
        found = {one.id: one for one in await self.gate.organizations(self.identity)}
        clusters = await self.gate.clusters(query.organization_id)
        return answers.OrganizationClusters(
            id=query.organization_id,
            name=found[query.organization_id].name,
            role=self.identity.roles[query.organization_id].name.lower(),
            clusters=tuple(
                answers.SeenCluster(cluster_id=one.id, name=one.name, state=one.state, flavour=one.flavour)
                for one in sorted(clusters, key=lambda one: (one.name, one.id))
            ),
        )
