"""What keeps the store small: retention by month, and sweeping of what nobody reads."""

from __future__ import annotations

from msgspec import Struct

from metroculus.storage.engine import Engine, literal
from metroculus.storage.ledger import Ledger
from metroculus.storage.schema import PARTITIONED
from metroculus.storage.summaries import period_of
from tools.window import DAY, iso


class Cleaned(Struct, frozen=True):
    """Months that were dropped (as ``YYYYMM``), and batches that were swept."""

    months: tuple[int, ...]
    batches: int


class Maintenance:
    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self._engine = engine
        self._ledger = ledger

    def clean(self, now: int, keep_days: int) -> Cleaned:
        """Drop the months that lie wholly before ``keep_days`` ago, and sweep.

        Raises:
            StoreError
        """
        oldest = period_of(now - keep_days * DAY, "month")[0]
        first_kept = _month(oldest)
        dropped: set[int] = set()
        for table in PARTITIONED:
            for month in self._months(table.name):
                if month < first_kept:
                    target = self._target(table.name)
                    self._engine.command(f"ALTER TABLE {target} DROP PARTITION {month}")
                    dropped.add(month)
        return Cleaned(tuple(sorted(dropped)), self._ledger.sweep(now))

    def _target(self, table: str) -> str:
        cluster = self._engine.dialect.cluster
        return f"{table}_local ON CLUSTER {cluster}" if cluster else table

    def _months(self, table: str) -> list[int]:
        name = f"{table}_local" if self._engine.dialect.cluster else table
        rows = self._engine.query(
            "SELECT DISTINCT partition FROM system.parts WHERE active = 1 AND database = currentDatabase()"
            f" AND table = {literal(name)}"
        )
        return sorted(int(row[0]) for row in rows)

    def bytes_on_disk(self) -> int:
        """Size of the store as this server holds it."""
        rows = list(
            self._engine.query(
                "SELECT sum(bytes_on_disk) FROM system.parts WHERE active = 1 AND database = currentDatabase()"
            )
        )
        return int(rows[0][0] or 0)


def _month(stamp: int) -> int:
    return int(iso(stamp)[:7].replace("-", ""))
