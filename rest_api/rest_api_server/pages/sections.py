"""What all pages of an organization, and all of a cluster, show alike."""

from __future__ import annotations

from functools import partial
from typing import Any

from rest_api.rest_api_server.auth import Needs
from rest_api.rest_api_server.pages.base import PageHandler
from rest_api.rest_api_server.pages.parts import WINDOWS, named
from tools.window import Window


class OrganizationSection(PageHandler):
    """One of the pages of an organization."""

    tab: str
    """The last part of its path."""

    async def about(self, organization_id: str, needs: Needs = Needs.CHANGE_RULES) -> dict[str, Any]:
        """What each of the pages shows.

        Args:
            needs: the permission of those who see the forms.
        """
        clusters = await self.gate.clusters(organization_id)
        names_of = {one.id: one.name for one in clusters}
        return {
            "organization": await self.gate.organization_named(self.identity, organization_id),
            "tab": self.tab,
            "path": self.path(organization_id),
            "clusters": clusters,
            "names_of": names_of,
            "named": partial(named, names_of),
            "may_change": self.may(organization_id, needs),
        }

    def path(self, organization_id: str) -> str:
        return f"/organizations/{organization_id}/{self.tab}"


class ClusterSection(PageHandler):
    """One of the pages of a cluster in a window."""

    async def about(self, asked: dict[str, Any], tab: str, window: Window) -> dict[str, Any]:
        """What each of the pages shows.

        Args:
            asked: what stands in the address.
            tab: the last part of its path; empty for the cluster itself.
        """
        return {
            "organization": await self.gate.organization_named(self.identity, self.cluster.organization_id),
            "cluster": self.cluster,
            "tab": tab,
            "path": f"/clusters/{self.cluster.id}/{tab}".removesuffix("/"),
            "asked": asked,
            "kept": {name: asked[name] for name in ("window", "timezone") if name in asked},
            "windows": WINDOWS,
            "window": window,
            "start": window.zone.iso(window.start),
            "end": window.zone.iso(window.end),
        }
