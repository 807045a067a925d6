"""Stored costs of an organization: expenses row by row, month by month; and its clusters' statements beside them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from heapq import merge
from math import fsum
from typing import Any

from msgspec.structs import replace

from optscale_client.metroculus_client import MetroculusError, ServiceUnavailable
from optscale_client.metroculus_client.structs import (
    AccountMonths,
    Columns,
    ExpenseRow,
    ExpenseRowsWithoutLabels,
    ExpensesWithoutLabels,
    MonthsOfAccounts,
    Projection,
    Statement,
    StoredMonth,
    StoredMonths,
    SummaryColumns,
)
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.controllers.costs import CostsController, asked_of, fields_of, total_of
from rest_api.rest_api_server.controllers.metroculus import MetroculusPool, failure_about, in_parts
from rest_api.rest_api_server.directory.model import Cluster
from rest_api.rest_api_server.errors import failure_of
from rest_api.rest_api_server.exports.table import Table
from rest_api.rest_api_server.exports.tables import ExpenseLists, expenses_table
from rest_api.rest_api_server.paging import RowPage
from tools.window import Window
from tools.zones import Zone

EXPORTED_AT_ONCE = 5_000
"""Rows of a page of an export: some 20 MB while they are read."""
ROW_KEYS = ("cluster", "namespace", "controller", "pod", "node")


class ExpensesController:
    def __init__(self, metroculus: MetroculusPool, costs: CostsController) -> None:
        self._metroculus = metroculus
        self._costs = costs

    async def clean_expenses(
        self,
        organization_id: str,
        clusters: Sequence[Cluster],
        window: Window,
        filters: Mapping[str, Any],
        request_id: str,
        page: RowPage | None = None,
    ) -> answers.CleanExpenses:
        """What is stored, and beside it what the clusters say now; the two tell the same money and are never added.

        With ``page`` only its rows, which the store chooses.

        Args:
            filters: ``k8s_namespace``, ``k8s_node``, ``k8s_service``, ``filter``; they hold for both.
        """
        (stored, failure), told = await asyncio.gather(
            self._stored(clusters, window, filters, request_id, page),
            self._costs.statements(clusters, window, request_id, **filters),
        )
        return await asyncio.to_thread(_clean_expenses, organization_id, window, clusters, stored, failure, told, page)

    async def _stored(
        self,
        clusters: Sequence[Cluster],
        window: Window,
        filters: Mapping[str, Any],
        request_id: str,
        page: RowPage | None,
    ) -> tuple[ExpensesWithoutLabels | None, answers.Failure | None]:
        """Expenses of the store, or why it has none: that fails nothing else. Neither where there is no cluster."""
        if not clusters:
            return None, None
        ask = self._metroculus.client.get_k8s_expenses
        about = asked_of(window) | dict(filters) | {"group_by": ROW_KEYS, "request_id": request_id}
        parts = in_parts(clusters)
        if page is not None:
            # Of several parts each may have all the rows of the page.
            offset, limit = (page.offset, page.limit) if len(parts) == 1 else (0, page.end)
            about |= {"offset": offset, "limit": limit, "sort": page.sort, "order": page.order}
        try:
            told = await asyncio.gather(
                *(
                    self._metroculus.call(
                        part, ask, tuple(cluster.id for cluster in part), **about, shape=ExpensesWithoutLabels
                    )
                    for part in parts
                )
            )
        except MetroculusError as failure:
            return None, failure_of(failure)
        return joined(told, page), None

    async def exported(
        self, clusters: Sequence[Cluster], window: Window, filters: Mapping[str, Any], request_id: str
    ) -> Table:
        """Every stored row, page after page, of what was stored when this began.

        Raises:
            MetroculusError: also while rows are read.
        """
        names = {cluster.id: cluster.name for cluster in clusters}
        about = asked_of(window) | dict(filters) | {"group_by": ROW_KEYS, "request_id": request_id}

        async def page(part: Sequence[Cluster], cursor: str | None) -> ExpenseRowsWithoutLabels:
            ask, accounts = self._metroculus.client.get_k8s_expense_rows, tuple(cluster.id for cluster in part)
            asked = about | {"limit": EXPORTED_AT_ONCE, "cursor": cursor}
            return await self._metroculus.call(part, ask, accounts, **asked, shape=ExpenseRowsWithoutLabels)

        parts = in_parts(clusters)
        first = await asyncio.gather(*(page(part, None) for part in parts))

        async def batches() -> AsyncIterator[list[answers.CleanExpenseRow]]:
            for part, told in zip(parts, first, strict=True):
                found, rows = told, len(told.rows)
                yield await asyncio.to_thread(_rows_of, found.rows, names)
                while found.next_cursor is not None:
                    found = await page(part, found.next_cursor)
                    rows += len(found.rows)
                    yield await asyncio.to_thread(_rows_of, found.rows, names)
                if told.whole is None or rows != told.whole.row_count:
                    raise ServiceUnavailable("Metroculus told other rows than it had counted", status=502)

        wholes = tuple(one.whole for one in first if one.whole is not None)
        lists = ExpenseLists(min((one.as_of for one in first), default=window.end), window, wholes)
        return expenses_table(lists, names, batches(), filters)

    async def monthly(self, clusters: Sequence[Cluster], count: int, zone: Zone, request_id: str) -> answers.Monthly:
        """Month by month over all clusters, each cluster by itself, and where the running month is going."""
        told = await asyncio.gather(*(self._months(part, count, zone, request_id) for part in in_parts(clusters)))
        return await asyncio.to_thread(_monthly, clusters, [one for part in told for one in part], count, zone)

    async def _months(
        self, clusters: Sequence[Cluster], count: int, zone: Zone, request_id: str
    ) -> list[StoredMonths | MetroculusError]:
        accounts = tuple(cluster.id for cluster in clusters)
        try:
            answer = await self._metroculus.call(
                clusters,
                self._metroculus.client.get_k8s_months,
                accounts,
                count,
                timezone=None if zone.is_utc else zone.name,
                request_id=request_id,
                shape=MonthsOfAccounts,
            )
        except MetroculusError as failure:
            return [failure] * len(clusters)
        told = {one.cloud_account_id: one for one in answer.accounts}
        found = (told.get(account) or AccountMonths(account) for account in accounts)
        return [one.months or failure_about(one.error) for one in found]


def _clean_expenses(
    organization_id: str,
    window: Window,
    clusters: Sequence[Cluster],
    stored: ExpensesWithoutLabels | None,
    failure: answers.Failure | None,
    told: Sequence[Statement | MetroculusError],
    page: RowPage | None,
) -> answers.CleanExpenses:
    statements = [_cost_of(cluster, one) for cluster, one in zip(clusters, told, strict=True)]
    names = {cluster.id: cluster.name for cluster in clusters}
    now = answers.KubernetesCosts(
        k8s_total_cost=total_of([one.cost for one in statements]) if len(_currencies(statements)) < 2 else None,
        complete=all(one.complete for one in statements),
        k8s_cost_breakdown=tuple(statements),
    )
    return answers.CleanExpenses(
        organization_id=organization_id,
        start_date=window.start,
        end_date=window.end,
        currency=stored.currency if stored else "USD",
        total_cost=stored.total_cost if stored else None if clusters else 0.0,
        coverage=stored.coverage if stored else None,
        complete=stored.complete if stored else not clusters,
        accounts=stored.accounts if stored else (),
        error=failure,
        k8s_costs=now,
        clean_expenses=tuple(_row(row, names) for row in stored.expenses) if stored else (),
        **({} if page is None else page.told(stored.row_count if stored else 0)),
    )


def _monthly(
    clusters: Sequence[Cluster], found: Sequence[StoredMonths | MetroculusError], count: int, zone: Zone
) -> answers.Monthly:
    answered = [
        (cluster, one.months) for cluster, one in zip(clusters, found, strict=True) if isinstance(one, StoredMonths)
    ]
    failed = tuple(
        answers.UnavailableCluster(cloud_account_id=cluster.id, cloud_account_name=cluster.name, error=failure_of(one))
        for cluster, one in zip(clusters, found, strict=True)
        if isinstance(one, MetroculusError)
    )
    months = [
        _month([(cluster, of[n]) for cluster, of in answered], bool(failed)) for n in range(count if answered else 0)
    ]
    currencies = sorted({name for month in months for name in (month.currency or "").split(", ") if name})
    return answers.Monthly(
        currency=", ".join(currencies) or "USD",
        months=tuple(months),
        unavailable=failed,
        timezone=zone.name,
        warnings=tuple(dict.fromkeys(w for one in found if isinstance(one, StoredMonths) for w in one.warnings)),
    )


def _cost_of(cluster: Cluster, told: Statement | MetroculusError) -> answers.ClusterCost:
    about: dict[str, Any] = {"cloud_account_id": cluster.id, "cloud_account_name": cluster.name}
    if isinstance(told, MetroculusError):
        return answers.ClusterCost(**about, error=failure_of(told))
    return answers.ClusterCost(
        **about,
        cost=told.total_cost,
        currency=told.currency,
        breakdown=told.summary,
        complete=told.complete,
        sources=told.sources,
        not_covered=told.not_covered,
    )


def joined(parts: Sequence[ExpensesWithoutLabels], page: RowPage | None = None) -> ExpensesWithoutLabels:
    """Expenses of several parts of an organization's clusters as one; money in different currencies has no total."""
    if len(parts) == 1:
        return parts[0]
    currencies = sorted({name for part in parts for name in part.currency.split(", ")})
    covered = [one.coverage for part in parts for one in part.accounts if one.coverage is not None]
    return replace(
        parts[0],
        currency=", ".join(currencies),
        complete=len(currencies) == 1 and all(part.complete for part in parts),
        coverage=fsum(covered) / len(covered) if covered else None,
        total_cost=total_of([part.total_cost for part in parts]) if len(currencies) == 1 else None,
        expenses=_ranked(parts, page),
        accounts=tuple(one for part in parts for one in part.accounts),
        row_count=sum(part.row_count for part in parts),
    )


