"""Reads committed hours, grouped by the database: nothing is read that the batch rule has not let through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from functools import reduce
from itertools import repeat
from math import fsum
from operator import or_
from typing import Any

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, UNALLOCATED, Filters, as_prometheus_spells
from metroculus.cost_model.changes import Measured
from metroculus.cost_model.columns import NOTHING, TEXT_FIELDS, Allocations, Coded, label_key
from metroculus.cost_model.components import (
    COMPONENTS,
    MANAGEMENT_COMPONENT,
    MEASURES,
    STRUCTS,
    Costs,
    Kind,
    Usage,
    of_kind,
)
from metroculus.cost_model.reading import AllocationSet
from metroculus.storage.columns import ALLOCATIONS, COST_COLUMNS, COSTS_AND_USAGE, MEASURE_COLUMNS
from metroculus.storage.engine import Column, Engine, TooManyRows, literal, moment, numbers, values_of
from metroculus.storage.ledger import MONTH, CommittedHours, of_accounts
from tools.window import HOUR
from tools.zones import UTC_ZONE, Zone

__all__ = ["COSTS_AND_USAGE", "CostSums", "History"]

MAX_ROWS = 500_000
"""Of one answer: a question that no summary shortens could otherwise take all the memory that there is."""

RANKED_DIGITS = 7
"""Digits after the point to which a cost is rounded before rows are ranked by it."""

IDLE_ROWS = "idle"
"""A key to group by: 1 for idle cost, 0 for everything else."""

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
    if filters.clusters:
        parts.append(f"cluster IN ({', '.join(map(literal, (*filters.clusters, '')))})")
    if filters.services:
        behind = [f"has(services, {literal(one)})" if one else "empty(services)" for one in filters.services]
        parts.append(f"({' OR '.join(behind)})")
    for name, wanted in filters.properties:
        parts.append(f"{expression(name)} IN ({', '.join(map(literal, wanted))})")
    if filters.owned_only:
        parts.append("owned = 1")
    return "".join(f" AND {part}" for part in parts)


class CostSums(Struct, frozen=True, gc=False):
    """One group: its keys, and the sums of its rows; money in the account's currency."""

    keys: tuple[str | int, ...]
    costs: Costs
    management: float
    usage: Usage
    unknown: int = 0
    """The bits of the measures that some row of it lacks."""

    @property
    def total(self) -> float:
        return fsum((*self.costs.by_component(), self.management))

    @staticmethod
    def read(keys: Sequence[str | int], row: Mapping[str, Any]) -> CostSums:
        """Out of the sums that ``sums_of`` asked for."""
        usage = Usage(*(row[SUM + one.name] for one in USAGE)) if SUM + USAGE[0].name in row else _NO_USAGE
        costs = Costs(*(row[SUM + name] for name in COMPONENTS))
        return CostSums(tuple(keys), costs, row[SUM + MANAGEMENT_COMPONENT], usage, int(row.get(UNKNOWN, 0)))


def sums_in(found: Mapping[str, Column], keys: Sequence[str]) -> Iterator[tuple[str, CostSums]]:
    """By row of an answer that has ``account``, these keys and what ``sums_of`` asked for: the account and its sums."""
    if not found:
        return iter(())
    told = {name: values_of(column) for name, column in found.items()}
    costs = map(Costs, *(told[SUM + name] for name in COMPONENTS))
    has_usage = SUM + USAGE[0].name in told
    usage = map(Usage, *(told[SUM + one.name] for one in USAGE)) if has_usage else repeat(_NO_USAGE)
    groups = zip(*(told[key] for key in keys), strict=True) if keys else repeat(())
    sums = map(CostSums, groups, costs, told[SUM + MANAGEMENT_COMPONENT], usage, told[UNKNOWN])
    return zip(told["account"], sums, strict=True)


SUM = "sum_"
UNKNOWN = "unknown_bits"
PODS = "pods"
USAGE = of_kind("usage")
_NO_USAGE = Usage()


def sums_of(measures: Sequence[str], *committed: CommittedHours) -> str:
    """Sums to select; a cost that no committed hour has any of is 0, for a column of zeros takes as long to read."""
    there = {name for one in committed for marker in one.hours.values() for name in marker.components}
    if not committed:
        there = set(measures)
    sums = [
        f"{f'sumKahan({name})' if name in there or name not in COST_COLUMNS else '0.'} AS {SUM}{name}"
        for name in measures
    ]
    return ", ".join((*sums, f"groupBitOr(unknown) AS {UNKNOWN}"))


