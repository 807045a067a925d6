"""A statement in steps: the same figures, hour by hour, day by day, week by week or month by month of a zone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import fsum
from typing import Any

from msgspec import UNSET, UnsetType

from metroculus.cost_model.components import CLUSTER_COMPONENTS, Costs
from metroculus.cost_model.statement import Point, Statement
from tools.window import Window
from tools.zones import Period


def steps(window: Window, step: Period) -> list[Window]:
    """The window cut at the edges of hours, or of its zone's days, weeks (from Sunday) or months."""
    cut = []
    start = window.start
    while start < window.end:
        end = min(window.zone.period(start, step)[1], window.end)
        cut.append(Window(start, end, max(start, min(end, window.final_until)), zone=window.zone))
        start = end
    return cut


def point_of(window: Window, statement: Statement, names: Collection[str] | None = None) -> Point:
    """A statement of one step as a point, with its rows of these names."""
    summary = statement.summary
    rows = statement.breakdown_by_aggregate or ()
    groups = {row.name: row.total_cost for row in rows if row.name in names} if names is not None else UNSET
    return Point(
        start=window.zone.iso(window.start),
        end=window.zone.iso(window.end),
        complete=statement.complete,
        idle_cost=statement.idle_cost,
        groups=groups,
        **{name: getattr(summary, name) for name in summary.__struct_fields__},
    )


def unknown_point(window: Window) -> Point:
    """A step of which nothing can be told."""
    columns: dict[str, Any] = dict.fromkeys(
        ("idle_cost", "total_cost", "known_cost", *(f"{name}_cost" for name in CLUSTER_COMPONENTS))
    )
    return Point(start=window.zone.iso(window.start), end=window.zone.iso(window.end), complete=False, **columns)


def stored_point(
    window: Window,
    parts: Iterable[tuple[Costs, float]],
    idle: float,
    unknown: Iterable[str],
    not_covered: Iterable[str],
    complete: bool,
    groups: dict[str, float] | UnsetType = UNSET,
) -> Point:
    """A point of hours that are stored.

    Args:
        complete: as a statement of the same hours says it.
        parts: costs and management of what makes up the step, USD.
        unknown: components that some hour does not tell.
        not_covered: components that some hour had no source for; the total is that of the rest.
    """
    gathered = list(parts)
    costs = Costs.sum(one for one, _ in gathered).by_component()
    known = dict(zip(CLUSTER_COMPONENTS, (*costs, fsum(usd for _, usd in gathered)), strict=True))
    lacking, apart = set(unknown), set(not_covered)
    shown: dict[str, float | None] = {
        f"{name}_cost": None if name in lacking | apart else usd for name, usd in known.items()
    }
    return Point(
        start=window.zone.iso(window.start),
        end=window.zone.iso(window.end),
        complete=complete and not lacking,
        idle_cost=idle,
        groups=groups,
        total_cost=None if lacking else fsum(usd for usd in shown.values() if usd is not None),
        known_cost=fsum(known.values()),
        **shown,
    )
