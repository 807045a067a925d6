"""Linking clusters: the directory first, then Metroculus; what got half way is finished by the next try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

from msgspec import Struct, to_builtins
from msgspec.structs import asdict

from optscale_client.metroculus_client import InvalidRequest, NoSourceConfigured, NotFound, structs
from rest_api.rest_api_server.auth import Gate
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool
from rest_api.rest_api_server.directory.model import AlreadyExists, Changed, Cluster, Flavour, Missing
from rest_api.rest_api_server.errors import CHANGED, CONFLICT, INVALID, LINK_REFUSED, MISSING, NOT_FOUND
from rest_api.rest_api_server.kept import KeptAnswers
from tools.tornado_service.errors import ApiError

MAX_NAME_LENGTH = 128
MANAGER = "rest-api"
"""``managed_by`` of the sources that this service writes."""


class AuthBody(Struct, frozen=True, forbid_unknown_fields=True):
    type: Literal["bearer", "basic", "header"]
    token: str = ""
    username: str = ""
    password: str = ""
    name: str = ""
    value: str = ""


class ThanosBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Which series are the cluster's, where several write under one tenant."""

    value: str
    label: str = "cluster_id"


class PricesBody(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """USD, for clusters whose upstream has no prices; used only for what it does not price."""

    core_hour: float | None = None
    ram_gib_hour: float | None = None
    gpu_hour: float | None = None
    storage_gib_hour: float | None = None


class LinkBody(Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster to link; credentials are written and never read back."""

    name: str
    flavour: Flavour = "kubecost"
    url: str = ""
    auth: AuthBody | None = None
    ca: str | None = None
    custom_prices: PricesBody | None = None
    cluster: str | list[str] | None = None
    thanos: ThanosBody | None = None
    currency: str | None = None


class ChangeBody(Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; a new flavour, url or credentials replace the whole source."""

    name: str | None = None
    flavour: Flavour | None = None
    url: str | None = None
    auth: AuthBody | None = None
    ca: str | None = None
    custom_prices: PricesBody | None = None
    cluster: str | list[str] | None = None
    thanos: ThanosBody | None = None
    currency: str | None = None


class LinkedCluster(Struct, frozen=True):
    cluster_id: str
    organization_id: str
    name: str
    flavour: str
    url: str
    state: str


class ChangedCluster(LinkedCluster, frozen=True, omit_defaults=True):
    """A cluster that was linked or changed; with the token of its agent where it pushes from now on."""

    push_token: str = ""


class PushToken(Struct, frozen=True):
    """What a cluster's agent shows; it is not shown again."""

    push_token: str


class ClustersController:
    def __init__(self, gate: Gate, metroculus: MetroculusPool, answers: KeptAnswers) -> None:
        self._gate = gate
        self._metroculus = metroculus
        self._answers = answers

    @contextmanager
    def _changing(self, cluster: Cluster, existed: bool = True) -> Iterator[None]:
        """What is remembered of a cluster is over, also where the change failed: some of it may have come through."""
        try:
            yield
        finally:
            self._gate.forget(cluster.id)
            self._answers.forget(cluster.id, existed)

    async def link(self, organization_id: str, body: LinkBody, request_id: str) -> ChangedCluster:
        """Link a cluster, or finish a link of that name that got half way.

        Raises:
            ApiError, MetroculusError
        """
        name = _named(body.name)
        if body.flavour != "push" and not body.url:
            raise ApiError(MISSING, "url is required for this flavour", ["url"])
        cluster = await self._unfinished(organization_id, name)
        existed = cluster is not None
        if cluster is None:
            cluster = await self._directory(
                lambda directory: directory.create_cluster(organization_id, name, body.flavour, body.url)
            )
        source = _source(body.flavour, body.url, body)
        with self._changing(cluster, existed):
            reserved = await self._reserve(cluster)
            try:
                await self._write(reserved, source, request_id)
            except (ApiError, InvalidRequest):
                await self._gate.ask(lambda directory: directory.delete_cluster(cluster.id))
                raise
            # Before the link is done: one that failed here is finished by the next try, token and all.
            token = await self._token(reserved, body.flavour == "push", request_id)
            linked = await self._store(reserved, name, body.flavour, body.url, request_id)
            return ChangedCluster(**asdict(linked), push_token=token)

    async def push_token(self, cluster: Cluster, request_id: str) -> PushToken:
        """A new token of a cluster that pushes; the one before is good for a quarter of an hour more.

        Raises:
            MetroculusError
        """
        make = self._metroculus.client.create_push_token
        made = await self._metroculus.call(cluster, make, cluster.id, request_id=request_id, shape=structs.PushToken)
        return PushToken(made.push_token)

    async def _token(self, cluster: Cluster, pushes: bool, request_id: str) -> str:
        return (await self.push_token(cluster, request_id)).push_token if pushes else ""

    async def change(self, cluster: Cluster, body: ChangeBody, request_id: str) -> ChangedCluster:
        """Rename a cluster, or point it elsewhere.

        Raises:
            ApiError, MetroculusError
        """
        name = cluster.name if body.name is None else _named(body.name)
        flavour: Flavour = body.flavour or cluster.flavour
        url = cluster.url if body.url is None else body.url
        if flavour == "push":
            url = ""
        elsewhere = any(getattr(body, part) is not None for part in body.__struct_fields__ if part != "name")
        with self._changing(cluster):
            reserved = await self._reserve(cluster)
            if elsewhere or cluster.state != "linked":
                await self._write(reserved, _source(flavour, url, body), request_id)
            begins = flavour == "push" and cluster.flavour != "push"
            token = await self._token(reserved, begins, request_id)
            changed = await self._store(reserved, name, flavour, url, request_id)
            return ChangedCluster(**asdict(changed), push_token=token)

    async def unlink(self, cluster: Cluster, request_id: str) -> None:
        """Forget a cluster; Metroculus first, so that what got half way can be tried again.

        Raises:
            MetroculusError
        """
        with self._changing(cluster):
            await self._forget_source(cluster, request_id)
            await self._gate.ask(lambda directory: directory.delete_cluster(cluster.id))
            # A concurrent change may have written the source again before the cluster was deleted.
            await self._forget_source(cluster, request_id)

    async def _forget_source(self, cluster: Cluster, request_id: str) -> None:
        with suppress(NotFound):
            forget = self._metroculus.client.delete_kubecost_source
            await self._metroculus.call(cluster, forget, cluster.id, request_id=request_id, shape=structs.Deleted)

    async def _reserve(self, cluster: Cluster) -> Cluster:
        """Raise the cluster's revision, so that a concurrent change that began earlier fails."""
        return await self._directory(
            lambda directory: directory.update_cluster(
                cluster.id,
                name=cluster.name,
                flavour=cluster.flavour,
                url=cluster.url,
                state=cluster.state,
                revision=cluster.revision,
            )
        )

    async def _unfinished(self, organization_id: str, name: str) -> Cluster | None:
        clusters = await self._gate.clusters(organization_id)
        return next((one for one in clusters if one.name == name and one.state == "linking"), None)

    async def _write(self, cluster: Cluster, source: dict[str, Any], request_id: str) -> None:
        try:
            write = self._metroculus.client.put_kubecost_source
            await self._metroculus.call(
                cluster,
                write,
                cluster.id,
                **source,
                managed_by=MANAGER,
                version=cluster.revision,
                request_id=request_id,
                shape=structs.Source,
            )
        except NoSourceConfigured as refusal:
            if refusal.error_code == structs.OUTDATED:
                raise ApiError(CHANGED) from None
            raise ApiError(LINK_REFUSED, refusal.reason) from None

    async def _store(self, reserved: Cluster, name: str, flavour: Flavour, url: str, request_id: str) -> LinkedCluster:
        try:
            stored = await self._directory(
                lambda directory: directory.update_cluster(
                    reserved.id, name=name, flavour=flavour, url=url, state="linked", revision=reserved.revision
                )
            )
        except ApiError as problem:
            if problem.code is NOT_FOUND:  # it was unlinked meanwhile: the source that was written has no cluster
                await self._forget_source(reserved, request_id)
            raise
        return shown(stored)

    async def _directory(self, question: Any) -> Cluster:
        try:
            found: Cluster = await self._gate.ask(question)
        except AlreadyExists as problem:
            raise ApiError(CONFLICT, str(problem), ["name"]) from None
        except Changed:
            raise ApiError(CHANGED) from None
        except Missing:
            raise ApiError(NOT_FOUND) from None
        return found


def shown(cluster: Cluster) -> LinkedCluster:
    return LinkedCluster(cluster.id, cluster.organization_id, cluster.name, cluster.flavour, cluster.url, cluster.state)


def _named(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise ApiError(INVALID, f"name must be 1 to {MAX_NAME_LENGTH} printable characters", ["name"])
    return name


def _source(flavour: Flavour, url: str, body: LinkBody | ChangeBody) -> dict[str, Any]:
    prices = to_builtins(body.custom_prices) if body.custom_prices is not None else None
    return {
        "flavour": flavour,
        "url": url or None,
        "auth": _plain(body.auth),
        "ca": body.ca,
        "custom_prices": prices,
        "cluster": body.cluster,
        "thanos": to_builtins(body.thanos) if body.thanos is not None else None,
        "currency": body.currency,
    }


def _plain(auth: AuthBody | None) -> dict[str, str] | None:
    if auth is None:
        return None
    given = to_builtins(auth)
    return {key: value for key, value in given.items() if value}
