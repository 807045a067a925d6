"""Which upstream an account has: written here alone, never read back with its credentials."""

from __future__ import annotations

import base64
import re
import ssl
from typing import Annotated, Literal

from msgspec import Meta, Struct

from metroculus.codes import INVALID, MISSING, NOT_FOUND, ONE_CLUSTER, OUTDATED
from metroculus.cost_model.prices import CustomPrices
from metroculus.sources.accounts import (
    PUSH,
    Accounts,
    AllowedAddresses,
    Credentials,
    MetricsCluster,
    Outdated,
    SourceEntry,
    flavours,
)
from metroculus.sources.errors import AddressRefused
from metroculus.wire import wire
from optscale_client.metroculus_client import structs
from tools.tornado_service.errors import ApiError

MAX_CREDENTIAL_LENGTH = 8192
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
NOT_CREDENTIALS = frozenset(
    (
        "host", "content-length", "content-type", "transfer-encoding", "connection", "upgrade", "te", "trailer",
        "expect", "accept", "accept-encoding", "range", "user-agent", "x-request-id", "thanos-tenant", "secret",
    )
)  # fmt: skip
"""Headers that say how a request is to be read; an account sets none of them."""


class Auth(Struct, frozen=True, forbid_unknown_fields=True):
    """``bearer`` with a token, ``basic`` with a user and a password, or ``header`` with a name and a value."""

    type: Literal["bearer", "basic", "header"]
    token: str = ""
    username: str = ""
    password: str = ""
    name: str = ""
    value: str = ""


class ThanosBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Which series are the account's, where several clusters write under one tenant."""

    value: Annotated[str, Meta(min_length=1, max_length=256)]
    label: Annotated[str, Meta(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,127}$")] = "cluster_id"


ClusterName = Annotated[str, Meta(min_length=1, max_length=256)]
ClusterNames = Annotated[list[ClusterName], Meta(min_length=1, max_length=32)]


class SourceBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Where an account's Kubecost or OpenCost is; with ``push`` its agent writes to Thanos and nothing is asked."""

    flavour: Annotated[str, Meta(pattern=f"^({'|'.join(flavours())})$")]
    url: str = ""
    auth: Auth | None = None
    ca: str | None = None
    custom_prices: CustomPrices | None = None
    cluster: ClusterName | ClusterNames | None = None
    thanos: ThanosBody | None = None
    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] | None = None
    managed_by: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,64}$")] | None = None
    version: Annotated[int, Meta(ge=0, le=2**53)] = 0


class SourcesController:
    def __init__(self, accounts: Accounts, allowed: AllowedAddresses) -> None:
        self._accounts = accounts
        self._allowed = allowed

    async def put(self, account: str, body: SourceBody) -> structs.Source:
        """Write an entry.

        Raises:
            ApiError: one-cluster mode, a bad URL, an address that the operator does not allow.
        """
        if self._accounts.one_cluster:
            raise ApiError(ONE_CLUSTER)
        url = ""
        if body.flavour == PUSH:
            if body.url or body.auth or body.ca:
                raise ApiError(INVALID, "push mode takes no url, auth or ca", ["flavour"])
        else:
            if not body.url:
                raise ApiError(MISSING, "url is required for this flavour", ["url"])
            url = await self._checked(body.url)
        names = (body.cluster,) if isinstance(body.cluster, str) else tuple(body.cluster or ())
        known = Credentials(
            headers=_headers(body.auth),
            ca=_checked_ca(body.ca),
            custom_prices=body.custom_prices,
            clusters=names,
            thanos=MetricsCluster(body.thanos.value, body.thanos.label) if body.thanos else None,
            currency=body.currency or "",
            managed_by=body.managed_by or "",
            managed_version=body.version,
        )
        try:
            entry = await self._accounts.registry.put(account, body.flavour, url, known)
        except Outdated:
            raise ApiError(OUTDATED) from None
        return _shown(entry)

    async def listed(self, managed_by: str | None, after: str, limit: int) -> structs.Sources:
        """A page of the entries, those of one manager where it is named."""
        entries, more = await self._accounts.registry.page(after, limit)
        wanted = [one for one in entries if managed_by is None or one.credentials.managed_by == managed_by]
        return structs.Sources(sources=tuple(map(_shown, wanted)), after=more)

    async def get(self, account: str) -> structs.Source:
        entry = await self._accounts.registry.get(account)
        if entry is None:
            raise ApiError(NOT_FOUND)
        return _shown(entry)

    async def delete(self, account: str) -> structs.Deleted:
        if not await self._accounts.registry.delete(account):
            raise ApiError(NOT_FOUND)
        return structs.Deleted(True)

    async def _checked(self, text: str) -> str:
        try:
            return await self._accounts.checked_url(text, self._allowed)
        except (ValueError, AddressRefused) as problem:
            raise ApiError(INVALID, f"url: {problem}", ["url"]) from None


def _headers(auth: Auth | None) -> dict[str, str]:
    if auth is None:
        return {}
    given = (auth.token, auth.username, auth.password, auth.name, auth.value)
    if any(len(part) > MAX_CREDENTIAL_LENGTH or not part.isprintable() or not part.isascii() for part in given):
        raise ApiError(INVALID, "auth: credentials are printable ASCII of at most 8192 characters", ["auth"])
    if any(part != part.strip() for part in given):
        raise ApiError(INVALID, "auth: credentials have no white space around them", ["auth"])
    if auth.type == "bearer":
        if not auth.token:
            raise ApiError(MISSING, "auth: bearer needs a token", ["auth"])
        return {"Authorization": f"Bearer {auth.token}"}
    if auth.type == "header":
        if not _HEADER_NAME.fullmatch(auth.name) or auth.name.lower() in NOT_CREDENTIALS or not auth.value:
            raise ApiError(INVALID, "auth: header needs a name that is a header of credentials, and a value", ["auth"])
        return {auth.name: auth.value}
    pair = base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def _checked_ca(ca: str | None) -> str | None:
    if ca is not None:
        try:
            ssl.create_default_context(cadata=ca or "none")
        except (ssl.SSLError, ValueError, TypeError):  # the last for what is not ASCII
            raise ApiError(INVALID, "ca: must be certificates in PEM", ["ca"]) from None
    return ca


def _shown(entry: SourceEntry) -> structs.Source:
    known = entry.credentials
    return structs.Source(
        cloud_account_id=entry.cloud_account_id,
        flavour=entry.flavour,
        url=entry.url,
        has_credentials=bool(known.headers),
        has_ca=known.ca is not None,
        custom_prices=wire(known.custom_prices, structs.CustomPrices) if known.custom_prices else None,
        cluster=known.clusters,
        thanos=wire(known.thanos, structs.MetricsCluster) if known.thanos else None,
        currency=known.currency,
        managed_by=known.managed_by,
        version=known.managed_version,
    )