def where_committed(*several: CommittedHours) -> str:
    """The condition that lets through the rows of the committed batches alone."""
    first = min(min(one.hours, default=one.start) for one in several)
    last = max(max(one.hours, default=one.start) for one in several)
    accounts = [one.account for one in several]
    span = f"{of_accounts(accounts)} AND hour >= {moment(first)} AND hour <= {moment(last)}"
    batches = [[marker.batch for marker in one.hours.values()] for one in several]
    return f"{span} AND {own_numbers('batch', batches, accounts)}"


def own_numbers(column: str, of_each: Sequence[Sequence[int]], accounts: Sequence[str]) -> str:
    """The condition that a row's number is one of those of its own account, and not only one of some other's.

    Args:
        of_each: the numbers of each account, in their order.
    """
    if len(accounts) == 1:
        return f"{column} IN ({numbers(of_each[0])})"
    owners = {number: place for place, listed in enumerate(of_each) for number in listed}
    if not owners:
        return "0"
    if len(owners) == sum(map(len, of_each)):  # arrays are read three times as fast as as many tuples
        found = f"transform({column}, [{numbers(list(owners))}], [{numbers(list(owners.values()))}], -1)"
        return f"{found} = {place_of(accounts)}"
    pairs = ",".join(f"({place},{number})" for place, listed in enumerate(of_each) for number in listed)
    return f"({place_of(accounts)}, {column}) IN ({pairs})"


def place_of(accounts: Sequence[str]) -> str:
    """SQL of a row's account as its place among some, -1 where it is none of them: a number is shorter than a name."""
    return f"transform(account, [{', '.join(map(literal, accounts))}], {list(range(len(accounts)))}, -1)"


def _set_of(committed: CommittedHours, allocations: Allocations) -> AllocationSet:
    """All committed hours as one set; it knows how much of the time was seen."""
    hours = committed.hours
    start, end = min(hours, default=committed.start), max(hours, default=committed.start - HOUR) + HOUR
    seconds = sum(marker.seconds for marker in hours.values())
    quarantined = sum(marker.quarantined for marker in hours.values())
    return AllocationSet(start, end, allocations, quarantined, seconds=seconds)


def _rows(column: Column, wanted: Any) -> Column:
    return column.take(wanted) if isinstance(column, Coded) else column[wanted]


