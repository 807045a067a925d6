"""The REST API's answers as tables: one function an answer, all rows of it, in the answer's own names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from math import fsum
from typing import Any

import msgspec
from msgspec import Struct

from optscale_client.metroculus_client.structs import (
    Chargeback,
    ChargebackRow,
    Columns,
    CostRow,
    DataPoint,
    ExpensesBase,
    Figures,
    NodeRow,
    Recommendation,
    SourceState,
    WithSources,
)
from rest_api.rest_api_server import answers
from rest_api.rest_api_server.exports.table import (
    Cell,
    Column,
    Rows,
    Table,
    asked_for,
    at_once,
    cells_of,
    columns_of,
    money,
    ordered,
    present,
    unit_of,
)
from tools.window import Window, iso

COSTS = Columns.__struct_fields__
MANAGEMENT, UNALLOCATED = "__management__", "__unallocated__"
RESOURCE_UNITS = {"cpu": "cores", "memory": "bytes", "ram": "bytes", "storage": "bytes", "gpu": "GPUs"}
About = tuple[tuple[str, str], ...]


def dates_of(window: Window) -> str:
    """A window in the name of a file."""
    return f"{window.zone.iso(window.start)[:10]}-{window.zone.iso(window.end)[:10]}"


def costs_table(answer: answers.ClusterCosts, asked: Mapping[str, object], now: float) -> Table:
    """A statement row by row, what is of no row by its own name; its steps where it was asked for by steps.

    The rows add up to the total: without idle cost where that is hidden.
    """
    about = (
        *_of_cluster(answer, answer, asked, now),
        ("total_cost", money(answer.total_cost, answer.currency)),
        ("idle_cost", money(answer.idle_cost, answer.currency)),
    )
    if asked.get("step"):
        names = ordered(DataPoint, "start", "end", "complete", *COSTS)
        rows = [cells_of(point, names) for point in answer.data_points]
    else:
        names = ordered(CostRow, "name", "namespace", "controller", "controller_kind", "pod", *COSTS)
        names = present(answer.costs, names) or ["name", *COSTS]
        rows = [cells_of(row, names) for row in answer.costs]
        special = {**answer.special, MANAGEMENT: answer.summary.management_cost}
        rows += [
            tuple({"name": name or UNALLOCATED, "total_cost": cost}.get(column) for column in names)
            for name, cost in sorted(special.items())
            if cost != 0
        ]
    columns = columns_of(names, answer.currency)
    return Table(columns, about, at_once(rows), len(rows))


def clusters_table(answer: answers.OrganizationCosts, window: Window, now: float) -> Table:
    """A row for each cluster, those that failed among them, with the reason."""
    plain = ("cluster_id", "cluster_name", "state", "flavour", "currency")
    summed = (*COSTS, "management_cost", "known_cost")
    ends = ("cpu_efficiency", "ram_efficiency", "total_efficiency", "complete", "final_until", "error")

    def cells(one: answers.ClusterSummary) -> tuple[Cell, ...]:
        summary = cells_of(one.summary, summed) if one.summary is not None else (None,) * len(summed)
        ratios = one.efficiency
        return (
            *cells_of(one, plain),
            *summary,
            one.idle_cost,
            *((ratios.cpu_efficiency, ratios.ram_efficiency, ratios.total_efficiency) if ratios else (None,) * 3),
            one.complete,
            one.freshness.final_until if one.freshness is not None else None,
            one.error.reason if one.error is not None else None,
        )

    currency = _one_currency(", ".join(sorted(answer.totals)))
    about = (
        ("clusters", f"of organization {answer.organization_id}"),
        ("window", _span(window)),
        ("timezone", window.zone.name),
        ("as_of", iso(int(now))),
        *(("total_cost", money(total, name)) for name, total in sorted(answer.totals.items())),
        ("complete", _yes(answer.complete)),
    )
    rows = [cells(one) for one in answer.clusters]
    columns = columns_of((*plain, *summed, "idle_cost", *ends), currency)
    return Table(columns, about, at_once(rows), len(rows))


def assets_table(answer: answers.ClusterAssets, asked: Mapping[str, object], now: float) -> Table:
    """Every asset; a node with its specification."""
    own = [name for name in answers.AssetRow.__struct_fields__ if name not in ("specification", "last_seen")]
    specification = [name for name in NodeRow.__struct_fields__ if name not in own]
    about = (*_of_cluster(answer, answer, asked, now), ("total_cost", money(answer.total_cost, answer.currency)))
    rows = [(*cells_of(row, own), _stamp(row.last_seen), *_specified(row, specification)) for row in answer.assets]
    columns = columns_of((*own, "last_seen", *specification), answer.currency)
    return Table(columns, about, at_once(rows), len(rows))


def _specified(row: answers.AssetRow, names: Sequence[str]) -> tuple[Cell, ...]:
    known = isinstance(row.specification, NodeRow)
    return cells_of(row.specification, names) if known else (None,) * len(names)  # type: ignore[arg-type]


def savings_table(answer: answers.Optimization, asked: Mapping[str, object], now: float) -> Table:
    """Every recommendation; its evidence as JSON in one cell."""
    names = [name for name in Recommendation.__struct_fields__ if name != "evidence"]
    rows = [
        (*cells_of(one, names), RESOURCE_UNITS.get(one.resource), msgspec.json.encode(one.evidence).decode())
        for one in answer.recommendations
    ]
    units = {"monthly_saving": f"{answer.currency} a month"}
    columns = tuple(
        Column(name, units.get(name, unit_of(name, answer.currency))) for name in (*names, "unit", "evidence")
    )
    about = (
        *_of_cluster(answer, answer, asked, now),
        ("potential_savings", f"{money(answer.potential_savings, answer.currency)} a month"),
        ("idle_nodes", "not in potential_savings: what runs on them would need another place"),
        ("unit", "of requested, recommended and freed"),
    )
    return Table(columns, about, at_once(rows), len(rows))


def months_table(answer: answers.Monthly, now: float) -> Table:
    """A row for each month and cluster."""
    projected = ("projected_total_cost", "projected_low_cost", "projected_high_cost", "projection_method")
    names = ("month", "start", "end", "cluster_id", "cluster_name", "currency", "total_cost", "coverage", "complete")
    rows = [
        (
            *(month.month, month.start, month.end, one.cloud_account_id, one.cloud_account_name),
            *(one.currency, one.total_cost, one.coverage, one.complete),
            *_projected(one.projection),
        )
        for month in answer.months
        for one in month.clusters
    ]
    unavailable = [f"{one.cloud_account_name}: {one.error.reason}" for one in answer.unavailable]
    about = (
        ("months", f"of organization {answer.organization_id}"),
        ("as_of", iso(int(now))),
        ("timezone", answer.timezone),
        ("currency", answer.currency),
        *((f"total_cost {month.month}", money(month.total_cost, month.currency)) for month in answer.months),
        ("complete", _yes(not unavailable and all(month.complete for month in answer.months))),
        *(("unavailable", text) for text in unavailable),
        *(("warning", text) for text in answer.warnings),
    )
    columns = columns_of((*names, *projected), _one_currency(answer.currency))
    return Table(columns, about, at_once(rows), len(rows))


def _projected(projection: Any) -> tuple[Cell, ...]:
    if projection is None:
        return (None,) * 4
    return (projection.total_cost, projection.low, projection.high, projection.method)


def chargeback_table(answer: Chargeback, now: float) -> Table:
    """Who bears what in a month; a column for each shared cost and overhead, adjustments in lines above."""
    shared = sorted({name for row in answer.rows for name in row.shared})
    overhead = sorted({name for row in answer.rows for name in row.overhead})
    plain = ("name", "kind", "currency", "direct_cost", *(name for name in COSTS if name != "total_cost"))
    ends = ("idle_cost", "management_cost", "total_cost", "previous_total_cost")

    def cells(row: ChargebackRow) -> tuple[Cell, ...]:
        borne = (*(row.shared.get(name) for name in shared), *(row.overhead.get(name) for name in overhead))
        return (*cells_of(row, plain), *borne, *cells_of(row, ends))

    currency = _one_currency(", ".join(sorted(answer.totals)))
    columns = (
        *columns_of(plain, currency),
        *(Column(f"shared {name}", currency) for name in shared),
        *(Column(f"overhead {name}", currency) for name in overhead),
        *columns_of(ends, currency),
    )
    closed = iso(answer.closed_at) if answer.closed_at is not None else "no"
    about = (
        ("chargeback", f"of organization {answer.organization_id}"),
        ("month", answer.month),
        ("window", f"{answer.start} to {answer.end}"),
        ("as_of", iso(int(now))),
        ("by", answer.by),
        ("rules", answer.rules_valid_from or "none"),
        ("closed", closed),
        *((("accepted incomplete", answer.accept_incomplete),) if answer.accept_incomplete else ()),
        *(("total_cost", money(total, name)) for name, total in sorted(answer.totals.items())),
        ("complete", _yes(answer.complete)),
        *_coverage(answer.accounts),
        *(
            (f"adjustment of {one.month}", f"{one.name}: {money(one.amount, one.currency)}")
            for one in answer.adjustments
        ),
        *(("note", text) for text in answer.notes),
    )  # fmt: skip
    rows = [cells(row) for row in answer.rows]
    return Table(columns, about, at_once(rows), len(rows))


class ExpenseLists(Struct, frozen=True):
    """What an organization's stored expenses come to, out of as many lists as it takes to ask for them."""

    as_of: int
    window: Window
    wholes: tuple[ExpensesBase, ...]

    @property
    def currencies(self) -> tuple[str, ...]:
        return tuple(sorted({name for one in self.wholes if one.row_count for name in one.currency.split(", ")}))

    @property
    def total_cost(self) -> float | None:
        costs = [one.total_cost for one in self.wholes]
        known = [cost for cost in costs if cost is not None]
        return fsum(known) if len(known) == len(costs) and len(self.currencies) < 2 else None


