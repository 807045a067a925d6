"""Reads committed hours, grouped by the database: nothing is read that the batch rule has not let through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import fsum
from typing import Any

from msgspec import Struct

from metroculus.cost_model.allocation import (
    IDLE,
    MANAGEMENT,
    UNALLOCATED,
    Allocation,
    AllocationSet,
    Amounts,
    Costs,
    Egress,
    Filters,
    Usage,
    as_prometheus_spells,
)
from metroculus.storage.engine import Engine, TooManyRows, literal, moment, numbers
from metroculus.storage.ledger import Held
from metroculus.storage.schema import ALLOCATIONS, AMOUNT_COLUMNS, COST_COLUMNS, EGRESS_COLUMNS, USAGE_COLUMNS
from tools.window import HOUR

MAX_ROWS = 500_000
"""Of one answer: a question that no summary shortens could otherwise take all the memory that there is."""

COSTS_AND_USAGE = (*COST_COLUMNS, *USAGE_COLUMNS)
MEASURES = (*COSTS_AND_USAGE, *EGRESS_COLUMNS, *AMOUNT_COLUMNS)
"""What rows are summed by; a question takes ``COST_COLUMNS``, ``COSTS_AND_USAGE`` or all of it."""

PROPERTIES = {
    "cluster": "cluster",
    "namespace": "namespace",
    "controller": "controller",
    "controllerKind": "controller_kind",
    "pod": "pod",
    "container": "container",
    "node": "node",
    "service": "arraySort(services)[1]",
    "instance_type": "instance_type",
    "zone": "zone",
}


def expression(name: str) -> str:
    """SQL of a property, of ``label:x`` or of ``annotation:x``, by either spelling of x.

    Raises:
        KeyError: it is none.
    """
    kind, colon, label = name.partition(":")
    if not colon:
        return PROPERTIES[name]
    if kind not in ("label", "annotation"):
        raise KeyError(name)
    exact, spelled = literal(label), literal(as_prometheus_spells(label))
    names, values = f"{kind}_names", f"{kind}_values"
    return f"{values}[if(has({names}, {exact}), indexOf({names}, {exact}), indexOf({names}, {spelled}))]"


def filtered(filters: Filters) -> str:
    """What rows must have, to put behind a condition."""
    parts = []
    for column, wanted in (("namespace", filters.namespaces), ("node", filters.nodes)):
        if wanted:
            parts.append(f"{column} IN ({', '.join(map(literal, wanted))})")
    if filters.services:
        parts.append("(" + " OR ".join(f"has(services, {literal(one)})" for one in filters.services) + ")")
    return "".join(f" AND {part}" for part in parts)


class Measured(Struct, frozen=True, gc=False):
    """One group: its keys, and the sums of its rows; money in USD."""

    keys: tuple[str | int, ...]
    costs: Costs
    management: float
    egress: Egress
    usage: Usage
    amounts: Amounts

    @property
    def total(self) -> float:
        return fsum((*self.costs.by_component(), self.management))

    @staticmethod
    def read(keys: Sequence[Any], sums: Sequence[float]) -> Measured:
        """Out of the sums of ``COST_COLUMNS``, ``COSTS_AND_USAGE`` or ``MEASURES``."""
        costs, management = Costs(*sums[0:8]), sums[8]
        usage = Usage(*sums[9:13]) if len(sums) > 9 else _NO_USAGE
        egress, amounts = (Egress(*sums[13:16]), Amounts(*sums[16:20])) if len(sums) > 13 else (_NO_EGRESS, _NOTHING)
        return Measured(tuple(keys), costs, management, egress, usage, amounts)


_NO_USAGE, _NO_EGRESS, _NOTHING = Usage(), Egress(), Amounts()


def sums_of(measures: Sequence[str], held: Held | None = None) -> str:
    """Sums to select; a cost that no committed hour has any of is 0, for a column of zeros takes as long to read."""
    there = {name for marker in held.hours.values() for name in marker.components} if held else set(measures)
    return ", ".join(f"sumKahan({name})" if name in there or name not in COST_COLUMNS else "0." for name in measures)


def where_held(held: Held) -> str:
    """The condition that lets through the rows of the committed batches alone."""
    hours = held.hours
    first, last = min(hours, default=held.start), max(hours, default=held.start)
    return (
        f"account = {literal(held.account)} AND hour >= {moment(first)} AND hour <= {moment(last)}"
        f" AND batch IN ({numbers([marker.batch for marker in hours.values()])})"
    )


class History:
    """Questions to committed hours."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def allocations(self, held: Held, properties: Sequence[str]) -> tuple[AllocationSet, float | None]:
        """All hours as one set, by ``properties``, and their management cost (None where no hour has any).

        The set knows how much of the time was seen: its hull may have holes.

        Raises:
            StoreError
        """
        asked = list(dict.fromkeys(properties))
        grouped = ", ".join(["owned", "namespace", *(f"k{number}" for number in range(len(asked)))])
        named = ", ".join(["owned", "namespace", *(f"{expression(n)} AS k{i}" for i, n in enumerate(asked))])
        services = "arraySort(any(services))" if "pod" in asked else "emptyArrayString()"
        rows = self._engine.query(
            f"SELECT {named}, {services}, min(ran_from), max(ran_until), {sums_of(MEASURES, held)}"
            f" FROM {ALLOCATIONS.name} WHERE {where_held(held)} GROUP BY {grouped}"
        )
        found: list[Allocation] = []
        management: list[float] = []
        for owned, namespace, *rest in rows:
            values, (served, since, until, *sums) = rest[: len(asked)], rest[len(asked) :]
            one = Measured.read((), sums)
            if namespace == MANAGEMENT and not owned:
                management.append(one.management)
                continue
            found.append(
                _allocation(bool(owned), namespace, dict(zip(asked, values, strict=True)), served, since, until, one)
            )
        hours = held.hours
        start, end = min(hours, default=held.start), max(hours, default=held.start - HOUR) + HOUR
        seconds = sum(marker.seconds for marker in hours.values())
        quarantined = sum(marker.quarantined for marker in hours.values())
        told = AllocationSet(start, end, tuple(found), quarantined, seconds=seconds)
        return told, fsum(management) if management else None

    def measured(
        self, held: Held, group_by: Sequence[str], filters: Filters, measures: Sequence[str] = COST_COLUMNS
    ) -> list[Measured]:
        """Sums of the rows by properties and by ``hour``, ``day`` or ``month`` (their first second).

        Special entities keep their own name under every property but labels.

        Raises:
            TooManyRows, StoreError
        """
        if not held.hours:
            return []
        chosen, group = grouped_by([grouping(name) for name in group_by])
        rows = self._engine.query(
            f"SELECT {chosen}{sums_of(measures, held)} FROM {ALLOCATIONS.name}"
            f" WHERE {where_held(held)}{filtered(filters)}{group} LIMIT {MAX_ROWS + 1}"
        )
        found = [Measured.read(row[: len(group_by)], row[len(group_by) :]) for row in rows]
        if len(found) > MAX_ROWS:
            raise TooManyRows(f"more than {MAX_ROWS} rows")
        return found


