"""Days whose hours follow the source's own set of the day, and what of it they could not follow."""

from __future__ import annotations

from collections.abc import Mapping

from metroculus.storage.columns import DAY_RESIDUALS
from metroculus.storage.engine import Engine, literal, moment

Residuals = Mapping[tuple[str, str], float]
"""USD that the day says beyond its hours, by owner and component."""

_DAY = ("", "")
"""Owner and component of the row that says that a day was followed, whatever it left."""


class FollowedDays:
    """The last time that the hours of each day were held against it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, account: str, day: int, residuals: Residuals, sequence: int, fetched_at: int) -> None:
        """Say that the hours of a day follow it, but for these residuals.

        Raises:
            StoreError
        """
        rows = [
            (account, day, sequence, owner, component, usd, fetched_at)
            for (owner, component), usd in ({_DAY: 0.0} | dict(residuals)).items()
        ]
        self._engine.insert(DAY_RESIDUALS.name, DAY_RESIDUALS.names, rows)

    def of(self, account: str, start: int, end: int) -> dict[int, Residuals]:
        """The residuals of each followed day that begins in ``[start, end)``.

        Raises:
            StoreError
        """
        rows = self._engine.rows(
            f"SELECT toUInt32(day) AS d, sequence, owner, component, usd FROM {DAY_RESIDUALS.name}"
            f" WHERE account = {literal(account)} AND day >= {moment(start)} AND day < {moment(end)}"
        )
        newest: dict[int, int] = {}
        found: dict[int, dict[tuple[str, str], float]] = {}
        for row in rows:
            day, sequence = int(row["d"]), int(row["sequence"])
            if sequence > newest.get(day, -1):
                newest[day], found[day] = sequence, {}
            if sequence == newest[day] and (row["owner"], row["component"]) != _DAY:
                found[day][(row["owner"], row["component"])] = row["usd"]
        return dict(found)