EXPENSE_NAMES = (
    "cloud_account_id", "cloud_account_name", "k8s_namespace", "k8s_controller", "k8s_node", "resource_name",
    "currency",
    *COSTS, "management_cost", "cpu_efficiency", "ram_efficiency", "total_efficiency",
)  # fmt: skip


def expenses_table(
    lists: ExpenseLists,
    names: Mapping[str, str],
    batches: AsyncIterator[Sequence[answers.CleanExpenseRow]],
    asked: Mapping[str, object],
) -> Table:
    """Stored rows, by cluster and name.

    Args:
        names: of the clusters, by id.
    """
    currency = _one_currency(", ".join(lists.currencies))
    window = lists.window
    about = (
        ("expenses", f"stored of {len(names)} cluster{'s' if len(names) != 1 else ''}"),
        ("window", _span(window)),
        ("timezone", window.zone.name),
        ("as_of", iso(lists.as_of)),
        ("currency", ", ".join(lists.currencies) or "none"),
        ("filters", asked_for(asked)),
        ("total_cost", money(lists.total_cost, currency)),
        ("complete", _yes(all(one.complete for one in lists.wholes))),
        *(("warning", text) for text in (lists.wholes[0].window.warnings if lists.wholes else ())),
        *_coverage([account for one in lists.wholes for account in one.accounts], names),
    )

    async def rows() -> AsyncIterator[Rows]:
        async for batch in batches:
            yield [cells_of(row, EXPENSE_NAMES) for row in batch]

    count = sum(one.row_count for one in lists.wholes)
    return Table(columns_of(EXPENSE_NAMES, currency), about, rows(), count)


