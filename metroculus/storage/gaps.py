"""Hours that were asked for and could not be had: known, said, and asked for again."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from metroculus.storage.columns import GAPS
from metroculus.storage.engine import Engine, literal, moment


class Gap(Struct, frozen=True):
    hour: int
    asked_at: int
    reason: str


NEVER = 2**32 - 1


class Gaps:
    """The last attempt at each hour; an hour that is stored since is no gap any more, whatever stands here."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, account: str, gaps: Sequence[Gap]) -> None:
        """Note attempts that failed.

        Raises:
            StoreError
        """
        rows = [(account, gap.hour, gap.asked_at, gap.reason[:500]) for gap in gaps]
        self._engine.insert(GAPS.name, GAPS.names, rows)

    def of(self, account: str, start: int, end: int, now: int = NEVER) -> dict[int, Gap]:
        """The last attempt at each hour of ``[start, end)``.

        Args:
            now: what is said to have been tried after that was said by a clock that was ahead, and counts for nothing.

        Raises:
            StoreError
        """
        rows = self._engine.rows(
            f"SELECT toUInt32(hour) AS h, max(asked_at) AS last, argMax(reason, asked_at) AS why FROM {GAPS.name}"
            f" WHERE account = {literal(account)} AND hour >= {moment(start)} AND hour < {moment(end)}"
            f" AND asked_at <= {now} GROUP BY h"
        )
        return {row["h"]: Gap(row["h"], row["last"], row["why"]) for row in rows}
