"""Who may do what: the token's user, the organization, the cluster; checked before anything else is done."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from msgspec import Struct

from rest_api.rest_api_server.directory.model import (
    Cluster,
    Directory,
    DirectoryError,
    Identity,
    Missing,
    Organization,
    Role,
    digest,
)
from rest_api.rest_api_server.errors import CODES, FORBIDDEN, INVALID, NOT_FOUND, TOO_MANY, UNAUTHORIZED
from rest_api.rest_api_server.exports.files import Files
from rest_api.rest_api_server.kept import KeptAnswer, KeptAnswers
from tools.tornado_service.application import ServiceHandler
from tools.tornado_service.errors import ApiError
from tools.tornado_service.operation import Operation
from tools.tornado_service.params import Uuid, WindowQuery, resolve_window
from tools.tornado_service.ready import KnownRequest, ReadyAnswer
from tools.tornado_service.slowdown import Slowdown
from tools.window import Window

T = TypeVar("T")
MAX_TOKEN_LENGTH = 512
PREFIX_LENGTH = 8
DIRECTORY_SECONDS = 5.0
REMEMBERED_SECONDS = 5.0
"""What the directory tells of a token, a cluster, an organization is good for so long: a token that is revoked, or a
role that is taken away, opens nothing after that."""
MOST_REMEMBERED = 10_000
DEFAULT_WINDOW = "7d"


@dataclass(frozen=True)
class Permission:
    """The role that has it, and whether it changes anything: a token that may only read never has it then."""

    role: Role
    writes: bool = False


class Needs(Enum):
    """The permission that an operation needs."""

    READ_COSTS = Permission(Role.VIEWER)
    READ_LINKS = Permission(Role.MANAGER)
    CHANGE_RULES = Permission(Role.MANAGER, writes=True)
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
        self._identities = _Remembered[Identity]()
        self._clusters = _Remembered[Cluster]()
        self._organizations = _Remembered[Organization]()
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
        token = _token_of(authorization)
        if token is None:
            raise ApiError(UNAUTHORIZED)
        known = self._identities.get(digest(token))
        if known is not None:
            return known
        keys = (f"address {address}", f"token {token[:PREFIX_LENGTH].decode('latin-1')}")
        if self._slowdown.crowded(*keys):
            raise self._slowed()
        now, asked_at = self._clock(), time.monotonic()
        found = await self.ask(lambda directory: directory.identity(token, now))
        if found is None:
            raise self._slowed() if await self._slowdown.failed(*keys) else ApiError(UNAUTHORIZED)
        self._identities.put(digest(token), found, asked_at)
        return found

    async def session(self, secret: str) -> Identity | None:
        """Whose session a cookie stands for; None where it has ended."""
        offered, now = secret.encode("utf-8", "replace"), self._clock()
        key = b"session " + digest(offered)
        return await self._identities.get_or_ask(
            key, lambda: self.ask(lambda directory: directory.session(offered, now))
        )

    async def new_session(self, identity: Identity, expires_at: int) -> str:
        """The secret of a new session.

        Raises:
            ApiError: its token is gone.
        """
        try:
            return await self.ask(lambda directory: directory.create_sign_in(identity.token_id, "session", expires_at))
        except Missing:
            raise ApiError(UNAUTHORIZED) from None

    async def end_session(self, secret: str) -> None:
        offered = secret.encode("utf-8", "replace")
        self._identities.forget(b"session " + digest(offered))
        await self.ask(lambda directory: directory.end_session(offered))
        self._identities.forget(b"session " + digest(offered))

    async def use_code(self, code: str) -> Identity | None:
        """Whose token a code of a link stands for; once."""
        offered, now = code.encode("utf-8", "replace"), self._clock()
        return await self.ask(lambda directory: directory.use_code(offered, now))

    def remembered(self, authorization: list[str], cluster_id: str, needs: Needs) -> tuple[Identity, Cluster] | None:
        """Who asks and for what, where the directory has told of both a moment ago and the one may see the other."""
        token = _token_of(authorization)
        identity = self._identities.get(digest(token)) if token is not None else None
        cluster = self._clusters.get(cluster_id)
        if identity is None or cluster is None or self._organizations.get(cluster.organization_id) is None:
            return None
        if _refusal(identity, cluster.organization_id, needs) is not None:
            return None
        return (identity, cluster) if self._taken[identity.token_id] < self._places else None

    def forget(self, cluster_id: str) -> None:
        """This process changed a cluster: it is asked for again."""
        self._clusters.forget(cluster_id)

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
        if organization_id not in identity.roles or await self._organization(organization_id) is None:
            raise ApiError(NOT_FOUND)
        refusal = _refusal(identity, organization_id, needs)
        if refusal is not None:
            raise refusal
        return organization_id

    async def _organization(self, organization_id: str) -> Organization | None:
        def ask(directory: Directory) -> Organization | None:
            return directory.organization(organization_id)

        return await self._organizations.get_or_ask(organization_id, lambda: self.ask(ask))

    async def cluster(
        self, identity: Identity, cluster_id: str, needs: Needs, organization_id: str | None = None
    ) -> Cluster:
        """A cluster of an organization in which the identity has the permission.

        Raises:
            ApiError: 404, the same for what is not there and what is another's; 403
        """
        found = await self._clusters.get_or_ask(
            cluster_id, lambda: self.ask(lambda directory: directory.cluster(cluster_id))
        )
        if found is None or organization_id not in (None, found.organization_id):
            raise ApiError(NOT_FOUND)
        await self.organization(identity, found.organization_id, needs)
        return found

    async def organizations(self, identity: Identity) -> list[Organization]:
        """Those in which the identity has a role, by name."""
        asked = [await self._organization(organization_id) for organization_id in identity.roles]
        return sorted((one for one in asked if one is not None), key=lambda one: (one.name, one.id))

    async def organization_named(self, identity: Identity, organization_id: str) -> Organization:
        """An organization in which the identity has a role.

        Raises:
            ApiError: 404
        """
        found = await self._organization(organization_id) if organization_id in identity.roles else None
        if found is None:
            raise ApiError(NOT_FOUND)
        return found

    @staticmethod
    def may(identity: Identity, organization_id: str, needs: Needs) -> bool:
        """Whether an identity has a permission in an organization."""
        return _refusal(identity, organization_id, needs) is None

    async def clusters(self, organization_id: str) -> list[Cluster]:
        return await self.ask(lambda directory: directory.clusters(organization_id))

    async def visible(self, identity: Identity, needs: Needs) -> list[Cluster]:
        """Every cluster for which the identity has the permission."""
        found: list[Cluster] = []
        for organization_id, role in sorted(identity.roles.items()):
            if role >= needs.permission.role:
                found += await self.clusters(organization_id)
        return found


class _Remembered(Generic[T]):
    """What the directory told a moment ago; that something is not there is never remembered."""

    def __init__(self) -> None:
        self._told: dict[Hashable, tuple[float, T]] = {}
        self._forgotten = 0

    def get(self, key: Hashable) -> T | None:
        told_at, value = self._told.get(key, (float("-inf"), None))
        return value if time.monotonic() - told_at < REMEMBERED_SECONDS else None

    def put(self, key: Hashable, value: T, told_at: float) -> None:
        if len(self._told) >= MOST_REMEMBERED:
            self._told.clear()
        self._told[key] = (told_at, value)

    def forget(self, key: Hashable) -> None:
        self._forgotten += 1
        self._told.pop(key, None)

    async def get_or_ask(self, key: Hashable, ask: Callable[[], Awaitable[T | None]]) -> T | None:
        known = self.get(key)
        if known is not None:
            return known
        asked_at, forgotten = time.monotonic(), self._forgotten
        value = await ask()
        if value is not None and forgotten == self._forgotten:
            self.put(key, value, asked_at)
        return value


def _refusal(identity: Identity, organization_id: str, needs: Needs) -> ApiError | None:
    """Why an identity may not do something in an organization; None where it may."""
    role = identity.roles.get(organization_id)
    if role is None:
        return ApiError(NOT_FOUND)
    if role < needs.permission.role:
        return ApiError(FORBIDDEN)
    if needs.permission.writes and identity.read_only:
        return ApiError(FORBIDDEN, "your token may only read")
    return None


def _token_of(authorization: list[str]) -> bytes | None:
    """The token of the one Authorization header; None where there is none, or several headers."""
    if len(authorization) != 1:
        return None
    scheme, _, token = authorization[0].partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_LENGTH:
        return None
    return token.encode("latin-1", "replace")


def actor_of(identity: Identity) -> dict[str, str]:
    return {
        "kind": "user",
        "user_id": identity.user_id,
        "user": identity.user_name,
        "token_id": identity.token_id,
    }


class RestHandler(ServiceHandler):
    """A handler behind a token; ids in its path are checked with it."""

    gate: Gate
    files: Files
    needs: Needs
    identity: Identity
    cluster: Cluster
    takes_place = True
    """Whether the request counts against what one token may ask at once."""
    _placed = False

    @property
    def actor(self) -> dict[str, str]:
        known: Identity | None = getattr(self, "identity", None)
        return {"kind": "anonymous"} if known is None else actor_of(known)

    async def authorize(self, operation: Operation, path: dict[str, str]) -> None:
        self.needs = operation.needs
        self.identity = await self.identified()
        if self.takes_place:
            self.gate.take_place(self.identity)
            self._placed = True
        ids = {name: _uuid(name, text) for name, text in path.items() if name in ("organization_id", "cluster_id")}
        organization_id = ids.get("organization_id")
        if organization_id is not None:
            await self.gate.organization(self.identity, organization_id, self.needs)
        if "cluster_id" in ids:
            self.cluster = await self.gate.cluster(self.identity, ids["cluster_id"], self.needs, organization_id)

    async def identified(self) -> Identity:
        """Who asks.

        Raises:
            ApiError: 401, 429
        """
        return await self.gate.identity(self.request.headers.get_list("Authorization"), self.address)

    def _leave(self) -> None:
        super()._leave()
        if self._placed:
            self._placed = False
            self.gate.leave_place(self.identity)


class ViewHandler(RestHandler):
    """A view of one cluster, which may be kept; how it was come by stands in its headers."""

    answers: KeptAnswers
    cluster: Cluster

    @classmethod
    def window(cls, query: WindowQuery, now: float) -> Window:
        """Raises: ApiError"""
        return resolve_window(query, now, CODES, DEFAULT_WINDOW)

    async def kept(
        self, cluster: Cluster, query: WindowQuery, make: Callable[[Window], Awaitable[Struct]]
    ) -> KeptAnswer:
        """The view of a cluster that a query asks for; the query is all that tells two views of a kind apart."""
        window = self.window(query, self.service.clock())
        key = self.answers.key(type(self).__name__, cluster, query, window)
        return await self.answers.answer(key, lambda: make(window))

    @classmethod
    def ready(cls, asked: KnownRequest) -> ReadyAnswer | None:
        target, parts = asked.target, asked.target.parts
        cluster_id = getattr(target.query, "cluster_id", None)
        if cluster_id is None:
            return None
        gate: Gate = parts["gate"]
        found = gate.remembered(asked.headers.get_list("Authorization"), cluster_id, target.needs)
        if found is None:
            return None
        identity, cluster = found
        answers: KeptAnswers = parts["answers"]
        try:
            window = cls.window(target.query, asked.service.clock())
        except ApiError:
            return None
        kept = answers.hit(answers.key(cls.__name__, cluster, target.query, window))
        if kept is None:
            return None

        def take_place() -> Callable[[], None]:
            gate.take_place(identity)
            return lambda: gate.leave_place(identity)

        return ReadyAnswer(kept.prepared, actor_of(identity), kept.headers, take_place)

    async def send(self, value: Any) -> None:
        if isinstance(value, KeptAnswer):
            for name, text in value.headers:
                self._headers[name] = text
            value = value.prepared
        await super().send(value)


def _uuid(name: str, text: str) -> str:
    try:
        return Uuid.parse(text)
    except ValueError as problem:
        raise ApiError(INVALID, f"{name} {problem}", [name]) from None
