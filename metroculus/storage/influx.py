"""What an InfluxDB has been told: by hour and day the batch that it was of, and the series that it was written as."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from metroculus.storage.columns import ASSET_DAYS, EXTRACTIONS, INFLUX_SENT
from metroculus.storage.engine import Engine, literal, moment

HOURS, DAYS = "cost_allocations", "asset_costs"
_COMMITTED = {HOURS: (EXTRACTIONS.name, "hour"), DAYS: (ASSET_DAYS.name, "day")}
"""By measurement, the table whose rows commit its batches, and the column of their time."""
UNSURE, GONE = 0, 1
"""Instead of a batch: what was sent may or may not be there; it was written as 0, for its account was purged."""


class SentTime(Struct, frozen=True):
    """One hour or day as it was sent last; ``version`` is 0 where it never was."""

    start: int
    batch: int = 0
    version: int = 0
    series: tuple[str, ...] = ()


class InfluxSent:
    """The outbox: what is committed under another batch than was sent is owed, and so is what is no more."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def changes(self, measurement: str) -> dict[str, tuple[int, int]]:
        """By account, numbers that change whenever something of it may be owed.

        Raises:
            StoreError
        """
        table, _ = _COMMITTED[measurement]
        newest = {
            str(row["account"]): int(row["newest"])
            for row in self._engine.rows(f"SELECT account, max(sequence) AS newest FROM {table} GROUP BY account")
        }
        noted = {
            str(row["account"]): int(row["noted"])
            for row in self._engine.rows(
                f"SELECT account, count() AS noted FROM {INFLUX_SENT.name}"
                f" WHERE measurement = {literal(measurement)} GROUP BY account"
            )
        }
        return {one: (newest.get(one, 0), noted.get(one, 0)) for one in sorted({*newest, *noted})}

    def owed(self, measurement: str, account: str) -> list[int]:
        """The hours or days whose newest batch is another than was sent, newest first.

        Raises:
            StoreError
        """
        table, column = _COMMITTED[measurement]
        of = f"account = {literal(account)}"
        newest = {
            int(row["start"]): int(row["newest"])
            for row in self._engine.rows(
                f"SELECT toUInt32({column}) AS start, argMax(batch, sequence) AS newest FROM {table} WHERE {of}"
                " GROUP BY start"
            )
        }
        sent = {
            int(row["stamp"]): int(row["last"])
            for row in self._engine.rows(
                f"SELECT toUInt32(start) AS stamp, argMax(batch, version) AS last FROM {INFLUX_SENT.name}"
                f" WHERE {of} AND measurement = {literal(measurement)} GROUP BY stamp"
            )
        }
        owed = {start for start, batch in newest.items() if sent.get(start) != batch}
        if not newest:  # purged: months that are older than is kept go on both sides at once
            owed = {start for start, batch in sent.items() if batch != GONE}
        return sorted(owed, reverse=True)

    def is_purged(self, measurement: str, account: str) -> bool:
        """Whether nothing is committed of an account of which something was sent.

        Raises:
            StoreError
        """
        table, _ = _COMMITTED[measurement]
        rows = list(self._engine.rows(f"SELECT count() AS there FROM {table} WHERE account = {literal(account)}"))
        return not int(rows[0]["there"])

    def last(self, measurement: str, account: str, starts: Sequence[int]) -> dict[int, SentTime]:
        """What was sent last of some hours or days; also of those that never were.

        Raises:
            StoreError
        """
        found = {start: SentTime(start) for start in starts}
        named = ", ".join(map(moment, starts))
        for row in self._engine.rows(
            f"SELECT toUInt32(start) AS stamp, version, batch, series FROM {INFLUX_SENT.name}"
            f" WHERE account = {literal(account)} AND measurement = {literal(measurement)} AND start IN ({named})"
        ):
            start, text = int(row["stamp"]), str(row["series"])
            if int(row["version"]) > found[start].version:
                series = tuple(text.split("\n")) if text else ()
                found[start] = SentTime(start, int(row["batch"]), int(row["version"]), series)
        return found

    def note(self, measurement: str, account: str, sent: Sequence[SentTime], now: int) -> None:
        """That hours or days were sent, whole, under the next versions.

        Raises:
            StoreError
        """
        rows = [(account, measurement, one.start, one.version, one.batch, now, "\n".join(one.series)) for one in sent]
        self._engine.insert(INFLUX_SENT.name, INFLUX_SENT.names, rows)
