"""Savings of each day: the usage that they follow from, so that a reader can apply its own target utilization."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from metroculus.cost_model.savings import FoundSavings
from metroculus.storage.columns import SAVINGS
from metroculus.storage.engine import Engine, StoreError, literal, moment
from metroculus.storage.ledger import FencedWriter
from metroculus.storage.versions import Versions

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(FoundSavings)


class SavingsDay(Struct, frozen=True):
    """What was found for the days until the end of one UTC day."""

    day: int
    fetched_at: int
    found: FoundSavings


class SavingsDays:
    """One row a day and account: there whole or not at all; the newest sequence is read."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.versions = Versions()

    def commit(self, account: str, day: int, found: FoundSavings, fetched_at: int, writer: FencedWriter) -> None:
        """Raises: StoreError"""
        row = (account, day, writer.sequence(), fetched_at, _ENCODER.encode(found).decode())
        with self.versions.changing(account):
            self._engine.insert(SAVINGS.name, SAVINGS.names, [row])

    def has(self, account: str, day: int) -> bool:
        """Raises: StoreError"""
        where = f"account = {literal(account)} AND day = {moment(day)}"
        rows = list(self._engine.rows(f"SELECT count() AS there FROM {SAVINGS.name} WHERE {where}"))
        return bool(rows[0]["there"])

    def newest(self, account: str, start: int, end: int) -> SavingsDay | None:
        """Of the days that begin in ``[start, end)``, the last one that is stored.

        Raises:
            StoreError
        """
        where = f"account = {literal(account)} AND day >= {moment(start)} AND day < {moment(end)}"
        # All of it, before it is read: an answer that is not taken to its end holds the engine.
        rows = list(
            self._engine.rows(
                f"SELECT toUInt32(day) AS stamp, fetched_at, found FROM {SAVINGS.name} WHERE {where}"
                " ORDER BY day DESC, sequence DESC LIMIT 1"
            )
        )
        if not rows:
            return None
        try:
            return SavingsDay(int(rows[0]["stamp"]), int(rows[0]["fetched_at"]), _DECODER.decode(rows[0]["found"]))
        except msgspec.DecodeError as problem:  # of another program: a newer one knows kinds that this does not
            raise StoreError(f"stored savings cannot be read: {problem}") from None
