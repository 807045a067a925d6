"""The table of what an allocation measures: cost components, parts of one, usage and allocated amounts.

Everything that names them is made from this table, or held to it by ``tests/unit/test_components.py``: the decoder of
upstream answers, columns of sets, the store's tables and its SQL, reading back, columns of the REST API, the
documentation. ``docs/extending.md`` says what to do for a new component.

Upstream fields are those of OpenCost (``core/pkg/opencost/allocation_json.go``) and Kubecost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import fsum
from operator import attrgetter
from typing import Literal

from msgspec import Struct

GIB = 2**30

Kind = Literal["cost", "part", "usage", "amount"]


class Measure(Struct, frozen=True, kw_only=True):
    """One number of an allocation."""

    name: str
    """Unique; also the name of its column in the store."""
    kind: Kind
    field: str
    """Its attribute in ``Costs``, ``Egress``, ``Usage`` or ``Amounts``, by ``kind``."""
    upstream: str
    """The upstream's field, in its own spelling."""
    adjustment: str = ""
    """The upstream's field that is added to it, where it has one."""
    unit: str = "USD"
    bit: int
    """Place in the store's mask of what is unknown: never changed, never used again."""
    may_be_negative: bool = False
    """Whether it may be below zero in a row that is not idle."""
    required: bool = False
    """Every version of either upstream has it: where it is missing it is unknown, not zero."""
    times_minutes: bool = False
    """The upstream gives an average over the minutes that the row ran."""
    divisor: float = 1.0
    """Upstream's unit in ours."""
    part_of: str = ""
    """The cost that holds it already."""


def _cost(
    bit: int, name: str, upstream: str, adjusted: bool = True, required: bool = False, credits: bool = False
) -> Measure:
    adjustment = f"{upstream}Adjustment" if adjusted else ""
    return Measure(
        name=name, kind="cost", field=name, upstream=upstream, adjustment=adjustment, bit=bit, required=required,
        may_be_negative=credits,
    )  # fmt: skip


def _egress(bit: int, name: str, field: str, upstream: str) -> Measure:
    return Measure(name=name, kind="part", field=field, upstream=upstream, bit=bit, part_of="network")


def _usage(bit: int, name: str, upstream: str, unit: str) -> Measure:
    return Measure(
        name=name, kind="usage", field=name, upstream=upstream, unit=f"{unit}-minutes", bit=bit, times_minutes=True
    )


def _amount(bit: int, name: str, field: str, upstream: str, unit: str, divisor: float = 1.0) -> Measure:
    return Measure(name=name, kind="amount", field=field, upstream=upstream, unit=f"{unit}·h", bit=bit, divisor=divisor)


MEASURES: tuple[Measure, ...] = (
    _cost(0, "cpu", "cpuCost", required=True),
    _cost(1, "ram", "ramCost", required=True),
    _cost(2, "gpu", "gpuCost"),
    _cost(3, "pv", "pvCost"),
    _cost(4, "network", "networkCost"),
    _cost(5, "load_balancer", "loadBalancerCost"),
    _cost(6, "shared", "sharedCost", adjusted=False, credits=True),
    _cost(7, "external", "externalCost", adjusted=False, credits=True),
    _egress(8, "internet", "internet", "networkInternetCost"),
    _egress(9, "region", "region", "networkCrossRegionCost"),
    _egress(10, "zone_egress", "zone", "networkCrossZoneCost"),
    _usage(11, "cpu_request", "cpuCoreRequestAverage", "core"),
    _usage(12, "cpu_usage", "cpuCoreUsageAverage", "core"),
    _usage(13, "ram_request", "ramByteRequestAverage", "byte"),
    _usage(14, "ram_usage", "ramByteUsageAverage", "byte"),
    _amount(15, "core_hours", "cpu", "cpuCoreHours", "core"),
    _amount(16, "ram_gib_hours", "ram", "ramByteHours", "GiB", GIB),
    _amount(17, "gpu_hours", "gpu", "gpuHours", "GPU"),
    _amount(18, "pv_gib_hours", "pv", "pvByteHours", "GiB", GIB),
)

COMPONENTS: tuple[str, ...] = tuple(one.name for one in MEASURES if one.kind == "cost")
"""The costs of an allocation; they add up to its total."""

MANAGEMENT_COMPONENT = "management"
"""Cluster management: a cost of the cluster that assets or metrics tell, and no allocation holds."""

CLUSTER_COMPONENTS = (*COMPONENTS, MANAGEMENT_COMPONENT)
"""What a cluster's cost is made of."""


def of_kind(kind: Kind) -> tuple[Measure, ...]:
    """The measures of one kind, in order."""
    return tuple(one for one in MEASURES if one.kind == kind)


class Costs(Struct, frozen=True, array_like=True, gc=False):
    """USD by component, adjustments included."""

    cpu: float = 0.0
    ram: float = 0.0
    gpu: float = 0.0
    pv: float = 0.0
    network: float = 0.0
    load_balancer: float = 0.0
    shared: float = 0.0
    external: float = 0.0

    @property
    def total(self) -> float:
        return fsum(self.by_component())

    def by_component(self) -> tuple[float, ...]:
        """In the order of ``COMPONENTS``."""
        return _BY_COMPONENT(self)

    @staticmethod
    def sum(many: Iterable[Costs]) -> Costs:
        columns = list(zip(*(costs.by_component() for costs in many), strict=True))
        return Costs(*(fsum(column) for column in columns)) if columns else Costs()

    def plus(self, *others: Costs) -> Costs:
        return Costs.sum((self, *others))


_BY_COMPONENT: Callable[[Costs], tuple[float, ...]] = attrgetter(*COMPONENTS)


class Egress(Struct, frozen=True, array_like=True, gc=False):
    """Dependencies *of* the network cost, USD: what left to the internet, to other regions, to other zones."""

    internet: float = 0.0
    region: float = 0.0
    zone: float = 0.0


class Usage(Struct, frozen=True, array_like=True, gc=False):
    """Requests and usage as core-minutes and byte-minutes, so that they add."""

    cpu_request: float = 0.0
    cpu_usage: float = 0.0
    ram_request: float = 0.0
    ram_usage: float = 0.0


class Amounts(Struct, frozen=True, array_like=True, gc=False):
    """What was allocated: core hours, GiB hours of memory, GPU hours, GiB hours of volumes."""

    cpu: float = 0.0
    ram: float = 0.0
    gpu: float = 0.0
    pv: float = 0.0


STRUCTS: dict[Kind, type[Costs] | type[Egress] | type[Usage] | type[Amounts]] = {
    "cost": Costs,
    "part": Egress,
    "usage": Usage,
    "amount": Amounts,
}
"""Where a row holds the measures of a kind: one field a measure, in the table's order."""
