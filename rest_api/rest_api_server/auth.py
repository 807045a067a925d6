"""Who may do what: the token's user, the organization, the cluster; checked before anything else is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from enum import Enum
from typing import TypeVar

from rest_api.rest_api_server.directory.model import Cluster, Directory, Identity, Role
from rest_api.rest_api_server.errors import FORBIDDEN, INVALID, NOT_FOUND, UNAUTHORIZED
from tools.tornado_service.application import ServiceHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import Operation
from tools.tornado_service.params import Uuid

T = TypeVar("T")
MAX_TOKEN_LENGTH = 512


class Needs(Enum):
    """The permission that an operation needs, and the role that has it."""

    READ_COSTS = Role.VIEWER
    READ_LINKS = Role.MANAGER
    MANAGE_CLUSTERS = Role.ADMIN

    @property
    def role(self) -> Role:
        return Role(self.value)


class Gate:
    """Asks the directory; every question goes to its own threads, so that hanging upstreams never hold it up."""

    def __init__(self, directory: Directory, threads: Executor, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._threads = threads
        self._clock = clock

    async def ask(self, question: Callable[[Directory], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, question, self._directory)

    async def identity(self, authorization: list[str]) -> Identity:
        """Whose token the one Authorization header carries.

        Raises:
            ApiError: 401
        """
        if len(authorization) != 1:
            raise ApiError(UNAUTHORIZED)
        scheme, _, token = authorization[0].partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_LENGTH:
            raise ApiError(UNAUTHORIZED)
        now = self._clock()
        found = await self.ask(lambda directory: directory.identity(token.encode("latin-1", "replace"), now))
        if found is None:
            raise ApiError(UNAUTHORIZED)
        return found

    async def organization(self, identity: Identity, organization_id: str, needed: Role) -> str:
        """An organization in which the identity has the role.

        Raises:
            ApiError: 404 where it has none there, 403 where its role is too small.
        """
        role = identity.roles.get(organization_id)
        if role is None or await self.ask(lambda directory: directory.organization(organization_id)) is None:
            raise ApiError(NOT_FOUND)
        if role < needed:
            raise ApiError(FORBIDDEN)
        return organization_id

    async def cluster(
        self, identity: Identity, cluster_id: str, needed: Role, organization_id: str | None = None
    ) -> Cluster:
        """A cluster of an organization in which the identity has the role.

        Raises:
            ApiError: 404, the same for what is not there and what is another's; 403
        """
        found = await self.ask(lambda directory: directory.cluster(cluster_id))
        if found is None or organization_id not in (None, found.organization_id):
            raise ApiError(NOT_FOUND)
        await self.organization(identity, found.organization_id, needed)
        return found

    async def visible(self, identity: Identity) -> list[Cluster]:
        """Every cluster that the identity may read."""
        found: list[Cluster] = []
        for organization_id in sorted(identity.roles):
            found += await self.ask(lambda directory, one=organization_id: directory.clusters(one))  # type: ignore[misc]
        return found


class RestHandler(ServiceHandler):
    """A handler behind a token; ids in its path are checked with it."""

    gate: Gate
    identity: Identity
    cluster: Cluster

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        needed: Role = operation.needs.role
        self.identity = await self.gate.identity(self.request.headers.get_list("Authorization"))
        ids = {name: _uuid(name, text) for name, text in path.items() if name in ("organization_id", "cluster_id")}
        organization_id = ids.get("organization_id")
        if organization_id is not None:
            await self.gate.organization(self.identity, organization_id, needed)
        if "cluster_id" in ids:
            self.cluster = await self.gate.cluster(self.identity, ids["cluster_id"], needed, organization_id)


def _uuid(name: str, text: str) -> str:
    try:
        return Uuid.parse(text)
    except ValueError as problem:
        raise ApiError(INVALID, f"{name} {problem}", [name]) from None
