"""Sums of hours, days and months by namespace, rebuilt from committed batches and never counted up.

A summary says of which batches it was built. It answers only while those are still the ones that are read, so that it
can be late but never wrong: what is not summarised is summed from the rows.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from metroculus.cost_model.allocation import Filters, Group
from metroculus.cost_model.columns import unknown_usage
from metroculus.storage.columns import ALLOCATIONS, COST_COLUMNS, MEASURE_COLUMNS, SUMMARIES, SUMMARY_BUILDS
from metroculus.storage.engine import Engine, literal, moment
from metroculus.storage.history import (
    IDLE_ROWS,
    SUM,
    TIMES,
    CostSums,
    History,
    by_key,
    by_period,
    filtered,
    grouped_by,
    grouping,
    own_numbers,
    sums_in,
    sums_of,
    times_of,
    where_committed,
)
from metroculus.storage.ledger import CommittedHours, FencedWriter, Ledger, Marker, built_from, of_accounts
from tools.window import DAY, HOUR
from tools.zones import UTC_ZONE, Zone

log = logging.getLogger("summaries")

Granularity = Literal["hour", "day", "month"]
GRANULARITIES: tuple[Granularity, ...] = ("month", "day", "hour")
SUMMARISED = frozenset({"namespace", IDLE_ROWS, "hour", "day", "month"})
"""What may be grouped by without reading rows."""

PERIODS_A_QUERY = 48
STARTS_NAMED = 50
"""More periods than these are asked for as a stretch."""


Period = tuple[str, int]
"""An account, and the first second of an hour, day or month of UTC."""


class Build(Struct, frozen=True):
    """One summary that was made."""

    version: int
    sequence: int
    rows: int
    built_from: int


def markers_by_period(hours: Iterable[Marker], granularity: Granularity) -> dict[int, list[Marker]]:
    """Markers by the period that they belong to."""
    by_day: dict[int, list[Marker]] = {}
    step = HOUR if granularity == "hour" else DAY
    for marker in hours:
        by_day.setdefault(marker.hour - marker.hour % step, []).append(marker)
    if granularity != "month":
        return by_day
    months: dict[int, list[Marker]] = {}
    for day, markers in by_day.items():
        months.setdefault(UTC_ZONE.period(day, "month")[0], []).extend(markers)
    return months


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
            known = self._builds([account], granularity, _starting_at(wanted)) if wanted else {}
            stale = [
                start
                for start, built in wanted.items()
                if (account, start) not in known or known[account, start].built_from != built
            ]
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

    def _builds(self, accounts: Sequence[str], granularity: Granularity, starting: str) -> dict[Period, Build]:
        """The newest build of each period that a condition of its start lets through."""
        found: dict[Period, Build] = {}
        for row in self._engine.rows(
            f"SELECT account, toUInt32(start) AS stamp, version, sequence, rows, built_from FROM {SUMMARY_BUILDS.name}"
            f" WHERE {of_accounts(accounts)} AND granularity = {literal(granularity)}"
            f" AND {starting}"
        ):
            period = (str(row.pop("account")), int(row.pop("stamp")))
            build = Build(**row)
            if period not in found or build.sequence > found[period].sequence:
                found[period] = build
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
        committed: CommittedHours | None = None,
    ) -> Answer:
        """Sums of the committed hours in ``[start, end)``: from summaries where they are good, else from rows.

        Days and months are those of ``zone``; of another than UTC they are sums of summarised hours.

        Args:
            committed: the hours of just this stretch, where they were read already.

        Raises:
            StoreError
        """
        known = {account: committed} if committed is not None else None
        return self.sums_by_account([account], start, end, group_by, filters, measures, zone, known)[account]

    def sums_by_account(
        self,
        accounts: Sequence[str],
        start: int,
        end: int,
        group_by: Sequence[str],
        filters: Filters,
        measures: Sequence[str] = COST_COLUMNS,
        zone: Zone = UTC_ZONE,
        known: Mapping[str, CommittedHours] | None = None,
    ) -> dict[str, Answer]:
        """``sums`` of several accounts, with as many questions as of one.

        Raises:
            StoreError
        """
        if not accounts:
            return {}
        if not SUMMARISED.issuperset(group_by) or filters.nodes or filters.services or filters.properties:
            committed_of = known if known is not None else self._ledger.committed_of(accounts, start, end)
            summed = self._history.sums_by_account(list(committed_of.values()), group_by, filters, measures, zone)
            return {account: Answer(one, tuple(summed.get(account, ()))) for account, one in committed_of.items()}
        asked = _Asked(group_by, filters, measures, zone)
        if known is not None:
            newest_of = {account: dict(one.hours) for account, one in known.items()}
        else:
            newest_of = self._ledger.newest_of(accounts, start, end)
        left = {account: dict(newest) for account, newest in newest_of.items() if newest}
        parts: dict[str, list[CostSums]] = {account: [] for account in accounts}
        for granularity in self._usable(group_by, zone):
            periods = {
                (account, first): markers
                for account, hours in left.items()
                for first, markers in markers_by_period(hours.values(), granularity).items()
                if first >= start and UTC_ZONE.period(first, granularity)[1] <= end
            }
            good, found = self._whole(granularity, self._fitting(granularity, periods), asked)
            for account, summed_rows in found.items():
                parts[account] += summed_rows
            for account, first in good:
                for marker in periods[account, first]:
                    del left[account][marker.hour]
            left = {account: hours for account, hours in left.items() if hours}
        rest = self._counted_hours(left, known) if left else {}
        for account, counted in rest.items():
            summed_up = {hour: one for hour, one in newest_of[account].items() if hour not in left[account]}
            newest_of[account] = {**summed_up, **counted.hours}
        if rest:
            summed = self._history.sums_by_account(list(rest.values()), group_by, filters, measures, zone)
            for account, summed_rows in summed.items():
                parts[account] += summed_rows
        passed = {account: counted.passed_over for account, counted in rest.items()}
        return {
            account: Answer(
                CommittedHours(account, start, end, dict(sorted(newest.items())), passed.get(account, ())),
                tuple(by_key(parts[account])),
            )
            for account, newest in newest_of.items()
        }

    def _counted_hours(
        self, left: Mapping[str, Mapping[int, Marker]], known: Mapping[str, CommittedHours] | None
    ) -> dict[str, CommittedHours]:
        """The hours that no summary answers for, by account, with their rows counted."""
        first, last = (edge(edge(hours) for hours in left.values()) for edge in (min, max))
        counted_of = known if known is not None else self._ledger.committed_of(list(left), first, last + HOUR)
        found = {}
        for account, hours in left.items():
            counted = counted_of[account]
            passed = tuple(marker for marker in counted.passed_over if marker.hour in hours)
            whole = {hour: marker for hour, marker in counted.hours.items() if hour in hours}
            found[account] = CommittedHours(account, counted.start, counted.end, whole, passed)
        return found

    @staticmethod
    def _usable(group_by: Sequence[str], zone: Zone) -> Sequence[Granularity]:
        """Summaries that are fine enough, coarse ones first."""
        if "hour" in group_by or (not zone.is_utc and not {"day", "month"}.isdisjoint(group_by)):
            return ("hour",)
        return ("day", "hour") if "day" in group_by else GRANULARITIES

    def _fitting(self, granularity: Granularity, periods: Mapping[Period, list[Marker]]) -> dict[Period, Build]:
        """The builds of these periods that are made of just these batches."""
        if not periods:
            return {}
        builds = self._builds(_accounts_of(periods), granularity, _starting_at([start for _, start in periods]))
        return {
            period: build
            for period, build in builds.items()
            if period in periods and build.built_from == built_from(periods[period])
        }

    def _whole(
        self, granularity: Granularity, builds: Mapping[Period, Build], asked: _Asked
    ) -> tuple[dict[Period, Build], dict[str, list[CostSums]]]:
        """The builds whose rows are all there, and what they say; where all rows are read they are counted with it."""
        good: dict[Period, Build] = {}
        sums: dict[str, list[CostSums]] = {}
        if builds and not asked.filters.any:
            expected: Counter[str] = Counter()
            for (account, _), build in builds.items():
                expected[account] += build.rows
            for account, (found, rows) in self._read(granularity, builds, asked).items():
                if rows == expected[account]:
                    sums[account] = found
            # An account whose summaries have no rows is not among those read: they are whole without any.
            good = {p: build for p, build in builds.items() if p[0] in sums or not expected[p[0]]}
        unsure = {period: build for period, build in builds.items() if period not in good}
        counted = self._counted(granularity, unsure) if unsure else {}
        if counted:
            sums |= {account: found for account, (found, _) in self._read(granularity, counted, asked).items()}
        return good | counted, sums

    def _counted(self, granularity: Granularity, builds: Mapping[Period, Build]) -> dict[Period, Build]:
        counted: dict[tuple[str, int], int] = {
            (row["account"], row["version"]): row["there"]
            for row in self._engine.rows(
                f"SELECT account, version, count() AS there FROM {SUMMARIES.name}"
                f" WHERE {self._where(granularity, builds)} GROUP BY account, version"
            )
        }
        return {p: build for p, build in builds.items() if counted.get((p[0], build.version), 0) == build.rows}

    @staticmethod
    def _where(granularity: Granularity, builds: Mapping[Period, Build]) -> str:
        """The condition that lets through the rows of some builds."""
        versions: dict[str, list[int]] = {}
        for (account, _), build in builds.items():
            versions.setdefault(account, []).append(build.version)
        accounts = list(versions)
        return (
            f"{of_accounts(accounts)} AND granularity = {literal(granularity)}"
            f" AND {_starting_at([start for _, start in builds])}"
            f" AND {own_numbers('version', list(versions.values()), accounts)}"
        )

    def _read(
        self, granularity: Granularity, builds: Mapping[Period, Build], asked: _Asked
    ) -> dict[str, tuple[list[CostSums], int]]:
        """By account, sums over its builds and of how many rows; an account without rows is left out."""
        starts = [start for _, start in builds]
        zoned = times_of(asked.zone, min(starts), max(starts) + HOUR)
        times = {name: sql.replace("hour", "start") for name, sql in zoned.items()}
        keys = [f"k{number}" for number in range(len(asked.group_by))]
        chosen, group = grouped_by([times.get(name) or grouping(name) for name in asked.group_by])
        sums: dict[str, list[CostSums]] = {}
        counts: Counter[str] = Counter()
        answer = self._engine.columns(
            f"SELECT {chosen}count() AS there, {sums_of(asked.measures)} FROM {SUMMARIES.name}"
            f" WHERE {self._where(granularity, builds)}{filtered(asked.filters)}{group}"
        )
        there = answer["there"].tolist() if answer else ()
        for (account, one), rows in zip(sums_in(answer, keys), there, strict=True):
            sums.setdefault(account, []).append(one)
            counts[account] += rows
        return {
            account: (by_period(found, asked.group_by, asked.zone), counts[account]) for account, found in sums.items()
        }


def _starting_at(starts: Iterable[int]) -> str:
    """The condition that a period starts at one of these, or between the first and the last where they are many."""
    distinct = sorted(set(starts))
    if len(distinct) <= STARTS_NAMED:
        return f"start IN ({', '.join(map(moment, distinct))})"
    return f"start >= {moment(distinct[0])} AND start <= {moment(distinct[-1])}"


def _accounts_of(periods: Iterable[Period]) -> list[str]:
    return list(dict.fromkeys(account for account, _ in periods))


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
