"""One reconciled statement of what a cluster cost, out of whatever sources answered, and what is missing from it.

Each component has one authority, so that nothing is counted twice: the allocation API, else Thanos; management comes
from the assets API or from Thanos, never from allocation. What a source could not say is ``None`` here, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from metroculus.cost_model.allocation import (
    COMPONENTS,
    IDLE,
    MANAGEMENT,
    Allocation,
    AllocationSet,
    Costs,
    Filters,
    Group,
    add,
    coverage,
    group,
    share_idle,
)
from metroculus.cost_model.efficiency import Efficiency
from tools.window import Window, iso

Status = Literal["ok", "stale", "partial", "no_data", "unavailable", "not_configured"]
IdleMode = Literal["separate", "share", "hide"]
Detail = Literal["summary", "namespace", "workload", "pod"]

COVERAGE_THRESHOLD = 0.99
"""Below this share of the final time a source is ``partial``."""

DISAGREEMENT_USD = 0.01
"""An upstream total further than this from the sum of its parts is told of."""

DETAIL_AGGREGATES: dict[str, tuple[str, ...]] = {
    "namespace": ("namespace",),
    "workload": ("namespace", "controller", "controllerKind"),
    "pod": ("namespace", "pod"),
}


class Source(Struct, frozen=True, kw_only=True):
    """What became of asking one source; ``coverage`` is time with data over time asked."""

    name: str
    status: Status
    fetched_at: int | None = None
    coverage: float | None = None
    error: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def fine(self) -> bool:
        """Whether it told all that it was asked, or was not to be asked."""
        return self.status in ("ok", "not_configured")


class AllocationReading(Struct, frozen=True, kw_only=True):
    """What one source said of allocations. ``sets`` is empty unless the status is ``ok`` or ``partial``.

    ``missing`` are components that the source should tell and could not; ``not_covered`` those that it has no means
    to tell.
    """

    source: Source
    sets: tuple[AllocationSet, ...] = ()
    missing: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return self.source.status in ("ok", "partial")

    def allocations(self) -> Iterable[Allocation]:
        return (allocation for one in self.sets for allocation in one.allocations)


class NodeCosts(Struct, frozen=True):
    """What all nodes cost in the window, by resource, adjustments included; USD."""

    cpu: float
    ram: float
    gpu: float


class ManagementReading(Struct, frozen=True, kw_only=True):
    """What one source said of management cost, and of nodes where it knows them.

    ``covers`` is False where the source never has management cost (OpenCost's assets): then ``usd`` is None and
    nothing failed.
    """

    source: Source
    usd: float | None = None
    covers: bool = True
    nodes: NodeCosts | None = None


class StoredReading(Struct, frozen=True):
    """What the committed hours of a window say; their source is the store, ``rest`` is what they leave to others."""

    allocation: AllocationReading
    management: ManagementReading
    rest: Window


class Row(Struct, frozen=True, kw_only=True):
    """One line of a breakdown; costs in the statement's currency, averages in cores and bytes."""

    name: str
    namespace: str | UnsetType = UNSET
    controller: str | UnsetType = UNSET
    controller_kind: str | UnsetType = UNSET
    pod: str | UnsetType = UNSET
    total_cost: float
    cpu_cost: float
    ram_cost: float
    gpu_cost: float
    pv_cost: float
    network_cost: float
    load_balancer_cost: float
    shared_cost: float
    external_cost: float
    cpu_efficiency: float
    ram_efficiency: float
    total_efficiency: float
    pod_count: int
    cpu_core_request_average: float
    cpu_core_usage_average: float
    ram_byte_request_average: float
    ram_byte_usage_average: float


class Summary(Struct, frozen=True, kw_only=True):
    """The cluster by component, idle and unallocated included; None is unknown."""

    total_cost: float | None
    cpu_cost: float | None
    ram_cost: float | None
    gpu_cost: float | None
    pv_cost: float | None
    network_cost: float | None
    load_balancer_cost: float | None
    management_cost: float | None
    shared_cost: float | None
    external_cost: float | None
    known_cost: float | None


class Breakdown(Struct, frozen=True, kw_only=True):
    """Two columns of the summary again, and the parts of the network cost."""

    management_cost: float | None
    load_balancer_cost: float | None
    network_internet_cost: float | None
    network_region_cost: float | None
    network_zone_cost: float | None


class StatementWindow(Struct, frozen=True):
    """RFC 3339, UTC."""

    start: str
    end: str
    final_until: str

    @staticmethod
    def of(window: Window) -> StatementWindow:
        return StatementWindow(iso(window.start), iso(window.end), iso(window.final_until))


class Statement(Struct, frozen=True, kw_only=True):
    """What a cluster cost in ``[start_date, end_date)``; ``docs/api.md`` says what each key means."""

    cloud_account_id: str
    start_date: int
    end_date: int
    window: StatementWindow
    currency: str
    complete: bool
    not_covered: tuple[str, ...]
    sources: tuple[Source, ...]
    total_cost: float | None
    summary: Summary
    idle_cost: float | None
    unallocated_cost: float | None
    special: dict[str, float]
    efficiency: Efficiency | None
    potential_savings: float | None = None
    breakdown: Breakdown
    breakdown_by_namespace: tuple[Row, ...] | UnsetType = UNSET
    breakdown_by_workload: tuple[Row, ...] | UnsetType = UNSET
    breakdown_by_pod: tuple[Row, ...] | UnsetType = UNSET
    breakdown_by_aggregate: tuple[Row, ...] | UnsetType = UNSET
    savings_recommendations: dict[str, Any] = {}
    data_points: tuple[Any, ...] = ()


class Question(Struct, frozen=True, kw_only=True):
    """What is asked of the statement beyond its window."""

    cloud_account_id: str
    window: Window
    detail: Detail = "summary"
    aggregate: tuple[str, ...] = ()
    filters: Filters = Filters()
    idle: IdleMode = "separate"
    currency: str = "USD"


def judge_sets(
    name: str,
    sets: Sequence[AllocationSet],
    window: Window,
    fetched_at: int,
    warnings: Sequence[str] = (),
    failed: str | None = None,
) -> AllocationReading:
    """A reading of the sets that came back, with the status that they earn.

    Args:
        failed: why some of the window could not be read at all.
    """
    kept = tuple(sorted((one for one in sets if one.allocations), key=lambda one: one.start))
    share = coverage(kept, window)
    quarantined = sum(one.quarantined for one in sets)
    notes = list(warnings)
    unknown = sorted({component for one in kept for a in one.allocations for component in a.unknown})
    disagreement = fsum(one.disagreement for one in kept)
    if quarantined:
        notes.append(f"{quarantined} rows could not be read and are not counted")
    if unknown:
        notes.append(f"rows without a value for: {', '.join(unknown)}")
    if abs(disagreement) > DISAGREEMENT_USD:
        notes.append(f"the source's totals differ from the sum of their parts by {disagreement:.5f}; parts are used")
    if any(a.special == IDLE and a.costs.total < 0 for one in kept for a in one.allocations):
        notes.append("idle is negative")
    status: Status = "ok"
    if not kept:
        status = "unavailable" if failed else "ok" if window.still_running else "no_data"
    elif failed or quarantined or unknown or (share is not None and share < COVERAGE_THRESHOLD):
        status = "partial"
    source = Source(
        name=name, status=status, fetched_at=fetched_at, coverage=share if kept else 0.0, error=failed,
        warnings=tuple(notes),
    )  # fmt: skip
    return AllocationReading(source=source, sets=kept)


def reconcile(
    question: Question,
    allocation: AllocationReading | None,
    metrics: AllocationReading | None,
    management: Sequence[ManagementReading],
    stored: StoredReading | None = None,
) -> Statement:
    """One statement out of what the sources said.

    Args:
        allocation: of the allocation API, None where none is configured or all is stored.
        metrics: of Thanos, None where it is not configured or was not needed.
        management: in order of authority, of the time that is not stored.
        stored: the committed hours; the readings beside it are of the time that they leave out.
    """
    live = next((r for r in (allocation, metrics) if r is not None and r.usable), None)
    readings = [*([stored.allocation] if stored else []), *([live] if live else [])]
    authority = _joined(readings)
    everything = tuple(authority.allocations()) if authority else ()
    owned = [a for a in everything if a.special is None]
    special = _special(everything)
    special.pop(IDLE, None)
    idle = _idle_of_all(readings, management)
    priced = [a.costs for a in owned]
    if question.idle == "share" and idle is not None:
        priced, idle = share_idle(owned, idle)
    filters = question.filters
    if filters.any:
        kept = [n for n, a in enumerate(owned) if filters.keep(a)]
        owned, priced = [owned[n] for n in kept], [priced[n] for n in kept]
        special = {name: costs for name, costs in special.items() if filters.keep_special(name)}
        everything = (*owned, *(a for a in everything if a.special in special))
        idle = idle if filters.keep_special(IDLE) else Costs()
    told = [*([stored.management] if stored else []), *([_first_told(management)] if live or not stored else [])]
    management_usd, management_covered = _management(told, question)
    seen = _seen(authority, (*priced, *special.values()), idle)
    components = _components(authority, seen, idle)
    not_covered = tuple(authority.not_covered) if authority else ()
    if not management_covered:
        not_covered += ("management",)
    summary = _summary(components, seen, management_usd, not_covered)
    shown = {name: costs.total for name, costs in sorted(special.items())}
    if authority and idle is not None and filters.keep_special(IDLE) and question.idle != "hide":
        shown[IDLE] = idle.total
    breakdowns: dict[str, Any] = {
        key: rows(owned, priced, aggregate) for key, aggregate in _wanted_breakdowns(question).items()
    }
    sources = tuple(reading.source for reading in (allocation, metrics, *management) if reading is not None)
    if stored is not None:
        alone = live is None and stored.rest.final_seconds > 0
        sources = (_stored_source(stored.allocation.source, alone), *sources)
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
        idle_cost=idle.total if authority and idle is not None else None,
        unallocated_cost=fsum(costs.total for costs in special.values()) if authority else None,
        special=shown,
        efficiency=add(owned).efficiency if authority else None,
        breakdown=_breakdown(everything, components, management_usd),
        **breakdowns,
    )