def _ranked(parts: Sequence[ExpensesWithoutLabels], page: RowPage | None) -> tuple[ExpenseRow, ...]:
    """The rows of several parts merged, or one page of them. Each part is in order, and stays in its own."""
    column, sign = ("total_cost", -1.0) if page is None else (page.sort, 1.0 if page.order == "asc" else -1.0)

    def place(row: ExpenseRow) -> float:
        return sign * float(getattr(row, column))

    ranked = list(merge(*(part.expenses for part in parts), key=place))
    return tuple(ranked if page is None else ranked[page.offset : page.end])


def _currencies(statements: Sequence[answers.ClusterCost]) -> set[str]:
    """What the money of clusters is in; different ones are never added."""
    return {one.currency for one in statements if one.currency is not None}


def _month(parts: Sequence[tuple[Cluster, StoredMonth]], failed: bool) -> answers.Month:
    """One month of all clusters, of which there is at least one; money in different currencies is never added.

    Args:
        failed: some clusters could not be asked.
    """
    first = parts[0][1]
    currencies = sorted({name for _, month in parts for name in (month.currency or "").split(", ") if name})
    mixed = len(currencies) > 1
    failed = failed or mixed
    stored = [month.costs for _, month in parts if month.costs is not None]
    sums = {
        name: total_of([getattr(costs, name) for costs in stored]) if stored and not failed else None
        for name in SummaryColumns.__struct_fields__
    }
    sums["known_cost"] = fsum(costs.known_cost or 0.0 for costs in stored) if stored and not mixed else None
    projections = [month.projection for _, month in parts if month.costs is not None and month.projection is not None]
    running = first.projection is not None or bool(projections)
    return answers.Month(
        **sums,
        month=first.month,
        start=first.start,
        end=first.end,
        currency=", ".join(currencies) or None,
        complete=not failed and all(month.complete for _, month in parts),
        month_to_date=sums["total_cost"] if running else None,
        projection=_projection(projections, failed) if running else None,
        clusters=tuple(
            answers.MonthOfCluster(
                cloud_account_id=cluster.id,
                cloud_account_name=cluster.name,
                total_cost=month.costs.total_cost if month.costs is not None else None,
                coverage=month.coverage,
                complete=month.complete,
                projection=month.projection,
                currency=month.currency,
            )
            for cluster, month in parts
        ),
    )


