"""The statement of what a cluster cost: what is asked of it, and its shape as it is answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from msgspec import UNSET, Struct, UnsetType, defstruct

from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.components import CLUSTER_COMPONENTS, COMPONENTS
from metroculus.cost_model.efficiency import Efficiency
from metroculus.cost_model.grouping import Detail, Grouping
from metroculus.cost_model.reading import SourceReport
from tools.window import Window

IdleMode = Literal["separate", "share", "hide"]


def with_cost_columns(name: str, base: type[Struct], components: tuple[str, ...], type_: Any) -> Any:
    """A struct like ``base`` with a column ``<component>_cost`` for each component."""
    columns = [(f"{component}_cost", type_) for component in components]
    return defstruct(
        name, columns, bases=(base,), frozen=True, kw_only=True, namespace={"__doc__": base.__doc__},
        module=base.__module__,
    )  # fmt: skip


class RowBase(Struct, frozen=True, kw_only=True):
    """One line of a breakdown; costs in the statement's currency, averages in cores and bytes.

    A component is None where something of it is not known; ``total_cost`` is of what is.
    """

    name: str
    namespace: str | UnsetType = UNSET
    controller: str | UnsetType = UNSET
    controller_kind: str | UnsetType = UNSET
    pod: str | UnsetType = UNSET
    total_cost: float
    cpu_efficiency: float | None
    ram_efficiency: float | None
    total_efficiency: float | None
    pod_count: int
    cpu_core_request_average: float | None
    cpu_core_usage_average: float | None
    ram_byte_request_average: float | None
    ram_byte_usage_average: float | None


class SummaryBase(Struct, frozen=True, kw_only=True):
    """The cluster by component, idle and unallocated included; None is unknown."""

    total_cost: float | None
    known_cost: float | None


class PointBase(SummaryBase, frozen=True, kw_only=True):
    """One step: ``[start, end)`` in RFC 3339, every cost column of a summary, and whether it is known whole."""

    start: str
    end: str
    complete: bool
    idle_cost: float | None
    groups: dict[str, float] | UnsetType = UNSET
    """What is known of the dearest rows, by name; one that has none in the step is left out."""


if TYPE_CHECKING:  # the cost columns come from the table of components; the type checker sees the rest

    class Row(RowBase, frozen=True, kw_only=True): ...

    class Summary(SummaryBase, frozen=True, kw_only=True): ...

    class Point(PointBase, frozen=True, kw_only=True): ...

else:
    Row = with_cost_columns("Row", RowBase, COMPONENTS, float | None)
    Summary = with_cost_columns("Summary", SummaryBase, CLUSTER_COMPONENTS, float | None)
    Point = with_cost_columns("Point", PointBase, CLUSTER_COMPONENTS, float | None)


class Breakdown(Struct, frozen=True, kw_only=True):
    """Two columns of the summary again, and the parts of the network cost."""

    management_cost: float | None
    load_balancer_cost: float | None
    network_internet_cost: float | None
    network_region_cost: float | None
    network_zone_cost: float | None


class StatementWindow(Struct, frozen=True):
    """RFC 3339, in the zone that was asked for."""

    start: str
    end: str
    final_until: str
    timezone: str = "UTC"
    warnings: tuple[str, ...] = ()

    @staticmethod
    def of(window: Window) -> StatementWindow:
        zone = window.zone
        start, end, final_until = map(zone.iso, (window.start, window.end, window.final_until))
        return StatementWindow(start, end, final_until, zone.name, zone.warnings(window.start, window.end))


class Statement(Struct, frozen=True, kw_only=True):
    """What a cluster cost in ``[start_date, end_date)``; ``docs/api.md`` says what each key means."""

    cloud_account_id: str
    start_date: int
    end_date: int
    window: StatementWindow
    currency: str
    complete: bool
    not_covered: tuple[str, ...]
    sources: tuple[SourceReport, ...]
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
    groups: int = 0
    """Of how many rows, the dearest first, each step tells the cost; of a statement in steps by one property."""
    clusters_apart: bool = False
    """Whether the account is all the clusters that its source knows."""

    @property
    def properties(self) -> tuple[str, ...]:
        """What rows are grouped or filtered by, which not every source can tell."""
        return tuple(dict.fromkeys((*self.aggregate, *self.filters.names)))

    @property
    def grouping(self) -> Grouping:
        return Grouping(self.detail, self.aggregate, self.clusters_apart)
