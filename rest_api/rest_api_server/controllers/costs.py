"""What clusters cost, as organizations see it: statements from Metroculus, joined with quotas and limits."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from math import fsum
from typing import Any

from msgspec import Struct, structs

from optscale_client.metroculus_client import MetroculusError, ServiceUnavailable
from optscale_client.metroculus_client.structs import (
    AccountStatement,
    Assets,
    CostRow,
    Figures,
    Recommendation,
    Savings,
    Statement,
    Statements,
    SummaryColumns,
    WithSources,
)
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool, failure_about, in_parts
from rest_api.rest_api_server.controllers.resources import ResourcesController
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import failure_of
from tools.window import Window


def fields_of(source: Struct, shape: type[Struct]) -> dict[str, Any]:
    """The fields of ``shape`` as ``source`` holds them."""
    return {name: getattr(source, name) for name in shape.__struct_fields__}


def _about(cluster: Cluster) -> dict[str, Any]:
    return {"cluster_id": cluster.id, "cluster_name": cluster.name}


def _stamps(window: Window) -> dict[str, Any]:
    return {"start_date": window.start, "end_date": window.end}


def asked_of(window: Window) -> dict[str, Any]:
    """A window as Metroculus is asked for it."""
    return _stamps(window) | ({} if window.zone.is_utc else {"timezone": window.zone.name})


def rows_of(statement: Statement) -> tuple[CostRow, ...]:
    """The rows by what was asked for as ``aggregate``; none where that was not asked."""
    return statement.breakdown_by_aggregate or ()


class CostsController:
    def __init__(self, metroculus: MetroculusPool, resources: ResourcesController) -> None:
        self._metroculus = metroculus
        self._resources = resources

    async def statement(self, cluster: Cluster, window: Window, request_id: str, **asked: Any) -> Statement:
        """A cluster's statement.

        Raises:
            MetroculusError
        """
        ask = self._metroculus.client.get_kubecost_cluster_costs
        statement = await self._metroculus.call(
            cluster, ask, cluster.id, **asked_of(window), request_id=request_id, shape=Statement, **asked
        )
        return _checked(statement)

    async def overview(
        self, organization_id: str, clusters: Sequence[Cluster], window: Window, request_id: str
    ) -> answers.OrganizationCosts:
        """Every cluster with its cost, side by side; one that fails says so and leaves the others whole."""
        found = await self.statements(clusters, window, request_id)
        return await asyncio.to_thread(_overview, organization_id, clusters, window, found)

    async def statements(
        self, clusters: Sequence[Cluster], window: Window, request_id: str, **filters: Any
    ) -> list[Statement | MetroculusError]:
        """The statement of each of an organization's clusters, or why there is none."""
        asked = (self._statements(part, window, request_id, filters) for part in in_parts(clusters))
        found = await asyncio.gather(*asked)
        return [told for part in found for told in part]

    async def _statements(
        self, clusters: Sequence[Cluster], window: Window, request_id: str, filters: dict[str, Any]
    ) -> list[Statement | MetroculusError]:
        ask, accounts = self._metroculus.client.get_k8s_costs, tuple(cluster.id for cluster in clusters)
        try:
            answer = await self._metroculus.call(
                clusters, ask, accounts, **asked_of(window), **filters, request_id=request_id, shape=Statements
            )
        except MetroculusError as failure:
            return [failure] * len(clusters)
        told = {one.cloud_account_id: one for one in answer.accounts}
        return await asyncio.to_thread(lambda: [_told(told.get(account)) for account in accounts])

    async def costs(
        self, cluster: Cluster, window: Window, aggregate: Sequence[str], request_id: str, **asked: Any
    ) -> answers.ClusterCosts:
        """A statement with its rows by ``aggregate``; ``asked`` may say ``idle`` and ``step``."""
        statement = await self.statement(cluster, window, request_id, aggregate=tuple(aggregate), **asked)
        return answers.ClusterCosts(**_shown(cluster, statement), costs=rows_of(statement))

    async def namespaces(self, cluster: Cluster, window: Window, request_id: str) -> answers.Namespaces:
        """A statement with its namespaces, each with quota and utilisation."""
        statement, (resources, metadata) = await asyncio.gather(
            self.statement(cluster, window, request_id, aggregate="namespace"),
            self._resources.known(cluster, request_id),
        )
        quotas: dict[str, list[answers.Quota]] = defaultdict(list)
        for quota in resources.quotas:
            quotas[quota.namespace].append(answers.Quota(**fields_of(quota, answers.Quota)))
        rows = tuple(
            answers.NamespaceRow(
                **structs.asdict(row),
                quota=tuple(quotas.get(row.namespace or "", ())),
                utilization=_utilization(row),
            )
            for row in rows_of(statement)
        )
        return answers.Namespaces(**_shown(cluster, statement), metadata=metadata, namespaces=rows)

    async def workloads(self, cluster: Cluster, namespace: str, window: Window, request_id: str) -> answers.Workloads:
        """A namespace's statement with its workloads, each with requests and limits against usage."""
        statement, (resources, metadata) = await asyncio.gather(
            self.statement(
                cluster, window, request_id, aggregate="namespace,controller,controllerKind", namespace=namespace
            ),
            self._resources.known(cluster, request_id),
        )
        limits = {
            one.controller: answers.Limits(**fields_of(one, answers.Limits))
            for one in resources.workloads
            if one.namespace == namespace
        }
        rows = tuple(
            answers.WorkloadCosts(
                **structs.asdict(row),
                resources=limits.get(row.controller or "", answers.Limits()),
                utilization=_utilization(row),
            )
            for row in rows_of(statement)
        )
        return answers.Workloads(**_shown(cluster, statement), namespace=namespace, metadata=metadata, workloads=rows)

    async def assets(
        self, cluster: Cluster, window: Window, asset_type: str | None, request_id: str
    ) -> answers.ClusterAssets:
        """What a cluster is made of: every asset, nodes with their specification."""
        ask = self._metroculus.client.get_kubecost_assets
        asked = {"asset_type": asset_type, "request_id": request_id}
        found, (resources, metadata) = await asyncio.gather(
            self._metroculus.call(cluster, ask, cluster.id, **asked_of(window), shape=Assets, **asked),
            self._resources.known(cluster, request_id),
        )
        nodes = {one.name: one for one in resources.nodes}
        listed = (*found.nodes, *found.disks, *found.load_balancers, *found.network, *found.cluster_management)
        rows = tuple(
            answers.AssetRow(**structs.asdict(one), specification=nodes.get(one.name))
            if one.type == "node"
            else answers.AssetRow(**structs.asdict(one))
            for one in listed
        )
        return answers.ClusterAssets(
            **_about(cluster),
            **fields_of(found, WithSources),
            currency=found.currency,
            totals=found.totals,
            total_cost=found.total_cost,
            metadata=metadata,
            assets=rows,
        )

    async def optimization(self, cluster: Cluster, window: Window, request_id: str) -> answers.Optimization:
        """What could be had for less, each with its monthly saving, evidence and risk."""
        ask = self._metroculus.client.get_kubecost_savings
        found = await self._metroculus.call(
            cluster, ask, cluster.id, **asked_of(window), request_id=request_id, shape=Savings
        )

        def of(kind: str) -> tuple[Recommendation, ...]:
            return tuple(one for one in found.recommendations if one.kind == kind)

        return answers.Optimization(
            **_about(cluster),
            **fields_of(found, WithSources),
            currency=found.currency,
            potential_savings=found.potential_savings,
            by_category=found.by_category,
            right_sizing=of("right_sizing"),
            under_provisioned=of("under_provisioned"),
            abandoned_workloads=of("abandoned_workload"),
            unclaimed_volumes=of("unclaimed_volume"),
            idle_nodes=of("idle_node"),
        )


