"""One reconciled statement of what a cluster cost, out of whatever sources answered, and what is missing from it.

Each component has one authority, so that nothing is counted twice: the allocation API, else metrics; management comes
from the assets API or from metrics, never from allocation. What a source could not say is ``None`` here, never 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import fsum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT
from metroculus.cost_model.columns import (
    NOTHING,
    Allocations,
    Floats,
    add,
    exact,
    group,
    known_costs,
    share_idle,
    sums_by,
)
from metroculus.cost_model.components import COMPONENTS, MANAGEMENT_COMPONENT, Costs, of_kind
from metroculus.cost_model.efficiency import Efficiency
from metroculus.cost_model.reading import (
    AllocationReading,
    ManagementReading,
    SourceReport,
    StoredReading,
    StretchReading,
)
from metroculus.cost_model.statement import (
    Breakdown,
    Question,
    Row,
    Statement,
    StatementWindow,
    Summary,
)

Known = Mapping[str, float | None]
"""USD by component, None where it is not known whole."""


class _Cost(Struct, frozen=True):
    """What was told of allocations, divided into what is shown apart."""

    owned: Allocations
    """What namespaces own and the question asks for."""
    priced: Floats | None
    """Their costs with shared idle; None where idle is not shared."""
    special: dict[str, Costs]
    """What no namespace owns, idle apart."""
    others: Allocations
    """The rows of the special entities, idle among them, that the question asks for."""
    idle: Costs | None


def reconcile(
    question: Question,
    allocation: AllocationReading | None,
    metrics: AllocationReading | None,
    management: Sequence[ManagementReading],
    stored: StoredReading | None = None,
    stretch: StretchReading | None = None,
) -> Statement:
    """One statement out of what the sources said.

    Args:
        allocation: of the allocation API, None where none is configured or all is stored.
        metrics: of metrics, None where there are none or they were not needed.
        management: in order of authority, of the time that is not stored.
        stored: the committed hours; the readings beside it are of the time that they leave out.
        stretch: what another source told of the time that the allocation API does not have.
    """
    live, kept = _counted(allocation, metrics, stored)
    readings = [(kept.allocation, _told_idle(kept.allocation))] if kept else []
    readings += [(live, _idle(live, management))] if live else []
    readings += [(stretch.allocation, _idle(stretch.allocation, ()))] if stretch else []
    authority = _joined([reading for reading, _ in readings])
    cost = _divided(authority, _sum_known([idle for _, idle in readings]), question)
    parts = [*([kept.management] if kept else []), *([_first_known(management)] if live or not stored else [])]
    parts += [stretch.management] if stretch else []
    management_usd, management_covered = _management(parts, question)
    seen = _seen(cost) if authority else None
    components = _components(authority, seen, cost.idle)
    not_covered = tuple(authority.not_covered) if authority else ()
    if not management_covered:
        not_covered += (MANAGEMENT_COMPONENT,)
    summary = _summary(components, seen, management_usd, not_covered)
    if question.filters.namespaces == (MANAGEMENT,) and management_usd is None:
        summary = replace(summary, total_cost=None, known_cost=None)
    told = (allocation, metrics, *management, *((stretch.allocation, stretch.management) if stretch else ()))
    sources = tuple(reading.source for reading in told if reading is not None)
    if stored is not None:
        alone = live is None and stored.rest.final_seconds > 0
        sources = (_stored_source(stored.allocation.source, alone), *sources)
    silent = {name for name, usd in components.items() if usd is None}
    breakdowns = question.grouping.breakdowns
    lists: dict[str, Any] = {key: rows(cost.owned, cost.priced, by, silent) for key, by in breakdowns.items()}
    return Statement(
        cloud_account_id=question.cloud_account_id,
        start_date=question.window.start,
        end_date=question.window.end,
        window=StatementWindow.of(question.window),
        currency=question.currency,
        complete=summary.total_cost is not None and all(source.fine for source in sources),
        not_covered=not_covered,
        sources=sources,
        total_cost=summary.total_cost,
        summary=summary,
        idle_cost=cost.idle.total if authority and cost.idle is not None else None,
        unallocated_cost=fsum(costs.total for costs in cost.special.values()) if authority else None,
        special=_shown(cost, question) if authority else {},
        efficiency=add(cost.owned).efficiency if authority else None,
        breakdown=_breakdown(cost, components, management_usd),
        **lists,
    )


def _counted(
    allocation: AllocationReading | None, metrics: AllocationReading | None, stored: StoredReading | None
) -> tuple[AllocationReading | None, StoredReading | None]:
    """The live reading that counts, and what is stored as far as any hour of it does; None where there is none."""
    usable = [reading for reading in (allocation, metrics) if reading is not None and reading.usable]
    live = next((reading for reading in usable if reading.sets), usable[0] if usable else None)
    kept = stored if stored is not None and stored.allocation.sets else None
    if stored is not None and kept is None and live is not None and not live.sets:
        live = None  # no hour of the store is counted, and of the running one nothing is told yet
    return live, kept


def _joined(readings: Sequence[AllocationReading]) -> AllocationReading | None:
    """Readings of different times as one; a component that one of them cannot tell is not known of the whole.

    Where another of them tells some cost of it, leaving it out of the total would lose that cost: then it is missing.
    """
    if not readings:
        return None
    uncovered = {name for reading in readings for name in reading.not_covered}
    sets = [one for reading in readings for one in reading.sets]
    lost = {name for name in uncovered if any(one.columns.line(name).any() for one in sets)}
    return AllocationReading(
        source=readings[0].source,
        sets=tuple(sets),
        missing=tuple(sorted(lost.union(*(reading.missing for reading in readings)))),
        not_covered=tuple(sorted(uncovered - lost)),
    )


def _divided(authority: AllocationReading | None, idle: Costs | None, question: Question) -> _Cost:
    """Namespaces, special entities and idle, each as far as the question's filters ask for it."""
    everything = authority.allocations() if authority else NOTHING
    mask = everything.owned
    owned, others = everything.take(mask), everything.take(~mask)
    priced = None
    if question.idle == "share" and idle is not None:
        shared, idle = share_idle(owned, idle)
        priced = shared.costs
    filters = question.filters
    if filters.any:
        kept = owned.kept(filters)
        owned, priced = owned.take(kept), None if priced is None else priced[:, kept]
        others = others.take(others.special.map(lambda name: filters.keep_special(name or ""), bool))
        idle = idle if filters.keep_special(IDLE) else Costs()
    names, sums = sums_by(others.special.texts(str), others.costs)
    special = {name: Costs(*sums[:, number].tolist()) for number, name in enumerate(names) if name != IDLE}
    return _Cost(owned, priced, special, others, idle)