def _joined(readings: Sequence[AllocationReading]) -> AllocationReading | None:
    """Readings of different times as one; a component that one of them cannot tell is not known of the whole."""
    if not readings:
        return None
    return AllocationReading(
        source=readings[0].source,
        sets=tuple(one for reading in readings for one in reading.sets),
        missing=tuple(sorted({name for reading in readings for name in reading.missing})),
        not_covered=tuple(sorted({name for reading in readings for name in reading.not_covered})),
    )


def _stored_source(source: Source, alone: bool) -> Source:
    """Where nobody told the rest of the window, what the store has is all there is, and not the whole of it."""
    return replace(source, status="stale") if alone and source.status == "ok" else source


def _first_told(readings: Sequence[ManagementReading]) -> ManagementReading | None:
    """The first source that knows management cost, else whether any could have told it."""
    told = next((reading for reading in readings if reading.usd is not None), None)
    return told or next((reading for reading in readings if reading.covers), readings[0] if readings else None)


def _management(told: Sequence[ManagementReading | None], question: Question) -> tuple[float | None, bool]:
    """Management cost of all the time, None where it is not known of some; and whether any source could have told."""
    if not question.filters.keep_special(MANAGEMENT):
        return 0.0, True
    known = [reading.usd for reading in told if reading is not None and reading.usd is not None]
    if told and len(known) == len(told):
        return fsum(known), True
    return None, any(reading.covers for reading in told if reading is not None)


