"""What clusters cost, as organizations see it: statements from Metroculus, joined with quotas and limits."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import fsum
from typing import Any

from optscale_client.metroculus_client import MetroculusError, ServiceUnavailable, structs
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.controllers.metroculus import Json, MetroculusPool
from rest_api.rest_api_server.controllers.resources import ResourcesController
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import told
from tools.window import Window

STATEMENT_KEYS = (
    "start_date", "end_date", "window", "currency", "complete", "not_covered", "sources", "total_cost", "summary",
    "idle_cost", "unallocated_cost", "special", "efficiency", "breakdown", "potential_savings",
    "data_points",
)  # fmt: skip

KINDS = {
    "right_sizing": "right_sizing",
    "under_provisioned": "under_provisioned",
    "abandoned_workloads": "abandoned_workload",
    "unclaimed_volumes": "unclaimed_volume",
    "idle_nodes": "idle_node",
}


def _about(cluster: Cluster) -> Json:
    return {"cluster_id": cluster.id, "cluster_name": cluster.name}


def _stamps(window: Window) -> dict[str, int]:
    return {"start_date": window.start, "end_date": window.end}


class CostsController:
    def __init__(self, metroculus: MetroculusPool, resources: ResourcesController) -> None:
        self._metroculus = metroculus
        self._resources = resources

    async def statement(self, cluster: Cluster, window: Window, request_id: str, **asked: Any) -> Json:
        """A cluster's statement.

        Raises:
            MetroculusError
        """
        ask = self._metroculus.client.get_kubecost_cluster_costs
        statement = await self._metroculus.call(
            cluster, ask, cluster.id, **_stamps(window), request_id=request_id, shape=structs.Statement, **asked
        )
        if not _adds_up(statement["summary"]):
            raise ServiceUnavailable("Metroculus answered with a total that is not the sum of its parts", status=502)
        return statement

    async def overview(self, clusters: Sequence[Cluster], window: Window, request_id: str) -> Json:
        """Every cluster with its cost, side by side; one that fails says so and leaves the others whole."""
        rows = await asyncio.gather(*(self._summary(cluster, window, request_id) for cluster in clusters))
        by_currency: dict[str, list[float | None]] = {}
        for row in rows:
            by_currency.setdefault(row["currency"] or "USD", []).append(row["total_cost"])
        totals = {currency: total_of(costs) for currency, costs in sorted(by_currency.items())}
        return {
            "clusters": list(rows),
            "totals": totals,
            "total_cost": next(iter(totals.values())) if len(totals) == 1 else None,
            "known_cost": _known([row["summary"]["known_cost"] if row["summary"] else None for row in rows]),
            "complete": all(row["complete"] for row in rows),
        }

    async def _summary(self, cluster: Cluster, window: Window, request_id: str) -> Json:
        row: Json = _about(cluster) | {"name": cluster.name, "state": cluster.state, "flavour": cluster.flavour}
        try:
            statement = await self.statement(cluster, window, request_id)
        except MetroculusError as failure:
            unknown = dict.fromkeys(("total_cost", "summary", "idle_cost", "efficiency", "currency", "freshness"))
            return row | unknown | {"complete": False, "sources": [], "not_covered": [], "error": told(failure)}
        kept = ("total_cost", "summary", "idle_cost", "efficiency", "currency", "complete", "sources", "not_covered")
        fetched = [source["fetched_at"] for source in statement["sources"] if source["fetched_at"] is not None]
        freshness = {"fetched_at": min(fetched, default=None), "final_until": statement["window"]["final_until"]}
        return row | {key: statement[key] for key in kept} | {"freshness": freshness, "error": None}

    async def costs(
        self, cluster: Cluster, window: Window, aggregate: Sequence[str], asked: Json, request_id: str
    ) -> tuple[Json, list[Json]]:
        """A statement, and its rows by ``aggregate``; ``asked`` may say ``idle`` and ``step``."""
        statement = await self.statement(cluster, window, request_id, aggregate=tuple(aggregate), **asked)
        return _shown(cluster, statement), statement.get("breakdown_by_aggregate", [])

    async def namespaces(self, cluster: Cluster, window: Window, request_id: str) -> tuple[Json, list[Json]]:
        """A statement, and its namespaces with quota and utilisation."""
        statement, (resources, known) = await asyncio.gather(
            self.statement(cluster, window, request_id, aggregate="namespace"),
            self._resources.known(cluster, request_id),
        )
        quotas: dict[str, list[Json]] = {}
        for quota in resources.quotas:
            quotas.setdefault(quota["namespace"], []).append({k: v for k, v in quota.items() if k != "namespace"})
        rows = [
            row | {"quota": quotas.get(row["namespace"], []), "utilization": _utilization(row)}
            for row in statement.get("breakdown_by_aggregate", [])
        ]
        return _shown(cluster, statement) | {"metadata": known}, rows

    async def workloads(
        self, cluster: Cluster, namespace: str, window: Window, request_id: str
    ) -> tuple[Json, list[Json]]:
        """A namespace's statement, and its workloads with requests and limits against usage."""
        statement, (kept, known) = await asyncio.gather(
            self.statement(
                cluster, window, request_id, aggregate="namespace,controller,controllerKind", namespace=namespace
            ),
            self._resources.known(cluster, request_id),
        )
        resources = {
            (one["namespace"], one["controller"]): one for one in kept.workloads if one["namespace"] == namespace
        }
        rows = []
        for row in statement.get("breakdown_by_aggregate", []):
            now = resources.get((row["namespace"], row["controller"]), {})
            limits = {key: now.get(key) for key in ("cpu_request", "cpu_limit", "ram_request", "ram_limit")}
            rows.append(row | {"resources": limits, "utilization": _utilization(row)})
        return _shown(cluster, statement) | {"namespace": namespace, "metadata": known}, rows

    async def assets(
        self, cluster: Cluster, window: Window, asset_type: str | None, request_id: str
    ) -> tuple[Json, list[Json]]:
        """What a cluster is made of, and every asset."""
        ask = self._metroculus.client.get_kubecost_assets
        asked = {"asset_type": asset_type, "request_id": request_id}
        body, (kept, known) = await asyncio.gather(
            self._metroculus.call(cluster, ask, cluster.id, **_stamps(window), shape=structs.Assets, **asked),
            self._resources.known(cluster, request_id),
        )
        nodes = {one["name"]: one for one in kept.nodes}
        lists = ("nodes", "disks", "load_balancers", "network", "cluster_management")
        rows = [asset for name in lists for asset in body[name]]
        rows = [row | {"specification": nodes.get(row["name"])} if row["type"] == "node" else row for row in rows]
        about = {key: value for key, value in body.items() if key not in (*lists, "cloud_account_id")}
        return _about(cluster) | about | {"metadata": known}, rows

    async def optimization(self, cluster: Cluster, window: Window, request_id: str) -> Json:
        """What could be had for less, each with its monthly saving, evidence and risk."""
        ask = self._metroculus.client.get_kubecost_savings
        body = await self._metroculus.call(
            cluster, ask, cluster.id, **_stamps(window), request_id=request_id, shape=structs.Savings
        )
        by_kind = {key: [one for one in body["recommendations"] if one["kind"] == kind] for key, kind in KINDS.items()}
        kept = (
            "start_date",
            "end_date",
            "window",
            "currency",
            "complete",
            "sources",
            "potential_savings",
            "by_category",
        )
        return _about(cluster) | {key: body[key] for key in kept} | by_kind


def _adds_up(summary: Json) -> bool:
    """Whether a total that is known is the sum of its parts, rounding apart; what does not add up is no figure."""
    total: float | None = summary["total_cost"]
    if total is None:
        return True
    parts: list[float] = [summary[name] for name in answers.PARTS if summary[name] is not None]
    return abs(total - fsum(parts)) <= 1e-6 * max(1.0, *map(abs, parts))


def _shown(cluster: Cluster, statement: Json) -> Json:
    return _about(cluster) | {key: statement[key] for key in STATEMENT_KEYS}


def _utilization(row: Json) -> Json:
    """Usage over request by resource; None where nothing was requested."""
    found: Json = {}
    for name, usage, request in (
        ("cpu", "cpu_core_usage_average", "cpu_core_request_average"),
        ("ram", "ram_byte_usage_average", "ram_byte_request_average"),
    ):
        found[name] = row[usage] / row[request] if row[request] else None
    return found


def total_of(costs: Sequence[float | None]) -> float | None:
    """The sum; None as soon as one is unknown."""
    known = [cost for cost in costs if cost is not None]
    return fsum(known) if len(known) == len(costs) else None


def _known(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return fsum(known) if known else None