def _projection(projections: Sequence[Projection], failed: bool) -> answers.MonthProjection:
    def summed(name: str) -> float | None:
        return None if failed else total_of([getattr(one, name) for one in projections])

    method = projections[0].method if projections else "none"
    return answers.MonthProjection(
        total_cost=summed("total_cost"), low=summed("low"), high=summed("high"), method=method
    )


def _rows_of(rows: Sequence[ExpenseRow], names: Mapping[str, str]) -> list[answers.CleanExpenseRow]:
    return [_row(row, names) for row in rows]


def _row(row: ExpenseRow, names: Mapping[str, str]) -> answers.CleanExpenseRow:
    """A stored row in OptScale's words; every one of ``ROW_KEYS`` was asked for."""
    cluster = str(row.cluster)
    return answers.CleanExpenseRow(
        **fields_of(row, Columns),
        cloud_account_id=cluster,
        cloud_account_name=names.get(cluster, ""),
        k8s_namespace=str(row.namespace),
        k8s_controller=str(row.controller),
        k8s_node=str(row.node),
        resource_name=str(row.pod),
        name=f"{row.namespace}/{row.pod}",
        cost=row.total_cost,
        management_cost=row.management_cost,
        currency=row.currency,
        cpu_efficiency=row.cpu_efficiency,
        ram_efficiency=row.ram_efficiency,
        total_efficiency=row.total_efficiency,
    )