def grouped_by(keys: Sequence[str]) -> tuple[str, str]:
    """What to select before the sums, and what to group by."""
    names = [f"k{number}" for number in range(len(keys))]
    chosen = "".join(f"{key} AS {name}, " for key, name in zip(keys, names, strict=True))
    return chosen, f" GROUP BY {', '.join(names)}" if names else ""


TIMES = {
    "hour": "toUInt32(hour)",
    "day": "toUInt32(intDiv(toUInt32(hour), 86400) * 86400)",
    "month": "toUInt32(toDateTime(toStartOfMonth(hour), 'UTC'))",
}


def grouping(name: str) -> str:
    """SQL of a key to group by.

    Raises:
        KeyError
    """
    if name in TIMES:
        return TIMES[name]
    if name == "namespace":
        return "namespace"
    return f"if(owned = 1, if({expression(name)} = '', {literal(UNALLOCATED)}, {expression(name)}), namespace)"


def by_key(measured: Sequence[Measured]) -> list[Measured]:
    """Groups of the same keys, out of several answers, as one."""
    groups: dict[tuple[str | int, ...], list[Measured]] = defaultdict(list)
    for one in measured:
        groups[one.keys].append(one)
    return [members[0] if len(members) == 1 else _summed(keys, members) for keys, members in sorted(groups.items())]


def _summed(keys: tuple[str | int, ...], members: Sequence[Measured]) -> Measured:
    egress = Egress(*(fsum(getattr(m.egress, name) for m in members) for name in ("internet", "region", "zone")))
    amounts = Amounts(*(fsum(getattr(m.amounts, name) for m in members) for name in ("cpu", "ram", "gpu", "pv")))
    return Measured(
        keys,
        Costs.sum(m.costs for m in members),
        fsum(m.management for m in members),
        egress,
        Usage.sum(m.usage for m in members),
        amounts,
    )


def _allocation(
    owned: bool, namespace: str, values: dict[str, str], served: Sequence[str], since: int, until: int, one: Measured
) -> Allocation:
    """A stored group as an allocation; what no namespace owns gets its special name back."""
    named: dict[str, Any] = {
        field: values[name]
        for name, field in (
            ("cluster", "cluster"),
            ("controller", "controller"),
            ("controllerKind", "controller_kind"),
            ("pod", "pod"),
            ("container", "container"),
            ("node", "node"),
        )
        if name in values
    }
    labels = {name.partition(":")[2]: value for name, value in values.items() if name[:6] == "label:" and value}
    notes = {name.partition(":")[2]: value for name, value in values.items() if name[:11] == "annotation:" and value}
    services = tuple(served) or ((values["service"],) if values.get("service") else ())
    return Allocation(
        name="/".join([namespace, *values.values()]) if owned else namespace,
        namespace="" if namespace == IDLE and not owned else namespace,
        services=services,
        labels=labels,
        annotations=notes,
        start=since,
        end=until,
        costs=one.costs,
        egress=one.egress,
        usage=one.usage,
        amounts=one.amounts,
        **named,
    )
