"""What clusters cost an hour, minute by minute: kept for two days, and never a part of any sum of costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from metroculus.cost_model.live import LivePoint, NamespaceRate
from metroculus.storage.columns import LIVE
from metroculus.storage.engine import Engine, StoreError, literal, moment, partitions
from metroculus.storage.group_commit import FailedTogether, GroupCommit
from tools.window import DAY, iso

KEPT_SECONDS = 2 * DAY

_ENCODER = msgspec.json.Encoder()
_POINT = msgspec.json.Decoder(LivePoint)
_NAMESPACES = msgspec.json.Decoder(tuple[NamespaceRate, ...])
_Row = tuple[str, int, int, str, str]


class LivePoints:
    """One row a minute and account; of two of one minute the one that was written last is read.

    What is of the cluster and what is of each namespace are columns of their own: a long series reads the first alone.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self._group = GroupCommit[Sequence[_Row]](self._insert)

    def commit(self, account: str, points: Sequence[LivePoint]) -> None:
        """Write points, with those of other clusters that are written now.

        Raises:
            StoreError
        """
        now = int(self._clock())
        rows = [
            (
                account, one.at, now, _ENCODER.encode(replace(one, namespaces=())).decode(),
                _ENCODER.encode(one.namespaces).decode(),
            )
            for one in points
        ]  # fmt: skip
        try:
            self._group.commit(rows)
        except FailedTogether as failure:
            raise StoreError(str(failure)) from failure

    def _insert(self, groups: Sequence[Sequence[_Row]]) -> None:
        self._engine.insert(LIVE.name, LIVE.names, [row for rows in groups for row in rows])

    def of(self, account: str, start: int, end: int, namespaces: bool = False) -> list[LivePoint]:
        """The points of ``[start, end]``, in order.

        Args:
            namespaces: whether to read what is of each namespace.

        Raises:
            StoreError
        """
        column = "namespaces" if namespaces else "'[]' AS namespaces"
        found: dict[int, tuple[int, str, str]] = {}
        for row in self._engine.rows(
            f"SELECT toUInt32(at) AS stamp, told_at, point, {column} FROM {LIVE.name}"
            f" WHERE {_between(account, start, end)}"
        ):
            stamp, told = int(row["stamp"]), (int(row["told_at"]), str(row["point"]), str(row["namespaces"]))
            found[stamp] = max(told, found.get(stamp, told))
        try:
            return [
                replace(_POINT.decode(point), namespaces=_NAMESPACES.decode(rows))
                for _, (_, point, rows) in sorted(found.items())
            ]
        except msgspec.DecodeError as problem:  # of another program
            raise StoreError(f"stored rates cannot be read: {problem}") from None

    def newest(self, account: str, start: int, end: int) -> int | None:
        """The last moment in ``[start, end]`` of which an account's rate is stored.

        Raises:
            StoreError
        """
        where = _between(account, start, end)
        rows = list(self._engine.rows(f"SELECT toUInt32(max(at)) AS newest FROM {LIVE.name} WHERE {where}"))
        return int(rows[0]["newest"]) or None

    def sweep(self, now: int) -> None:
        """Drop the days that lie wholly before what is kept.

        Raises:
            StoreError
        """
        first = int(iso(now - KEPT_SECONDS)[:10].replace("-", ""))
        target = self._engine.dialect.altered(LIVE.name)
        for day in partitions(self._engine, LIVE.name):
            if day < first:
                self._engine.command(f"ALTER TABLE {target} DROP PARTITION {day}")


def _between(account: str, start: int, end: int) -> str:
    return f"account = {literal(account)} AND at >= {moment(start)} AND at <= {moment(end)}"
