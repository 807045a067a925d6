"""Organizations, clusters, users, tokens and roles; what a directory must be able to do."""

from __future__ import annotations

import enum
from typing import Literal, Protocol

from msgspec import Struct

Flavour = Literal["kubecost", "opencost", "push"]
LinkState = Literal["linking", "linked", "unlinking"]


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
    type: str = "kubernetes_cnr"


class User(Struct, frozen=True):
    id: str
    name: str


class Identity(Struct, frozen=True):
    """Whose token it is, and what they may where."""

    user_id: str
    user_name: str
    roles: dict[str, Role]


class DirectoryError(Exception):
    """The directory cannot be used; the text says which and why."""


class AlreadyExists(Exception):
    """A name is taken."""


class Missing(Exception):
    """What is named is not there."""


class Directory(Protocol):
    """Implementations are safe to call from several threads."""

    def create_organization(self, name: str) -> Organization: ...

    def organization(self, organization_id: str) -> Organization | None: ...

    def organizations(self) -> list[Organization]: ...

    def create_user(self, name: str) -> User:
        """Raises: AlreadyExists"""
        ...

    def users(self) -> list[User]: ...

    def set_role(self, user_name: str, organization_id: str, role: Role | None) -> None:
        """None takes the role away. Raises: Missing"""
        ...

    def create_token(self, user_name: str, expires_at: int | None) -> tuple[str, str]:
        """``(token id, token)``; the token is seen here once and stored as a digest. Raises: Missing"""
        ...

    def revoke_token(self, token_id: str) -> bool: ...

    def identity(self, token: bytes, now: float) -> Identity | None:
        """Whose token this is; None where it is unknown, expired, revoked or its user is disabled."""
        ...

    def create_cluster(
        self, organization_id: str, name: str, flavour: Flavour, url: str, cluster_id: str | None = None
    ) -> Cluster:
        """In state ``linking``, under an id of its own; only an operator gives one. Raises: AlreadyExists"""
        ...

    def cluster(self, cluster_id: str) -> Cluster | None: ...

    def clusters(self, organization_id: str) -> list[Cluster]: ...

    def update_cluster(self, cluster_id: str, *, name: str, flavour: Flavour, url: str, state: LinkState) -> Cluster:
        """Raises: Missing, AlreadyExists"""
        ...

    def delete_cluster(self, cluster_id: str) -> bool: ...

    def close(self) -> None: ...
