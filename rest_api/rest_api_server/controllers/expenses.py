"""Stored costs of an organization: expenses row by row, month by month; and its clusters' statements beside them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import fsum
from typing import Any

from optscale_client.metroculus_client import MetroculusError, structs
from rest_api.rest_api_server.answers import PARTS
from rest_api.rest_api_server.controllers.costs import CostsController, total_of
from rest_api.rest_api_server.controllers.metroculus import Json, MetroculusPool
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import told
from tools.window import Window

ROW_KEYS = ("cluster", "namespace", "controller", "pod", "node")
COST_KEYS = ("total_cost", *PARTS)


class ExpensesController:
    def __init__(self, metroculus: MetroculusPool, costs: CostsController) -> None:
        self._metroculus = metroculus
        self._costs = costs

    async def clean_expenses(
        self, clusters: Sequence[Cluster], window: Window, filters: Json, request_id: str
    ) -> tuple[Json, list[Json]]:
        """What is stored, and beside it what the clusters say now; the two tell the same money and are never added.

        Args:
            filters: ``k8s_namespace``, ``k8s_node``, ``k8s_service``; they hold for both.

        Returns:
            the answer, and its stored rows.
        """
        stored, statements = await asyncio.gather(
            self._stored(clusters, window, filters, request_id),
            asyncio.gather(*(self._statement(cluster, window, filters, request_id) for cluster in clusters)),
        )
        names = {cluster.id: cluster.name for cluster in clusters}
        rows = [_row(row, names) for row in stored["expenses"]]
        costs = [one["cost"] for one in statements]
        return {
            "start_date": window.start,
            "end_date": window.end,
            "currency": "USD",
            "total_cost": stored["total_cost"],
            "coverage": stored["coverage"],
            "complete": stored["complete"],
            "accounts": stored["accounts"],
            "error": stored["error"],
            "k8s_costs": {
                "k8s_total_cost": fsum(costs) if None not in costs else None,
                "complete": all(one["complete"] for one in statements),
                "k8s_cost_breakdown": statements,
            },
        }, rows

    async def _stored(self, clusters: Sequence[Cluster], window: Window, filters: Json, request_id: str) -> Json:
        """Expenses of the store; that it has none is said and fails nothing."""
        nothing: Json = {"expenses": [], "total_cost": None, "coverage": None, "complete": False, "accounts": []}
        if not clusters:
            return nothing | {"total_cost": 0.0, "complete": True, "error": None}
        try:
            body = await self._metroculus.call(
                clusters,
                self._metroculus.client.get_k8s_expenses,
                tuple(cluster.id for cluster in clusters),
                window.start,
                window.end,
                ROW_KEYS,
                **filters,
                request_id=request_id,
                shape=structs.Expenses,
            )
        except MetroculusError as failure:
            return nothing | {"error": told(failure)}
        return body | {"error": None}

    async def _statement(self, cluster: Cluster, window: Window, filters: Json, request_id: str) -> Json:
        row: Json = {"cloud_account_id": cluster.id, "cloud_account_name": cluster.name}
        try:
            body = await self._costs.statement(cluster, window, request_id, **filters)
        except MetroculusError as failure:
            unknown: Json = {"cost": None, "breakdown": None, "complete": False, "sources": [], "not_covered": []}
            return row | unknown | {"error": told(failure)}
        kept = {key: body[key] for key in ("complete", "sources", "not_covered")}
        return row | {"cost": body["total_cost"], "breakdown": body["summary"], "error": None} | kept

    async def monthly(self, clusters: Sequence[Cluster], count: int, request_id: str) -> Json:
        """Month by month over all clusters, each cluster by itself, and where the running month is going."""
        answers = await asyncio.gather(*(self._months(cluster, count, request_id) for cluster in clusters))
        answered = [(cluster, body) for cluster, body in zip(clusters, answers, strict=True) if "months" in body]
        failed = [
            {"cloud_account_id": cluster.id, "cloud_account_name": cluster.name, "error": body["error"]}
            for cluster, body in zip(clusters, answers, strict=True)
            if "months" not in body
        ]
        months = [
            _month([(cluster, body["months"][n]) for cluster, body in answered], bool(failed)) for n in range(count)
        ]
        return {"currency": "USD", "months": months if answered else [], "unavailable": failed}

    async def _months(self, cluster: Cluster, count: int, request_id: str) -> Json:
        try:
            ask = self._metroculus.client.get_k8s_monthly
            return await self._metroculus.call(
                cluster, ask, cluster.id, count, request_id=request_id, shape=structs.StoredMonths
            )
        except MetroculusError as failure:
            return {"error": told(failure)}


def _month(parts: Sequence[tuple[Cluster, Json]], failed: bool) -> Json:
    """One month of all clusters; a sum is None where a cluster's part of it is not known."""
    if not parts:
        return {}
    first = parts[0][1]
    stored = [(cluster, month) for cluster, month in parts if month["costs"] is not None]
    sums: dict[str, Any] = {
        key: total_of([month["costs"][key] for _, month in stored]) if stored and not failed else None
        for key in COST_KEYS
    }
    projections = [month["projection"] for _, month in stored if month["projection"] is not None]
    running = first["projection"] is not None or bool(projections)
    return {
        "month": first["month"],
        "start": first["start"],
        "end": first["end"],
        "complete": not failed and all(month["complete"] for _, month in parts),
        **sums,
        "known_cost": fsum(month["costs"]["known_cost"] for _, month in stored) if stored else None,
        "month_to_date": sums["total_cost"] if running else None,
        "projection": _projection(projections, failed) if running else None,
        "clusters": [
            {
                "cloud_account_id": cluster.id,
                "cloud_account_name": cluster.name,
                "total_cost": month["costs"]["total_cost"] if month["costs"] is not None else None,
                "coverage": month["coverage"],
                "complete": month["complete"],
                "projection": month["projection"],
            }
            for cluster, month in parts
        ],
    }


def _projection(projections: Sequence[Json], failed: bool) -> Json:
    """Sums; the band is the sum of bands, which is wide: clusters seldom all go the same way."""
    return {
        key: None if failed else total_of([one[key] for one in projections]) for key in ("total_cost", "low", "high")
    } | {"method": projections[0]["method"] if projections else "none"}


def _row(row: Json, names: dict[str, str]) -> Json:
    """A stored row in OptScale's words beside ours."""
    return {
        "cloud_account_id": row["cluster"],
        "cloud_account_name": names.get(row["cluster"], ""),
        "k8s_namespace": row["namespace"],
        "k8s_controller": row["controller"],
        "k8s_node": row["node"],
        "resource_name": row["pod"],
        "name": f"{row['namespace']}/{row['pod']}",
        "resource_type": "K8s Pod",
        "cost": row["total_cost"],
    } | {key: value for key, value in row.items() if key not in ROW_KEYS}