def _shown(cost: _Cost, question: Question) -> dict[str, float]:
    """Special entities as they are listed, USD by name."""
    shown = {name: costs.total for name, costs in sorted(cost.special.items())}
    if cost.idle is not None and question.filters.keep_special(IDLE) and question.idle != "hide":
        shown[IDLE] = cost.idle.total
    return shown


def _stored_source(source: SourceReport, alone: bool) -> SourceReport:
    """Where nobody told the rest of the window, what the store has is all there is, and not the whole of it."""
    return replace(source, status="stale") if alone and source.status == "ok" else source


def _first_known(readings: Sequence[ManagementReading]) -> ManagementReading | None:
    """The first source that knows management cost, else one that should have, else any."""
    known = next((reading for reading in readings if reading.usd is not None), None)
    return known or next((reading for reading in readings if reading.covers), readings[0] if readings else None)


def _management(parts: Sequence[ManagementReading | None], question: Question) -> tuple[float | None, bool]:
    """Management cost of the whole window, None where a part is unknown; and whether any source could have told it."""
    if not question.filters.keep_special(MANAGEMENT):
        return 0.0, True
    if not parts:
        return None, True
    known = [reading.usd for reading in parts if reading is not None and reading.usd is not None]
    if len(known) == len(parts):
        return fsum(known), True
    return None, any(reading.covers for reading in parts if reading is not None)


def _sum_known(parts: Sequence[Costs | None]) -> Costs | None:
    """The sum; None if any part is unknown, or there is none."""
    return Costs.sum(one for one in parts if one is not None) if parts and None not in parts else None


def _told_idle(reading: AllocationReading) -> Costs | None:
    """Idle as rows tell it; hours are stored with their idle, so that where they have none there was none."""
    rows = reading.allocations()
    return rows.take(rows.is_special(IDLE)).sum_costs()