class History:
    """Questions to committed hours."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def allocations(
        self,
        committed: CommittedHours,
        properties: Sequence[str],
        clusters: tuple[str, ...] = (),
        by_services: bool = False,
        with_pods: bool = False,
    ) -> tuple[AllocationSet, float | None]:
        """All hours as one set, by ``properties``, and their management cost (None where no hour has any).

        With ``clusters``, the rows of those alone, and what does not say whose it is. With ``by_services`` hours of a
        pod whose services differ are apart. With ``with_pods`` each row tells the names of its pods.

        The set knows how much of the time was seen: its hull may have holes.

        Raises:
            StoreError
        """
        asked = list(dict.fromkeys(properties))
        if not asked and not clusters and not by_services and not with_pods:
            return self.allocations_of([committed])[0]
        named = ", ".join(["owned", "namespace", *(f"{expression(name)} AS k{n}" for n, name in enumerate(asked))])
        grouped = ", ".join(["owned", "namespace", *(f"k{number}" for number in range(len(asked)))])
        services = "arraySort(services)" if by_services else "emptyArrayString()"
        pods = f", arraySort(groupUniqArray(toString(pod))) AS {PODS}" if with_pods else ""
        grouped += ", served" if by_services else ""
        found = self._engine.columns(
            f"SELECT {named}, {services} AS served, min(ran_from) AS since, max(ran_until) AS until,"
            f" {sums_of(MEASURE_COLUMNS, committed)}{pods} FROM {ALLOCATIONS.name} WHERE {where_committed(committed)}"
            f"{filtered(Filters(clusters=clusters))} GROUP BY {grouped}"
        )
        allocations, management = _read(found, asked)
        return _set_of(committed, allocations), management

    def allocations_of(self, several: Sequence[CommittedHours]) -> list[tuple[AllocationSet, float | None]]:
        """``allocations`` of several accounts by namespace alone, in one question.

        Raises:
            StoreError
        """
        if not several:
            return []
        found = self._engine.columns(
            "SELECT account, owned, namespace, emptyArrayString() AS served, min(ran_from) AS since,"
            f" max(ran_until) AS until, {sums_of(MEASURE_COLUMNS, *several)} FROM {ALLOCATIONS.name}"
            f" WHERE {where_committed(*several)} GROUP BY account, owned, namespace"
        )
        told = []
        for committed in several:
            own = found
            if found and len(several) > 1:
                mine = found["account"].map(lambda name, account=committed.account: name == account, bool)
                own = {name: _rows(column, mine) for name, column in found.items()}
            allocations, management = _read(own, ())
            told.append((_set_of(committed, allocations), management))
        return told

    def sums(
        self,
        committed: CommittedHours,
        group_by: Sequence[str],
        filters: Filters,
        measures: Sequence[str] = COST_COLUMNS,
        zone: Zone = UTC_ZONE,
    ) -> list[CostSums]:
        """Sums of the rows by properties and by ``hour``, or ``day`` or ``month`` of a zone (their first second).

        Special entities keep their own name under every property but labels.

        Raises:
            TooManyRows, StoreError
        """
        return self.sums_by_account([committed], group_by, filters, measures, zone).get(committed.account, [])

    def sums_by_account(
        self,
        several: Sequence[CommittedHours],
        group_by: Sequence[str],
        filters: Filters,
        measures: Sequence[str] = COST_COLUMNS,
        zone: Zone = UTC_ZONE,
    ) -> dict[str, list[CostSums]]:
        """``sums`` of several accounts in one question, or in more where the rows are too many for one.

        Returns:
            sums by account; one without rows is left out.

        Raises:
            TooManyRows: one account has more rows than are answered.
            StoreError
        """
        stored = [committed for committed in several if committed.hours]
        if not stored:
            return {}
        try:
            return self._sums_by_account(stored, group_by, filters, measures, zone)
        except TooManyRows:
            if len(stored) == 1:
                raise
        half = len(stored) // 2
        asked = (group_by, filters, measures, zone)
        return self.sums_by_account(stored[:half], *asked) | self.sums_by_account(stored[half:], *asked)

    def measured(
        self, committed: CommittedHours, group_by: Sequence[str], filters: Filters
    ) -> list[tuple[tuple[str, ...], Measured]]:
        """All that is known of each group: costs, amounts, usage, and for how long its containers ran.

        Raises:
            TooManyRows, StoreError
        """
        if not committed.hours:
            return []
        chosen, group, keys = self._grouped([committed], group_by, UTC_ZONE)
        rows = list(
            self._engine.rows(
                f"SELECT {chosen}{sums_of(MEASURE_COLUMNS, committed)},"
                f" sum(toInt64(ran_until) - toInt64(ran_from)) AS ran FROM {ALLOCATIONS.name}"
                f" WHERE {where_committed(committed)}{filtered(filters)}{group} LIMIT {MAX_ROWS + 1}"
            )
        )
        if len(rows) > MAX_ROWS:
            raise TooManyRows(f"more than {MAX_ROWS} rows")

        def of(kind: Kind, row: Mapping[str, Any]) -> Any:
            return STRUCTS[kind](*(row[SUM + one.name] for one in of_kind(kind)))

        return [
            (
                tuple(str(row[key]) for key in keys),
                Measured(
                    costs=of("cost", row),
                    management=row[SUM + MANAGEMENT_COMPONENT],
                    amounts=of("amount", row),
                    egress=of("part", row),
                    usage=of("usage", row),
                    run_hours=row["ran"] / HOUR,
                ),
            )
            for row in rows
        ]

    def first_rows(
        self,
        several: Sequence[CommittedHours],
        group_by: Sequence[str],
        filters: Filters,
        measures: Sequence[str],
        zone: Zone,
        page: Page,
    ) -> list[Ranked]:
        """The first ``page.end`` rows of ``sums_by_account`` over all accounts.

        Raises:
            TooManyRows: the page ends too far from the first row.
            StoreError
        """
        if page.end > MAX_ROWS:
            raise TooManyRows(f"a page that ends after {MAX_ROWS} rows")
        stored = [committed for committed in several if committed.hours]
        if not stored:
            return []
        chosen, group, keys = self._grouped(stored, group_by, zone)
        where = f" WHERE {where_committed(*stored)}{filtered(filters)}{group}"
        cost = " + ".join(f"{SUM}{name}" for name in (COST_COLUMNS if page.by == "total" else (page.by,)))
        sign = "-" if page.descending else ""
        order = ", ".join(("ranked_by", *keys, "account"))
        rows = []
        ranked = f"{sign}round({cost}, {RANKED_DIGITS}) AS ranked_by"
        for row in self._engine.rows(
            f"SELECT {chosen}{sums_of(measures, *stored)}, {ranked} FROM {ALLOCATIONS.name}{where}"
            f" ORDER BY {order} LIMIT {page.end}"
        ):
            found = tuple(row[key] for key in keys)
            place = (row["ranked_by"], *found, row["account"])
            rows.append(Ranked(place, str(row["account"]), CostSums.read(found, row)))
        return rows

    def count_rows(
        self, several: Sequence[CommittedHours], group_by: Sequence[str], filters: Filters, zone: Zone = UTC_ZONE
    ) -> dict[str, int]:
        """How many rows ``sums_by_account`` has of each account; one without any is left out.

        Raises:
            StoreError
        """
        stored = [committed for committed in several if committed.hours]
        if not stored:
            return {}
        chosen, group, _ = self._grouped(stored, group_by, zone)
        where = f" WHERE {where_committed(*stored)}{filtered(filters)}{group}"
        return {
            str(row["account"]): int(row["there"])
            for row in self._engine.rows(
                f"SELECT account, count() AS there FROM (SELECT {chosen}count() FROM {ALLOCATIONS.name}{where})"
                " GROUP BY account"
            )
        }

    def rows_between(
        self,
        committed: CommittedHours,
        group_by: Sequence[str],
        filters: Filters,
        measures: Sequence[str],
        stretch: Stretch,
        limit: int,
    ) -> list[CostSums]:
        """The first rows of ``sums`` within a stretch, in the order of their keys, none of which is a time.

        Raises:
            StoreError
        """
        if not committed.hours:
            return []
        chosen, group, keys = self._grouped([committed], group_by, UTC_ZONE)
        found = self._engine.rows(
            f"SELECT {chosen}{sums_of(measures, committed)} FROM {ALLOCATIONS.name}"
            f" WHERE {where_committed(committed)}{filtered(filters)}{stretch.condition(group_by)}{group}"
            f" ORDER BY {', '.join(('account', *keys))} LIMIT {int(limit)}"
        )
        return [CostSums.read([row[key] for key in keys], row) for row in found]

    def row_ends(
        self, committed: CommittedHours, group_by: Sequence[str], filters: Filters, after: Keys, every: int, count: int
    ) -> list[Keys]:
        """The keys of every so many rows of ``sums`` after some keys, up to ``count`` of them, in order.

        To sum up rows between two of them takes no sums of all others.

        Raises:
            StoreError
        """
        if not committed.hours:
            return []
        chosen, group, keys = self._grouped([committed], group_by, UTC_ZONE)
        named = ", ".join(("account", *keys))
        ordered = (
            f"SELECT {chosen}count() AS rows FROM {ALLOCATIONS.name} WHERE {where_committed(committed)}"
            f"{filtered(filters)}{Stretch(after).condition(group_by)}{group}"
            f" ORDER BY {named} LIMIT {int(every) * int(count)}"
        )
        numbered = f"SELECT {named}, rowNumberInAllBlocks() AS number FROM ({ordered})"
        found = self._engine.rows(
            f"SELECT {named}, number FROM ({numbered}) WHERE number % {int(every)} = {int(every) - 1} ORDER BY number"
        )
        return [tuple(str(row[key]) for key in keys) for row in found]

    @staticmethod
    def _grouped(stored: Sequence[CommittedHours], group_by: Sequence[str], zone: Zone) -> tuple[str, str, list[str]]:
        """What to select before the sums, what to group by, and the names of the keys."""
        first, last = (edge(edge(one.hours) for one in stored) for edge in (min, max))
        times = times_of(zone, first, last + HOUR)
        chosen, group = grouped_by([times.get(name) or grouping(name) for name in group_by])
        return chosen, group, [f"k{number}" for number in range(len(group_by))]

    def _sums_by_account(
        self,
        stored: Sequence[CommittedHours],
        group_by: Sequence[str],
        filters: Filters,
        measures: Sequence[str],
        zone: Zone,
    ) -> dict[str, list[CostSums]]:
        chosen, group, keys = self._grouped(stored, group_by, zone)
        answer = self._engine.columns(
            f"SELECT {chosen}{sums_of(measures, *stored)} FROM {ALLOCATIONS.name}"
            f" WHERE {where_committed(*stored)}{filtered(filters)}{group} LIMIT {MAX_ROWS + 1}"
        )
        if answer and len(answer[UNKNOWN]) > MAX_ROWS:
            raise TooManyRows(f"more than {MAX_ROWS} rows")
        found: dict[str, list[CostSums]] = {}
        for account, one in sums_in(answer, keys):
            found.setdefault(account, []).append(one)
        return {account: by_period(sums, group_by, zone) for account, sums in found.items()}


Keys = tuple[str, ...]
"""Of a row; none of them is a time."""


class Stretch(Struct, frozen=True):
    """Rows whose keys come after ``after``, and up to ``until``; none is from the first on, or to the last."""

    after: Keys = ()
    until: Keys = ()

    def condition(self, group_by: Sequence[str]) -> str:
        """What rows must have, to put behind a condition."""
        own = f"({', '.join(map(grouping, group_by))})"
        edges = ((">", self.after), ("<=", self.until))
        return "".join(f" AND {own} {sign} ({', '.join(map(literal, keys))})" for sign, keys in edges if keys)


class Page(Struct, frozen=True):
    """Which rows of a list: ``limit`` after the first ``offset``, by a cost; of the same cost by their keys.

    ``by`` is the name of a cost component, or ``total``.
    """

    by: str
    descending: bool
    offset: int
    limit: int

    @property
    def end(self) -> int:
        return self.offset + self.limit


class Ranked(Struct, frozen=True):
    """A row of a page: its account, its sums, and its place, by which rows of several answers are merged.

    The place is the database's own, its cost rounded: a sum that is added up in another order differs in the last
    digit, and a row could be on two pages or on none.
    """

    place: tuple[Any, ...]
    account: str
    sums: CostSums


def grouped_by(keys: Sequence[str]) -> tuple[str, str]:
    """What to select before the sums, and what to group by: each account by itself."""
    names = [f"k{number}" for number in range(len(keys))]
    chosen = "".join(f"{key} AS {name}, " for key, name in zip(keys, names, strict=True))
    return f"account, {chosen}", f" GROUP BY {', '.join(('account', *names))}"


TIMES = {
    "hour": "toUInt32(hour)",
    "day": "toUInt32(intDiv(toUInt32(hour), 86400) * 86400)",
    "month": MONTH,
}


def times_of(zone: Zone, start: int, end: int) -> dict[str, str]:
    """SQL of the keys that are times, for hours in ``[start, end)``; ``by_period`` reads what they give."""
    if zone.is_utc:
        return TIMES
    (_, first), *later = zone.whole_offsets(start, end)
    offset = str(first)
    if later:
        befores = [first, *(seconds for _, seconds in later[:-1])]
        conditions = [f"toUInt32(hour) < {at}, {seconds}" for (at, _), seconds in zip(later, befores, strict=True)]
        offset = f"multiIf({', '.join(conditions)}, {later[-1][1]})"
    day = f"toUInt32(intDiv(toInt64(toUInt32(hour)) + {offset}, 86400))"
    return {"hour": TIMES["hour"], "day": day, "month": day}


def by_period(found: list[CostSums], group_by: Sequence[str], zone: Zone) -> list[CostSums]:
    """Sums with the first second of each day or month as their key: of a zone the database gives numbers of days."""
    places = {place: name for place, name in enumerate(group_by) if name in ("day", "month")}
    if zone.is_utc or not places:
        return found

    def key(one: CostSums) -> tuple[str | int, ...]:
        keys = list(one.keys)
        for place, name in places.items():
            day = date(1970, 1, 1) + timedelta(days=int(keys[place]))
            keys[place] = zone.first_hour(day if name == "day" else day.replace(day=1))
        return tuple(keys)

    return by_key([replace(one, keys=key(one)) for one in found])


def grouping(name: str) -> str:
    """SQL of a key to group by that is no time.

    Raises:
        KeyError
    """
    if name == "namespace":
        return "namespace"
    if name == IDLE_ROWS:
        return f"toUInt8(namespace = {literal(IDLE)})"
    return f"if(owned = 1, if({expression(name)} = '', {literal(UNALLOCATED)}, {expression(name)}), namespace)"


def by_key(sums: Sequence[CostSums]) -> list[CostSums]:
    """Groups of the same keys, out of several answers, as one."""
    groups: dict[tuple[str | int, ...], list[CostSums]] = defaultdict(list)
    for one in sums:
        groups[one.keys].append(one)
    return [members[0] if len(members) == 1 else _added(keys, members) for keys, members in sorted(groups.items())]


def _added(keys: tuple[str | int, ...], members: Sequence[CostSums]) -> CostSums:
    return CostSums(
        keys,
        Costs.sum(m.costs for m in members),
        fsum(m.management for m in members),
        Usage(*(fsum(getattr(m.usage, one.field) for m in members) for one in USAGE)),
        reduce(or_, (m.unknown for m in members), 0),
    )


_FIELDS = {"controllerKind": "controller_kind"} | {
    name: name for name in ("cluster", "controller", "pod", "container", "node")
}


def _read(found: Mapping[str, Column], asked: Sequence[str]) -> tuple[Allocations, float | None]:
    """Stored groups as allocations, what no namespace owns under its special name again; and management."""
    if not found or not len(found["owned"]):
        return NOTHING, None
    owned = found["owned"].astype(bool)
    keys = {name: found[f"k{number}"] for number, name in enumerate(asked)}
    named = {field: keys[name] for name, field in _FIELDS.items() if name in keys}
    count = len(owned)
    texts: dict[str, Coded[Any]] = {field: named.get(field, Coded.same("", count)) for field in TEXT_FIELDS}
    texts["name"] = _names(owned, found["namespace"], list(keys.values()))
    texts["namespace"] = _without_idle(owned, found["namespace"])
    texts["services"] = _services(found["served"], keys.get("service"))
    texts["pods"] = found[PODS] if PODS in found else Coded.same((), count)
    for kind in ("label", "annotation"):
        of_kind_ = {name.partition(":")[2]: column for name, column in keys.items() if name.startswith(f"{kind}:")}
        texts[f"{kind}s"] = _label_sets(of_kind_, count)
    measures = np.stack([found[SUM + one.name] for one in MEASURES]).astype(np.float64)
    rows = Allocations(
        measures, found[UNKNOWN].astype(np.uint64), found["since"].astype(np.int64), found["until"].astype(np.int64),
        texts, _special(owned, found["namespace"]),
    )  # fmt: skip
    is_management = ~owned & found["namespace"].map(lambda name: name == MANAGEMENT, bool)
    usd = found[SUM + MANAGEMENT_COMPONENT][is_management]
    return rows.take(~is_management), fsum(usd.tolist()) if is_management.any() else None


def _special(owned: Any, namespaces: Coded[str]) -> Coded[str | None]:
    """Which special entity each row is: what its column says, whatever names and labels its owner chose."""
    return Coded.of(None if ours else name for name, ours in zip(namespaces.list(), owned.tolist(), strict=True))


def _names(owned: Any, namespaces: Coded[str], keys: Sequence[Coded[str]]) -> Coded[str]:
    parts = zip(namespaces.list(), *(key.list() for key in keys), strict=True)
    return Coded.of("/".join(one) if ours else one[0] for one, ours in zip(parts, owned.tolist(), strict=True))


def _without_idle(owned: Any, namespaces: Coded[str]) -> Coded[str]:
    """Idle has no namespace; its name says what it is."""
    names = zip(namespaces.list(), owned.tolist(), strict=True)
    return Coded.of("" if name == IDLE and not ours else name for name, ours in names)


def _services(served: Coded[tuple[str, ...]], asked: Coded[str] | None) -> Coded[tuple[str, ...]]:
    if asked is None:
        return served
    both = zip(served.list(), asked.list(), strict=True)
    return Coded.of(many or ((one,) if one else ()) for many, one in both)


def _label_sets(columns: Mapping[str, Coded[str]], count: int) -> Coded[dict[str, str]]:
    if not columns:
        return Coded.same({}, count)
    rows = zip(*(column.list() for column in columns.values()), strict=True)
    return Coded.of(
        ({name: value for name, value in zip(columns, row, strict=True) if value} for row in rows), label_key
    )