def _special(everything: Iterable[Allocation]) -> dict[str, Costs]:
    """What no namespace owns, each special entity by itself."""
    found: dict[str, list[Costs]] = {}
    for allocation in everything:
        if allocation.special is not None:
            found.setdefault(allocation.special, []).append(allocation.costs)
    return {name: Costs.sum(costs) for name, costs in found.items()}


def _idle_of_all(readings: Sequence[AllocationReading], management: Sequence[ManagementReading]) -> Costs | None:
    """Idle of all the time; None where it is not known of some, or of none."""
    known = [_idle(reading, management) for reading in readings]
    return Costs.sum(one for one in known if one is not None) if known and None not in known else None


def _idle(reading: AllocationReading, management: Sequence[ManagementReading]) -> Costs | None:
    """Idle as the source told it, else what nodes cost beyond what was allocated; None where neither is known."""
    told = [a.costs for a in reading.allocations() if a.special == IDLE]
    if told or not reading.sets:
        return Costs.sum(told)
    nodes = next((one.nodes for one in management if one.nodes is not None), None)
    if nodes is None:
        return None
    used = Costs.sum(a.costs for a in reading.allocations())
    return Costs(cpu=nodes.cpu - used.cpu, ram=nodes.ram - used.ram, gpu=nodes.gpu - used.gpu)


