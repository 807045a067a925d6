"""Who may do what: the token's user, the organization, the cluster; checked before anything else is done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from rest_api.rest_api_server.directory.model import Cluster, Directory, DirectoryError, Identity, Role
from rest_api.rest_api_server.errors import FORBIDDEN, INVALID, NOT_FOUND, TOO_MANY, UNAUTHORIZED
from tools.tornado_service.application import ServiceHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import Operation
from tools.tornado_service.params import Uuid
from tools.tornado_service.slowdown import Slowdown

T = TypeVar("T")
MAX_TOKEN_LENGTH = 512
PREFIX_LENGTH = 8
DIRECTORY_SECONDS = 5.0


@dataclass(frozen=True)
class Permission:
    """The role that has it, and whether it changes anything: a token that may only read never has it then."""

    role: Role
    writes: bool = False


class Needs(Enum):
    """The permission that an operation needs."""

    READ_COSTS = Permission(Role.VIEWER)
    READ_LINKS = Permission(Role.MANAGER)
    MANAGE_CLUSTERS = Permission(Role.ADMIN, writes=True)

    @property
    def permission(self) -> Permission:
        found: Permission = self.value
        return found


class Gate:
    """Asks the directory; every question goes to its own threads, so that hanging upstreams never hold it up.

    Args:
        slowdown: who offers bad tokens, by address and by the token's beginning.
        places: requests at once with one token.
    """

    def __init__(
        self, directory: Directory, threads: Executor, clock: Callable[[], float], slowdown: Slowdown, places: int
    ) -> None:
        self._directory = directory
        self._threads = threads
        self._clock = clock
        self._slowdown = slowdown
        self._places = places
        self._taken: Counter[str] = Counter()
        self.seen = "unknown"
        """What the last question saw: ``ok``, ``failing``, or ``unknown`` before the first."""

    async def ask(self, question: Callable[[Directory], T]) -> T:
        """An answer of the directory.

        Raises:
            DirectoryError
        """
        asked = asyncio.get_running_loop().run_in_executor(self._threads, question, self._directory)
        try:
            found = await asyncio.wait_for(asked, DIRECTORY_SECONDS)
        except TimeoutError:
            self.seen = "failing"
            raise DirectoryError("the directory did not answer in time") from None
        except DirectoryError:
            self.seen = "failing"
            raise
        self.seen = "ok"
        return found

    async def identity(self, authorization: list[str], address: str) -> Identity:
        """Whose token the one Authorization header carries.

        Raises:
            ApiError: 401; 429 and late where bad tokens come too often from the address, or with this beginning.
        """
        if len(authorization) != 1:
            raise ApiError(UNAUTHORIZED)
        scheme, _, token = authorization[0].partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_LENGTH:
            raise ApiError(UNAUTHORIZED)
        keys = (f"address {address}", f"token {token[:PREFIX_LENGTH]}")
        if self._slowdown.crowded(*keys):
            raise self._slowed()
        now = self._clock()
        found = await self.ask(lambda directory: directory.identity(token.encode("latin-1", "replace"), now))
        if found is None:
            raise self._slowed() if await self._slowdown.failed(*keys) else ApiError(UNAUTHORIZED)
        return found

    def _slowed(self) -> ApiError:
        return ApiError(TOO_MANY, "too many bad tokens; come again later", retry_after=self._slowdown.retry_after)

    def take_place(self, identity: Identity) -> None:
        """Count a request of a token; ``leave_place`` when it is over.

        Raises:
            ApiError: 429
        """
        if self._taken[identity.token_id] >= self._places:
            reason = f"at most {self._places} requests at once with one token"
            raise ApiError(TOO_MANY, reason, retry_after=1)
        self._taken[identity.token_id] += 1

    def leave_place(self, identity: Identity) -> None:
        self._taken[identity.token_id] -= 1
        if not self._taken[identity.token_id]:
            del self._taken[identity.token_id]

    async def organization(self, identity: Identity, organization_id: str, needs: Needs) -> str:
        """An organization in which the identity has the permission.

        Raises:
            ApiError: 404 where it has no role there, 403 where that is too small, or the token may only read.
        """
        role = identity.roles.get(organization_id)
        if role is None or await self.ask(lambda directory: directory.organization(organization_id)) is None:
            raise ApiError(NOT_FOUND)
        if role < needs.permission.role:
            raise ApiError(FORBIDDEN)
        if needs.permission.writes and identity.read_only:
            raise ApiError(FORBIDDEN, "your token may only read")
        return organization_id

    async def cluster(
        self, identity: Identity, cluster_id: str, needs: Needs, organization_id: str | None = None
    ) -> Cluster:
        """A cluster of an organization in which the identity has the permission.

        Raises:
            ApiError: 404, the same for what is not there and what is another's; 403
        """
        found = await self.ask(lambda directory: directory.cluster(cluster_id))
        if found is None or organization_id not in (None, found.organization_id):
            raise ApiError(NOT_FOUND)
        await self.organization(identity, found.organization_id, needs)
        return found

    async def clusters(self, organization_id: str) -> list[Cluster]:
        return await self.ask(lambda directory: directory.clusters(organization_id))

    async def visible(self, identity: Identity, needs: Needs) -> list[Cluster]:
        """Every cluster for which the identity has the permission."""
        found: list[Cluster] = []
        for organization_id, role in sorted(identity.roles.items()):
            if role >= needs.permission.role:
                found += await self.clusters(organization_id)
        return found


class RestHandler(ServiceHandler):
    """A handler behind a token; ids in its path are checked with it."""

    gate: Gate
    needs: Needs
    identity: Identity
    cluster: Cluster
    _placed = False

    @property
    def actor(self) -> dict[str, str]:
        known: Identity | None = getattr(self, "identity", None)
        if known is None:
            return {"kind": "anonymous"}
        return {"kind": "user", "user_id": known.user_id, "user": known.user_name, "token_id": known.token_id}

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        self.needs = operation.needs
        self.identity = await self.gate.identity(self.request.headers.get_list("Authorization"), self.address)
        self.gate.take_place(self.identity)
        self._placed = True
        ids = {name: _uuid(name, text) for name, text in path.items() if name in ("organization_id", "cluster_id")}
        organization_id = ids.get("organization_id")
        if organization_id is not None:
            await self.gate.organization(self.identity, organization_id, self.needs)
        if "cluster_id" in ids:
            self.cluster = await self.gate.cluster(self.identity, ids["cluster_id"], self.needs, organization_id)

    def _leave(self) -> None:
        super()._leave()
        if self._placed:
            self._placed = False
            self.gate.leave_place(self.identity)


def _uuid(name: str, text: str) -> str:
    try:
        return Uuid.parse(text)
    except ValueError as problem:
        raise ApiError(INVALID, f"{name} {problem}", [name]) from None