def _overview(
    organization_id: str, clusters: Sequence[Cluster], window: Window, found: Sequence[Statement | MetroculusError]
) -> answers.OrganizationCosts:
    rows = [_summary(cluster, told) for cluster, told in zip(clusters, found, strict=True)]
    by_currency: dict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        if row.currency is not None:
            by_currency[row.currency].append(row.total_cost)
    failed = any(row.currency is None for row in rows)  # what its money is in is not known, either
    totals = {currency: None if failed else total_of(costs) for currency, costs in sorted(by_currency.items())}
    totals = totals or ({"USD": None} if rows else {})
    return answers.OrganizationCosts(
        organization_id=organization_id,
        **_stamps(window),
        clusters=tuple(rows),
        totals=totals,
        total_cost=next(iter(totals.values())) if len(totals) == 1 else None,
        known_cost=_known([row.summary.known_cost if row.summary else None for row in rows])
        if len(totals) < 2
        else None,
        complete=all(row.complete for row in rows),
    )


def _told(account: AccountStatement | None) -> Statement | MetroculusError:
    """What Metroculus says of one of many accounts."""
    if account is None or account.statement is None:
        return failure_about(account.error if account is not None else None)
    try:
        return _checked(account.statement)
    except ServiceUnavailable as problem:
        return problem


def _checked(statement: Statement) -> Statement:
    """Raises: ServiceUnavailable: its total is not the sum of its parts."""
    if not _adds_up(statement.summary):
        raise ServiceUnavailable("Metroculus answered with a total that is not the sum of its parts", status=502)
    return statement


def _summary(cluster: Cluster, told: Statement | MetroculusError) -> answers.ClusterSummary:
    about = _about(cluster) | {"name": cluster.name, "state": cluster.state, "flavour": cluster.flavour}
    if isinstance(told, MetroculusError):
        return answers.ClusterSummary(**about, error=failure_of(told))
    fetched = [source.fetched_at for source in told.sources if source.fetched_at is not None]
    return answers.ClusterSummary(
        **about,
        total_cost=told.total_cost,
        summary=told.summary,
        idle_cost=told.idle_cost,
        efficiency=told.efficiency,
        currency=told.currency,
        complete=told.complete,
        sources=told.sources,
        not_covered=told.not_covered,
        freshness=answers.Freshness(min(fetched, default=None), told.window.final_until),
    )


def _adds_up(summary: SummaryColumns) -> bool:
    """Whether a total that is known is the sum of its parts, rounding apart; what does not add up is no figure."""
    if summary.total_cost is None:
        return True
    given = [getattr(summary, name) for name in answers.PARTS]
    parts: list[float] = [usd for usd in given if usd is not None]
    return abs(summary.total_cost - fsum(parts)) <= 1e-6 * max(1.0, *map(abs, parts))


def _shown(cluster: Cluster, statement: Statement) -> dict[str, Any]:
    return _about(cluster) | fields_of(statement, Figures)


def _utilization(row: CostRow) -> answers.Utilization:
    """Usage over request by resource; None where nothing was requested, or either is unknown."""

    def share(usage: float | None, request: float | None) -> float | None:
        return usage / request if usage is not None and request else None

    return answers.Utilization(
        cpu=share(row.cpu_core_usage_average, row.cpu_core_request_average),
        ram=share(row.ram_byte_usage_average, row.ram_byte_request_average),
    )


def total_of(costs: Sequence[float | None]) -> float | None:
    """The sum; None as soon as one is unknown."""
    known = [cost for cost in costs if cost is not None]
    return fsum(known) if len(known) == len(costs) else None


def _known(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return fsum(known) if known else None
