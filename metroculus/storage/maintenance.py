"""What keeps the store small: retention by month, and sweeping of what nobody reads."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from metroculus.storage.assets import AssetDays
from metroculus.storage.columns import ALLOCATIONS, ASSETS, PARTITIONED, SUMMARIES
from metroculus.storage.engine import Engine, literal, numbers
from metroculus.storage.jobs import KEPT_SECONDS, Jobs
from metroculus.storage.ledger import COUNTER_BITS, Ledger
from metroculus.storage.summaries import Summaries
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


class Maintenance:
    def __init__(self, engine: Engine, ledger: Ledger, assets: AssetDays, summaries: Summaries, jobs: Jobs) -> None:
        self._engine = engine
        self._jobs = jobs
        self._ledger = ledger
        self._read_of: tuple[tuple[str, str, Callable[[str], set[int]]], ...] = (
            (ALLOCATIONS.name, "batch", ledger.batches),
            (ASSETS.name, "batch", assets.batches),
            (SUMMARIES.name, "version", summaries.versions),
        )

    def clean(self, now: int, keep_days: int) -> Cleaned:
        """Drop the months that lie wholly before ``keep_days`` ago, forget old back-fills, and sweep.

        Raises:
            StoreError
        """
        oldest = UTC_ZONE.period(now - keep_days * DAY, "month")[0]
        first_kept = _month(oldest)
        dropped: set[int] = set()
        for table in PARTITIONED:
            for month in self._months(table.name):
                if month < first_kept:
                    target = self._engine.dialect.altered(table.name)
                    self._engine.command(f"ALTER TABLE {target} DROP PARTITION {month}")
                    dropped.add(month)
        self._jobs.forget(now - KEPT_SECONDS)
        broken = sum(self._ledger.verify(account) for account in self._ledger.accounts())
        return Cleaned(tuple(sorted(dropped)), sum(self._sweep(now, *one) for one in self._read_of), broken)

    def _sweep(self, now: int, table: str, column: str, read_of: Callable[[str], set[int]]) -> int:
        """Remove the rows of what is old and not read; how many batches or versions went."""
        old = (now - ORPHANED_AFTER_SECONDS) << COUNTER_BITS
        gone = 0
        accounts = sorted(str(row["account"]) for row in self._engine.rows(f"SELECT DISTINCT account FROM {table}"))
        for account in accounts:
            where = f"account = {literal(account)}"
            there = self._engine.rows(f"SELECT DISTINCT {column} FROM {table} WHERE {where} AND {column} < {old}")
            stored = [int(row[column]) for row in there]
            read = read_of(account)
            dead = [one for one in stored if one not in read]
            for first in range(0, len(dead), NAMED_AT_ONCE):
                part = numbers(dead[first : first + NAMED_AT_ONCE])
                self._engine.command(
                    f"ALTER TABLE {self._engine.dialect.altered(table)} DELETE WHERE {where} AND {column} IN ({part})"
                )
            gone += len(dead)
        return gone

    def _months(self, table: str) -> list[int]:
        name = f"{table}_local" if self._engine.dialect.cluster else table
        rows = self._engine.rows(
            "SELECT DISTINCT partition FROM system.parts WHERE active = 1 AND database = currentDatabase()"
            f" AND table = {literal(name)}"
        )
        return sorted(int(row["partition"]) for row in rows)

    def bytes_on_disk(self) -> int:
        """Size of the store as this server holds it."""
        rows = list(
            self._engine.rows(
                "SELECT sum(bytes_on_disk) AS size FROM system.parts WHERE active = 1 AND database = currentDatabase()"
            )
        )
        return int(rows[0]["size"] or 0)


def _month(stamp: int) -> int:
    return int(iso(stamp)[:7].replace("-", ""))