def _idle(reading: AllocationReading, management: Sequence[ManagementReading]) -> Costs | None:
    """Idle as the source told it, else what nodes cost beyond what was allocated; None where neither is known."""
    if reading.has_idle() or not reading.sets:
        return _told_idle(reading)
    nodes = next((one.nodes for one in management if one.nodes is not None), None)
    if nodes is None:
        return None
    used = Costs.sum(one.columns.sum_costs() for one in reading.sets)
    return Costs(cpu=nodes.cpu - used.cpu, ram=nodes.ram - used.ram, gpu=nodes.gpu - used.gpu)


def _seen(cost: _Cost) -> Costs:
    """What was seen of each component, whole or not."""
    priced = Costs(*(float(usd) for usd in exact(cost.owned.costs if cost.priced is None else cost.priced, 1)))
    return priced.plus(*cost.special.values(), cost.idle or Costs())


def _components(authority: AllocationReading | None, seen: Costs | None, idle: Costs | None) -> Known:
    """The cluster's cost by component; None where it is not known whole."""
    if authority is None or seen is None:
        return dict.fromkeys(COMPONENTS)
    known: dict[str, float | None] = dict(zip(COMPONENTS, seen.by_component(), strict=True))
    for name in (*authority.missing, *authority.not_covered, *(() if idle is not None else ("cpu", "ram", "gpu"))):
        known[name] = None
    return known


def _summary(components: Known, seen: Costs | None, management: float | None, not_covered: Sequence[str]) -> Summary:
    parts = {**components, MANAGEMENT_COMPONENT: management}
    whole = any(value is not None for value in parts.values()) and all(
        value is not None or name in not_covered for name, value in parts.items()
    )
    known = [usd for usd in (*(seen.by_component() if seen else ()), management) if usd is not None]
    columns: dict[str, Any] = {f"{name}_cost": value for name, value in parts.items()}
    return Summary(
        total_cost=fsum(value for value in parts.values() if value is not None) if whole else None,
        known_cost=fsum(known) if known else None,
        **columns,
    )


def _breakdown(cost: _Cost, components: Known, management: float | None) -> Breakdown:
    """Two columns again, and the parts of the network cost."""
    reaches = of_kind("part")
    parts: dict[str, float | None] = {f"network_{one.field}_cost": None for one in reaches}
    unknown = cost.owned.unknown_measures | cost.others.unknown_measures
    if components["network"] is not None:
        for one in (part for part in reaches if part.name not in unknown):
            usd = exact(cost.owned.line(one.name)) + exact(cost.others.line(one.name))
            parts[f"network_{one.field}_cost"] = float(usd)
    return Breakdown(management_cost=management, load_balancer_cost=components["load_balancer"], **parts)


_NAMED = {"namespace": "namespace", "controller": "controller", "controllerKind": "controller_kind", "pod": "pod"}
"""The columns of a row that a property of a grouping has."""
_AVERAGES = {
    "cpu_core_request_average": "cpu_request",
    "cpu_core_usage_average": "cpu_usage",
    "ram_byte_request_average": "ram_request",
    "ram_byte_usage_average": "ram_usage",
}
"""The columns of a row that are averages, and of which measure."""


def rows(
    owned: Allocations, priced: Floats | None, aggregate: tuple[str, ...], silent: Collection[str] = ()
) -> tuple[Row, ...]:
    """Lines of a breakdown, dearest first; their totals are of what is known of them.

    Args:
        priced: the costs to show, where they are not the rows' own; efficiency is always of their own.
        silent: components that are not known of the cluster.
    """
    groups = group(owned, aggregate)
    costs = (groups.costs if priced is None else groups.summed(priced)).T.tolist()
    known = costs
    if silent or groups.unknown.any():
        known = [known_costs(usd, bits, silent) for usd, bits in zip(costs, groups.unknown.tolist(), strict=True)]
    averages = groups.averages()
    columns: dict[str, Iterable[Any]] = {
        "name": map("/".join, groups.names),
        "total_cost": map(fsum, costs),
        "pod_count": groups.pods.tolist(),
        **dict(zip((f"{name}_cost" for name in COMPONENTS), zip(*known, strict=True), strict=False)),
        **dict(zip(Efficiency.__struct_fields__, groups.efficiencies(), strict=True)),
        **{column: averages[measure] for column, measure in _AVERAGES.items()},
        **{
            _NAMED[name]: [key[place] for key in groups.names] for place, name in enumerate(aggregate) if name in _NAMED
        },
    }
    lines = [Row(**dict(zip(columns, line, strict=True))) for line in zip(*columns.values(), strict=True)]
    return tuple(sorted(lines, key=lambda line: (-line.total_cost, line.name)))
