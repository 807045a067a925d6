"""What keeps the store small: retention by month, and sweeping of what nobody reads."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from metroculus.storage.columns import (
    ACCOUNTED,
    ALLOCATIONS,
    ASSET_DAYS,
    ASSETS,
    EXTRACTIONS,
    PARTITIONED,
    SUMMARIES,
    SUMMARY_BUILDS,
    Table,
)
from metroculus.storage.documents import Documents
from metroculus.storage.engine import Engine, alter, literal, partitions
from metroculus.storage.inbox import Inbox
from metroculus.storage.jobs import KEPT_SECONDS, Jobs
from metroculus.storage.ledger import COUNTER_BITS, Ledger
from tools.window import DAY, iso
from tools.zones import UTC_ZONE

ORPHANED_AFTER_SECONDS = DAY
"""A batch or a version that is this old and that nobody reads is swept."""

NAMED_AT_ONCE = 5_000


class Cleaned(Struct, frozen=True):
    """Months that were dropped (as ``YYYYMM``), and batches and versions that were swept."""

    months: tuple[int, ...]
    batches: int
    broken: int = 0
    """Batches of which rows are missing; they are passed over, and their hours are read from the ones before."""


_NO_VERDICT = "toUInt8(1) AS verified, toUInt32(0) AS checked_at"


class _Batched(Struct, frozen=True):
    """A table whose rows belong to batches, and the one whose rows commit them."""

    rows: str
    marks: str
    period: str
    """The column of the time that a batch is of; the partitions are its months."""
    batch: str = "batch"
    within: str = ""
    """A column that tells apart batches of the same time."""
    verdict: str = _NO_VERDICT
    """What its marks say of whether all rows were there, and when they were counted; by default that they were."""

    @property
    def key(self) -> str:
        return ", ".join(filter(None, ("account", self.period, self.within)))


HOURS = _Batched(ALLOCATIONS.name, EXTRACTIONS.name, "hour", verdict="verified, checked_at")
BATCHED = (
    HOURS,
    _Batched(ASSETS.name, ASSET_DAYS.name, "day"),
    _Batched(SUMMARIES.name, SUMMARY_BUILDS.name, "start", "version", "granularity"),
)


class Maintenance:
    """Cleans a store; every question is one for all accounts, a partition at a time."""

    def __init__(self, engine: Engine, ledger: Ledger, jobs: Jobs, inbox: Inbox, documents: Documents) -> None:
        self._engine = engine
        self._documents = documents
        self._inbox = inbox
        self._jobs = jobs
        self._ledger = ledger

    def clean(self, now: int, keep_days: int) -> Cleaned:
        """Drop the months that lie wholly before ``keep_days`` ago, forget old back-fills, and sweep.

        Raises:
            StoreError
        """
        oldest = UTC_ZONE.period(now - keep_days * DAY, "month")[0]
        first_kept = _month(oldest)
        dropped: set[int] = set()
        for table in _marks_first(PARTITIONED):
            for month in partitions(self._engine, table.name):
                if month < first_kept:
                    self._delete(table.name, f"DROP PARTITION {month}")
                    dropped.add(month)
        self._jobs.forget(now - KEPT_SECONDS)
        self._forget_documents(now - keep_days * DAY)
        self._inbox.sweep(now)
        broken = self._verify()
        swept = sum(self._sweep(now, one, month) for one in BATCHED for month in partitions(self._engine, one.rows))
        self._ledger.forget()
        return Cleaned(tuple(sorted(dropped)), swept, broken)

    def _forget_documents(self, before: int) -> None:
        """Old versions of alerts and accounts, and alerts that have been over for so long."""
        alerts = self._documents.of_all(("alert",))
        over = [
            (one.organization, one.name)
            for one in alerts
            if one.changed_at < before and msgspec.json.decode(one.body)["state"] == "resolved"
        ]
        self._documents.forget(before, over)

    def purge(self, account: str) -> None:
        """Delete all that is stored of an account.

        Raises:
            StoreError
        """
        with self._ledger.versions.changing(account):
            for table in _marks_first(ACCOUNTED):
                self._delete(table.name, f"DELETE WHERE account = {literal(account)}")

    def _delete(self, table: str, what: str) -> None:
        """Delete rows, and forget what was read before, even if the statement fails: it may have taken effect."""
        try:
            alter(self._engine, table, what)
        finally:
            self._ledger.forget()

    def _verify(self) -> int:
        """Write down which batches have lost rows, or have them again; how many are not whole."""
        changed: set[str] = set()
        broken = 0
        for month in partitions(self._engine, EXTRACTIONS.name):
            # The oldest servers forget a column that stands in a lambda alone: it is selected, too.
            rows = self._engine.rows(
                "SELECT account, whole, arrayCount((s, marked) -> marked = 1 AND s > whole, sequences, marks) AS lost,"
                " arrayExists((s, marked, v) -> marked = 1 AND s > whole AND v = 1, sequences, marks, told)"
                " OR arrayExists((s, v) -> s = whole AND v = 0, sequences, told) AS news"
                f" FROM ({_judged(HOURS, month)}) WHERE lost > 0 OR news"
            )
            for row in rows:
                broken += int(row["lost"])
                if row["news"]:
                    changed.add(str(row["account"]))
        for account in sorted(changed):
            self._ledger.verify(account)
        return broken

    def _sweep(self, now: int, one: _Batched, month: int) -> int:
        """Remove the rows of what is old and not read; how many batches or versions went."""
        old = (now - ORPHANED_AFTER_SECONDS) << COUNTER_BITS
        dead = [
            (str(row["account"]), int(row["dead"]))
            for row in self._engine.rows(
                "SELECT account, whole, arrayJoin(arrayFilter((b, s, n, marked) ->"
                f" n > 0 AND b < {old} AND (s < whole OR marked = 0), batches, sequences, there, marks)) AS dead"
                f" FROM ({_judged(one, month)})"
            )
        ]
        for first in range(0, len(dead), NAMED_AT_ONCE):
            named = ", ".join(
                f"({literal(account)}, {batch})" for account, batch in dead[first : first + NAMED_AT_ONCE]
            )
            here = f"toYYYYMM({one.period}) = {month} AND (account, {one.batch}) IN ({named})"
            self._delete(one.rows, f"DELETE WHERE {here}")
        return len(dead)

    def share_of_volume(self) -> float | None:
        """How much of the fullest volume that the store is on is taken, by whatever; None where it is not told."""
        rows = self._engine.rows("SELECT free_space AS free, total_space AS total FROM system.disks")
        shares = [1 - int(row["free"]) / int(row["total"]) for row in rows if 0 < int(row["total"]) < 1 << 60]
        return max(shares, default=None)

    def bytes_on_disk(self) -> int:
        """Size of the store as this server holds it."""
        rows = list(
            self._engine.rows(
                "SELECT sum(bytes_on_disk) AS size FROM system.parts WHERE active = 1 AND database = currentDatabase()"
            )
        )
        return int(rows[0]["size"] or 0)


def _marks_first(tables: Sequence[Table]) -> list[Table]:
    """Tables of markers, then tables of rows: rows without a marker are never read."""
    marks = {one.marks for one in BATCHED}
    return sorted(tables, key=lambda table: table.name not in marks)


def _judged(one: _Batched, month: int) -> str:
    """SQL of one row a committed thing of a month: its batches with their sequences and rows, and the last whole one's.

    ``whole`` is the highest sequence of a batch of which every row is there: what is read. Lower ones are superseded,
    higher ones have lost rows, and a batch without a mark was never committed.
    """
    here = f"toYYYYMM({one.period}) = {month}"
    batches = (
        f"SELECT {one.key}, id, max(sequence) AS s, max(wanted) AS w, sum(there) AS n, max(marked) AS m,"
        " argMax(verified, checked_at) AS v FROM ("
        f"SELECT {one.key}, {one.batch} AS id, sequence, toUInt64(rows) AS wanted, toUInt64(0) AS there,"
        f" toUInt8(1) AS marked, {one.verdict} FROM {one.marks} WHERE {here}"
        f" UNION ALL SELECT {one.key}, {one.batch} AS id, toUInt64(0) AS sequence, toUInt64(0) AS wanted,"
        f" toUInt64(count()) AS there, toUInt8(0) AS marked, {_NO_VERDICT} FROM {one.rows} WHERE {here}"
        f" GROUP BY {one.key}, {one.batch}) GROUP BY {one.key}, id"
    )
    return (
        f"SELECT {one.key}, maxIf(s, m = 1 AND w = n) AS whole, groupArray(id) AS batches, groupArray(s) AS sequences,"
        f" groupArray(n) AS there, groupArray(m) AS marks, groupArray(v) AS told FROM ({batches}) GROUP BY {one.key}"
    )


def _month(stamp: int) -> int:
    return int(iso(stamp)[:7].replace("-", ""))