def _of_cluster(
    view: answers.ClusterStatement | answers.ClusterView, told: WithSources, asked: Mapping[str, object], now: float
) -> About:
    """What a view of one cluster is of, and how much of it is known."""
    currency = getattr(told, "currency", "")
    missing = told.not_covered if isinstance(told, Figures) else ()
    return (
        ("cluster", f"{view.cluster_name} ({view.cluster_id})"),
        ("window", f"{told.window.start} to {told.window.end}"),
        ("timezone", told.window.timezone),
        ("as_of", iso(int(now))),
        ("currency", currency),
        ("filters", asked_for(asked)),
        ("complete", _yes(told.complete)),
        *((("not_covered", "; ".join(missing)),) if missing else ()),
        *((f"source {one.name}", _state(one)) for one in told.sources),
        *(("warning", text) for text in told.window.warnings),
    )


def _state(source: SourceState) -> str:
    known = f"{source.coverage:.2%} of the time" if source.coverage is not None else ""
    return "; ".join(filter(None, (source.status, known, source.error, *source.warnings)))


def _coverage(accounts: Iterable[Any], names: Mapping[str, str] | None = None) -> About:
    """A line for each account of which some of the time is not known."""
    return tuple(
        (f"not complete {(names or {}).get(one.cloud_account_id, one.cloud_account_id)}", _state(one.source))
        for one in accounts
        if not one.complete
    )


def _one_currency(names: str) -> str:
    """The unit of money in a header; where there are several each row says its own."""
    return names if names and "," not in names else "in its currency"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _span(window: Window) -> str:
    return f"{window.zone.iso(window.start)} to {window.zone.iso(window.end)}"


def _stamp(stamp: int | None) -> Cell:
    return iso(stamp) if stamp is not None else None
