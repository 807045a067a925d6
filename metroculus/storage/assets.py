"""Days of assets, under the batch rule of hours."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

import msgspec
from msgspec import Struct

from metroculus.cost_model.assets import Asset
from metroculus.storage.columns import ASSET_DAYS, ASSETS
from metroculus.storage.engine import Engine, literal, moment, numbers
from metroculus.storage.ledger import FencedWriter
from metroculus.storage.versions import Versions
from tools.window import DAY

END_OF_TIME = 2**32 - 1
"""DateTime ends in 2106."""

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Asset)


class AssetDay(Struct, frozen=True):
    """The newest committed day of assets."""

    day: int
    batch: int
    sequence: int
    rows: int
    total: float
    fetched_at: int


class AssetDays:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.versions = Versions()

    def commit(
        self, account: str, day: int, assets: Sequence[Asset], batch: int, fetched_at: int, writer: FencedWriter
    ) -> AssetDay:
        """Store what a cluster was made of on one UTC day.

        Raises:
            StoreError
        """
        rows = [
            (account, day, batch, asset.type, asset.name, asset.total_cost, _ENCODER.encode(asset).decode())
            for asset in assets
        ]
        self._engine.insert(ASSETS.name, ASSETS.names, rows)
        made = AssetDay(day, batch, writer.sequence(), len(rows), fsum(a.total_cost for a in assets), fetched_at)
        row = (account, day, batch, made.sequence, made.rows, made.total, fetched_at)
        with self.versions.changing(account):
            self._engine.insert(ASSET_DAYS.name, ASSET_DAYS.names, [row])
        return made

    def days(self, account: str, start: int, end: int) -> dict[int, AssetDay]:
        """The whole committed days in ``[start, end)``, each its newest batch whose rows are all there.

        Raises:
            StoreError
        """
        where = f"account = {literal(account)} AND day >= {moment(start)} AND day <= {moment(end - DAY)}"
        marks = [
            AssetDay(row.pop("stamp"), **row)
            for row in self._engine.rows(
                "SELECT toUInt32(day) AS stamp, batch, sequence, rows, total, fetched_at"
                f" FROM {ASSET_DAYS.name} WHERE {where}"
            )
        ]
        counts: dict[int, int] = {
            row["batch"]: row["there"]
            for row in self._engine.rows(
                f"SELECT batch, count() AS there FROM {ASSETS.name} WHERE {where} GROUP BY batch"
            )
        }
        found: dict[int, AssetDay] = {}
        for mark in sorted(marks, key=lambda one: one.sequence):
            if counts.get(mark.batch, 0) == mark.rows:
                found[mark.day] = mark
        return found

    def read(self, account: str, days: Sequence[AssetDay]) -> list[Asset]:
        """The assets of committed days, one entry a day and thing.

        Raises:
            StoreError
        """
        if not days:
            return []
        rows = self._engine.rows(
            f"SELECT asset FROM {ASSETS.name} WHERE account = {literal(account)}"
            f" AND day >= {moment(min(d.day for d in days))} AND day <= {moment(max(d.day for d in days))}"
            f" AND batch IN ({numbers([d.batch for d in days])}) ORDER BY day, total_cost DESC, name"
        )
        return [_DECODER.decode(row["asset"]) for row in rows]