def _seen(authority: AllocationReading | None, priced: Iterable[Costs], idle: Costs | None) -> Costs | None:
    """What was seen of each component, whole or not; None where nothing was."""
    return Costs.sum((*priced, idle or Costs())) if authority else None


def _components(authority: AllocationReading | None, seen: Costs | None, idle: Costs | None) -> dict[str, float | None]:
    """The cluster's cost by component; None where it is not known whole."""
    if authority is None or seen is None:
        return dict.fromkeys(COMPONENTS)
    known: dict[str, float | None] = dict(zip(COMPONENTS, seen.by_component(), strict=True))
    for name in (*authority.missing, *authority.not_covered, *(() if idle is not None else ("cpu", "ram", "gpu"))):
        known[name] = None
    return known


def _summary(
    components: dict[str, float | None], seen: Costs | None, management: float | None, not_covered: Sequence[str]
) -> Summary:
    parts = {**components, "management": management}
    whole = any(value is not None for value in parts.values()) and all(
        value is not None or name in not_covered for name, value in parts.items()
    )
    known = [usd for usd in (*(seen.by_component() if seen else ()), management) if usd is not None]
    return Summary(
        total_cost=fsum(value for value in parts.values() if value is not None) if whole else None,
        known_cost=fsum(known) if known else None,
        **{f"{name}_cost": value for name, value in parts.items()},
    )


def _breakdown(
    everything: Iterable[Allocation], components: dict[str, float | None], management: float | None
) -> Breakdown:
    parts: dict[str, float | None] = dict.fromkeys(("internet", "region", "zone"))
    if components["network"] is not None:
        egress = [a.egress for a in everything]
        parts = {reach: fsum(getattr(one, reach) for one in egress) for reach in parts}
    return Breakdown(
        management_cost=management,
        load_balancer_cost=components["load_balancer"],
        **{f"network_{reach}_cost": value for reach, value in parts.items()},
    )


def _wanted_breakdowns(question: Question) -> dict[str, tuple[str, ...]]:
    """The lists that the question asks for, each with what it is grouped by."""
    wanted: dict[str, tuple[str, ...]] = {}
    for detail, aggregate in DETAIL_AGGREGATES.items():
        if question.detail == "summary":
            break
        wanted[f"breakdown_by_{detail}"] = aggregate
        if detail == question.detail:
            break
    if question.aggregate:
        wanted["breakdown_by_aggregate"] = question.aggregate
    return wanted


def rows(owned: Sequence[Allocation], priced: Sequence[Costs], aggregate: tuple[str, ...]) -> tuple[Row, ...]:
    """Lines of a breakdown, dearest first; ``priced`` are the costs to show, with shared idle or without."""
    prices = {id(a): costs for a, costs in zip(owned, priced, strict=True)}
    lines = [
        _row(key, aggregate, add(members), Costs.sum(prices[id(a)] for a in members))
        for key, members in group(owned, aggregate).items()
    ]
    return tuple(sorted(lines, key=lambda line: (-line.total_cost, line.name)))


def _row(key: tuple[str, ...], aggregate: tuple[str, ...], one: Group, costs: Costs) -> Row:
    """A line; its efficiency is of the group's own cost, shared idle or not."""
    fields = {"namespace": "namespace", "controller": "controller", "controllerKind": "controller_kind", "pod": "pod"}
    named: dict[str, Any] = {fields[prop]: part for prop, part in zip(aggregate, key, strict=True) if prop in fields}
    priced: dict[str, Any] = {f"{name}_cost": usd for name, usd in zip(COMPONENTS, costs.by_component(), strict=True)}
    ratios = one.efficiency
    return Row(
        name="/".join(key),
        **named,
        total_cost=costs.total,
        **priced,
        cpu_efficiency=ratios.cpu_efficiency,
        ram_efficiency=ratios.ram_efficiency,
        total_efficiency=ratios.total_efficiency,
        pod_count=one.pods,
        cpu_core_request_average=one.average(one.usage.cpu_request),
        cpu_core_usage_average=one.average(one.usage.cpu_usage),
        ram_byte_request_average=one.average(one.usage.ram_request),
        ram_byte_usage_average=one.average(one.usage.ram_usage),
    )
