"""Organizations, clusters, users, tokens, roles and what clusters are made of; what a directory must be able to do."""

from __future__ import annotations

import enum
import hashlib
import secrets
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

Flavour = Literal["kubecost", "opencost", "push"]
LinkState = Literal["linking", "linked"]
KUBERNETES = "kubernetes_cnr"
TOKEN_BYTES = 32


class Role(enum.IntEnum):
    """What a user may do in an organization; each may what those before it may."""

    VIEWER = 1
    MANAGER = 2
    ADMIN = 3

    @classmethod
    def of(cls, name: str) -> Role:
        return cls[name.upper()]


class Organization(Struct, frozen=True):
    id: str
    name: str


class Cluster(Struct, frozen=True):
    """A cloud account of type ``kubernetes_cnr``; its id is its ``cloud_account_id``."""

    id: str
    organization_id: str
    name: str
    flavour: Flavour
    url: str
    state: LinkState
    revision: int = 0
    """One more after each change."""


class User(Struct, frozen=True):
    id: str
    name: str
    disabled: bool = False


class Token(Struct, frozen=True):
    """What is kept of a token beside its digest; None in ``organizations`` is all that its user has a role in."""

    id: str
    user_name: str
    expires_at: int | None
    revoked: bool
    organizations: tuple[str, ...] | None
    read_only: bool


class Identity(Struct, frozen=True):
    """Whose token it is, and what they may where with it."""

    user_id: str
    user_name: str
    token_id: str
    roles: dict[str, Role]
    read_only: bool = False


FORGOTTEN_SECONDS = 7 * 86400
"""Sign-ins that ended so long before a new one ends are deleted with it."""
SIGN_INS_OF_A_TOKEN = 50
"""Sessions, and codes, that one token may have at once; a new one ends the oldest."""
LONGEST_SESSION_SECONDS = 36 * 3600
"""A session that would last longer was begun by a clock that was ahead, and has ended."""
SignIn = Literal["session", "code"]
"""What a secret beside a token is for: a browser that is signed in, or signing one in once."""


class Resources(Struct, frozen=True):
    """What a cluster is made of, as it was last told: quotas of namespaces, requests and limits, nodes.

    ``fetched_at`` is in Unix seconds; the lists are those of Metroculus' ``k8s_metadata``.
    """

    fetched_at: int
    quotas: list[dict[str, Any]]
    workloads: list[dict[str, Any]]
    nodes: list[dict[str, Any]]


RESOURCES = msgspec.json.Decoder(Resources)


class DirectoryError(Exception):
    """The directory cannot be used; the text says why, and shows no password."""


class AlreadyExists(Exception):
    """A name is taken."""


class Missing(Exception):
    """What is named is not there."""


class Changed(Exception):
    """Somebody else has changed it meanwhile."""


def new_token() -> str:
    return secrets.token_urlsafe(TOKEN_BYTES)


def digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def narrowed(roles: dict[str, Role], organizations: Sequence[str] | None) -> dict[str, Role]:
    """The roles that a token carries, of those that its user has."""
    return roles if organizations is None else {one: role for one, role in roles.items() if one in organizations}


class Directory(Protocol):
    """Implementations are safe to call from several threads; every method may raise ``DirectoryError``."""

    def create_organization(self, name: str) -> Organization: ...

    def organization(self, organization_id: str) -> Organization | None: ...

    def organizations(self) -> list[Organization]: ...

    def delete_organization(self, organization_id: str) -> bool:
        """Nobody has a role in it from then on, and its clusters are no more."""
        ...

    def create_user(self, name: str) -> User:
        """Raises: AlreadyExists"""
        ...

    def users(self) -> list[User]: ...

    def disable_user(self, name: str) -> None:
        """Refuse every token of a user from now on. Raises: Missing"""
        ...

    def set_role(self, user_name: str, organization_id: str, role: Role | None) -> None:
        """None takes the role away. Raises: Missing"""
        ...

    def create_token(
        self,
        user_name: str,
        expires_at: int | None,
        organizations: Sequence[str] | None = None,
        read_only: bool = False,
    ) -> tuple[str, str]:
        """``(token id, token)``; the token is seen here once and stored as a digest. Raises: Missing

        Args:
            organizations: the only ones that it is good for, of those in which its user has a role.
            read_only: whether it may change nothing.
        """
        ...

    def tokens(self, user_name: str) -> list[Token]:
        """Raises: Missing"""
        ...

    def revoke_token(self, token_id: str) -> bool: ...

    def identity(self, token: bytes, now: float) -> Identity | None:
        """Whose token this is; None where it is unknown, expired, revoked or its user is disabled."""
        ...

    def create_sign_in(self, token_id: str, kind: SignIn, expires_at: int) -> str:
        """A secret that stands for a token: seen here once, stored as a digest, and good for as long as the token is.

        Raises: Missing
        """
        ...

    def session(self, secret: bytes, now: float) -> Identity | None:
        """Whose session this is; None where it has ended, or its token is no good any more."""
        ...

    def use_code(self, code: bytes, now: float) -> Identity | None:
        """Whose token a code stands for, once: of several who offer it one gets an answer."""
        ...

    def end_session(self, secret: bytes) -> bool: ...

    def create_cluster(
        self,
        organization_id: str,
        name: str,
        flavour: Flavour,
        url: str,
        cluster_id: str | None = None,
        kind: str = KUBERNETES,
    ) -> Cluster:
        """In state ``linking``, under an id of its own; only an operator gives one. Raises: AlreadyExists

        Args:
            kind: the cloud account's type; one of another type is kept, and is no cluster.
        """
        ...

    def cluster(self, cluster_id: str) -> Cluster | None: ...

    def clusters(self, organization_id: str) -> list[Cluster]:
        """By name."""
        ...

    def linked_clusters(self) -> list[Cluster]:
        """Those of every organization, by id: for what is done for all of them."""
        ...

    def update_cluster(
        self,
        cluster_id: str,
        *,
        name: str,
        flavour: Flavour,
        url: str,
        state: LinkState,
        revision: int | None = None,
    ) -> Cluster:
        """Raises: Missing, AlreadyExists, Changed

        Args:
            revision: the only one that is changed; without it whatever is there.
        """
        ...

    def cluster_ids(self) -> dict[str, bool]:
        """Every cluster that ever was, and whether it still is: not unlinked, nor of an organization that is gone."""
        ...

    def delete_cluster(self, cluster_id: str) -> bool: ...

    def put_resources(self, cluster_id: str, resources: Resources) -> None:
        """Keep what a cluster is made of; what is older than what is kept changes nothing."""
        ...

    def resources(self, cluster_id: str) -> Resources | None: ...

    def close(self) -> None: ...
