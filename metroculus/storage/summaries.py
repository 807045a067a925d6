"""Sums of hours, days and months by namespace, rebuilt from committed batches and never counted up.

A summary says of which batches it was built. It answers only while those are still the ones that are read, so that it
can be late but never wrong: what is not summarised is summed from the rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from metroculus.cost_model.allocation import Filters, Group
from metroculus.cost_model.columns import unknown_usage
from metroculus.storage.columns import ALLOCATIONS, COST_COLUMNS, MEASURE_COLUMNS, SUMMARIES, SUMMARY_BUILDS
from metroculus.storage.engine import Engine, literal, moment, numbers
from metroculus.storage.history import (
    SUM,
    TIMES,
    CostSums,
    History,
    by_key,
    by_period,
    filtered,
    grouped_by,
    sums_of,
    times_of,
    where_committed,
)
from metroculus.storage.ledger import CommittedHours, FencedWriter, Ledger, Marker, built_from
from tools.window import HOUR
from tools.zones import UTC_ZONE, Zone

log = logging.getLogger("summaries")

Granularity = Literal["hour", "day", "month"]
GRANULARITIES: tuple[Granularity, ...] = ("month", "day", "hour")
SUMMARISED = frozenset({"namespace", "hour", "day", "month"})
"""What may be grouped by without reading rows."""

PERIODS_A_QUERY = 48


class Build(Struct, frozen=True):
    """One summary that was made."""

    start: int
    version: int
    sequence: int
    rows: int
    built_from: int


def markers_by_period(hours: Iterable[Marker], granularity: Granularity) -> dict[int, list[Marker]]:
    """Markers by the period that they belong to."""
    periods: dict[int, list[Marker]] = {}
    for marker in hours:
        periods.setdefault(UTC_ZONE.period(marker.hour, granularity)[0], []).append(marker)
    return periods


class Summaries:
    """Makes and reads summaries."""

    def __init__(self, engine: Engine, ledger: Ledger, history: History) -> None:
        self._engine = engine
        self._ledger = ledger
        self._history = history

    def rebuild(self, account: str, start: int, end: int, writer: FencedWriter) -> int:
        """Bring the summaries of all periods that touch ``[start, end)`` up to what is committed.

        Returns:
            how many were made anew.

        Raises:
            StoreError
        """
        first, last = UTC_ZONE.period(start, "month")[0], UTC_ZONE.period(max(start, end - 1), "month")[1]
        committed = self._ledger.committed(account, first, last)
        made = 0
        for granularity in reversed(GRANULARITIES):
            periods = markers_by_period(committed.hours.values(), granularity)
            wanted = {
                s: built_from(m) for s, m in periods.items() if s < end and UTC_ZONE.period(s, granularity)[1] > start
            }
            known = self._builds(account, granularity, first, last)
            stale = [s for s, built in wanted.items() if s not in known or known[s].built_from != built]
            for part in (stale[n : n + PERIODS_A_QUERY] for n in range(0, len(stale), PERIODS_A_QUERY)):
                self._build(account, granularity, {s: periods[s] for s in part}, writer)
            made += len(stale)
        return made

    def _build(
        self, account: str, granularity: Granularity, periods: Mapping[int, list[Marker]], writer: FencedWriter
    ) -> None:
        hours = {marker.hour: marker for markers in periods.values() for marker in markers}
        committed = CommittedHours(account, min(hours), max(hours) + HOUR, hours)
        versions = {start: self._ledger.new_batch() for start in periods}
        rows: list[list[object]] = []
        counts = dict.fromkeys(periods, 0)
        answer = self._engine.rows(
            f"SELECT {TIMES[granularity]} AS period, owned, namespace, cluster, {sums_of(MEASURE_COLUMNS, committed)},"
            f" uniqExact(pod) AS pods FROM {ALLOCATIONS.name} WHERE {where_committed(committed)}"
            " GROUP BY period, owned, namespace, cluster"
        )
        for found in answer:
            one = CostSums.read((), found)
            ratios = Group(one.costs, one.usage, 0, 0.0, unknown_usage(one.unknown)).efficiency
            counts[found["period"]] += 1
            row = {
                "account": account,
                "granularity": granularity,
                "start": found["period"],
                "version": versions[found["period"]],
                **{name: found[name] for name in ("owned", "namespace", "cluster")},
                **{name: found[SUM + name] for name in MEASURE_COLUMNS},
                "unknown": one.unknown,
                "total_cost": one.total,
                "cpu_efficiency": _number(ratios.cpu_efficiency),
                "ram_efficiency": _number(ratios.ram_efficiency),
                "total_efficiency": _number(ratios.total_efficiency),
                "pod_count": found["pods"],
            }
            rows.append([row[name] for name in SUMMARIES.names])
        for first in range(0, len(rows), 20_000):
            self._engine.insert(SUMMARIES.name, SUMMARIES.names, rows[first : first + 20_000])
        self._engine.insert(
            SUMMARY_BUILDS.name,
            ("account", "granularity", "start", "version", "sequence", "rows", "built_from"),
            [
                (account, granularity, start, versions[start], writer.sequence(), counts[start], built_from(markers))
                for start, markers in periods.items()
            ],
        )

    def _builds(self, account: str, granularity: Granularity, start: int, end: int) -> dict[int, Build]:
        """The newest build of each period that begins in ``[start, end)``."""
        found: dict[int, Build] = {}
        for row in self._engine.rows(
            f"SELECT toUInt32(start) AS stamp, version, sequence, rows, built_from FROM {SUMMARY_BUILDS.name}"
            f" WHERE account = {literal(account)} AND granularity = {literal(granularity)}"
            f" AND start >= {moment(start)} AND start < {moment(end)}"
        ):
            build = Build(row.pop("stamp"), **row)
            if build.start not in found or build.sequence > found[build.start].sequence:
                found[build.start] = build
        return found

    def sums(
        self,
        account: str,
        start: int,
        end: int,
        group_by: Sequence[str],
        filters: Filters,
        measures: Sequence[str] = COST_COLUMNS,
        zone: Zone = UTC_ZONE,
    ) -> Answer:
        """Sums of the committed hours in ``[start, end)``: from summaries where they are good, else from rows.

        Days and months are those of ``zone``; of another than UTC they are sums of summarised hours.

        Raises:
            StoreError
        """
        if not SUMMARISED.issuperset(group_by) or (filters.nodes or filters.services):
            committed = self._ledger.committed(account, start, end)
            return Answer(committed, tuple(self._history.sums(committed, group_by, filters, measures, zone)))
        asked = _Asked(group_by, filters, measures, zone)
        newest = self._ledger.newest(account, start, end)
        left = dict(newest)
        parts: list[CostSums] = []
        for granularity in self._usable(group_by, zone):
            periods = {
                first: markers
                for first, markers in markers_by_period(left.values(), granularity).items()
                if first >= start and UTC_ZONE.period(first, granularity)[1] <= end
            }
            good, found = self._whole(account, granularity, self._fitting(account, granularity, periods), asked)
            parts += found
            for first in good:
                for marker in periods[first]:
                    del left[marker.hour]
        passed: tuple[Marker, ...] = ()
        if left:
            counted = self._ledger.committed(account, min(left), max(left) + HOUR)
            passed = counted.passed_over
            rest = {hour: marker for hour, marker in counted.hours.items() if hour in left}
            for hour in left:
                newest.pop(hour)
            newest |= rest
            parts += self._history.sums(CommittedHours(account, start, end, rest), group_by, filters, measures, zone)
        committed = CommittedHours(account, start, end, dict(sorted(newest.items())), passed)
        return Answer(committed, tuple(by_key(parts)))

    @staticmethod
    def _usable(group_by: Sequence[str], zone: Zone) -> Sequence[Granularity]:
        """Summaries that are fine enough, coarse ones first."""
        if "hour" in group_by or (not zone.is_utc and not {"day", "month"}.isdisjoint(group_by)):
            return ("hour",)
        return ("day", "hour") if "day" in group_by else GRANULARITIES

    def _fitting(self, account: str, granularity: Granularity, periods: Mapping[int, list[Marker]]) -> dict[int, Build]:
        """The builds of these periods that are made of just these batches."""
        if not periods:
            return {}
        builds = self._builds(account, granularity, min(periods), max(periods) + 1)
        return {
            start: build
            for start, build in builds.items()
            if start in periods and build.built_from == built_from(periods[start])
        }

    def _whole(
        self, account: str, granularity: Granularity, builds: dict[int, Build], asked: _Asked
    ) -> tuple[dict[int, Build], list[CostSums]]:
        """The builds whose rows are all there, and what they say; where all rows are read they are counted with it."""
        if builds and not asked.filters.any:
            found, rows = self._read(account, granularity, builds, asked)
            if rows == sum(build.rows for build in builds.values()):
                return builds, found
        good = self._counted(account, granularity, builds) if builds else {}
        return good, self._read(account, granularity, good, asked)[0] if good else []

    def _counted(self, account: str, granularity: Granularity, builds: Mapping[int, Build]) -> dict[int, Build]:
        counted: dict[int, int] = {
            row["version"]: row["there"]
            for row in self._engine.rows(
                f"SELECT version, count() AS there FROM {SUMMARIES.name}"
                f" WHERE {self._where(account, granularity, builds)} GROUP BY version"
            )
        }
        return {start: build for start, build in builds.items() if counted.get(build.version, 0) == build.rows}

    @staticmethod
    def _where(account: str, granularity: Granularity, builds: Mapping[int, Build]) -> str:
        versions = sorted({build.version for build in builds.values()})
        return (
            f"account = {literal(account)} AND granularity = {literal(granularity)} AND start >= {moment(min(builds))}"
            f" AND start <= {moment(max(builds))} AND version IN ({numbers(versions)})"
        )

    def _read(
        self, account: str, granularity: Granularity, builds: Mapping[int, Build], asked: _Asked
    ) -> tuple[list[CostSums], int]:
        """Sums over builds, and of how many rows."""
        zoned = times_of(asked.zone, min(builds), max(builds) + HOUR)
        times = {name: sql.replace("hour", "start") for name, sql in zoned.items()}
        keys = [f"k{number}" for number in range(len(asked.group_by))]
        chosen, group = grouped_by([times.get(name, name) for name in asked.group_by])
        rows = list(
            self._engine.rows(
                f"SELECT {chosen}count() AS there, {sums_of(asked.measures)} FROM {SUMMARIES.name}"
                f" WHERE {self._where(account, granularity, builds)}{filtered(asked.filters)}{group}"
            )
        )
        sums = [CostSums.read([row[key] for key in keys], row) for row in rows]
        return by_period(sums, asked.group_by, asked.zone), sum(row["there"] for row in rows)


def _number(ratio: float | None) -> float:
    """As a column holds it: unknown is no number."""
    return math.nan if ratio is None else ratio


class _Asked(Struct, frozen=True):
    group_by: Sequence[str]
    filters: Filters
    measures: Sequence[str]
    zone: Zone


class Answer(Struct, frozen=True):
    """Sums, and the committed hours that they are of."""

    committed: CommittedHours
    sums: tuple[CostSums, ...]
