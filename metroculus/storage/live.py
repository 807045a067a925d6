"""What clusters cost an hour, minute by minute: kept for two days, and never a part of any sum of costs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import asdict, astuple, replace

from metroculus.cost_model.live import ClusterRate, LivePoint, NamespaceRate
from metroculus.storage.columns import LIVE
from metroculus.storage.engine import Engine, StoreError, alter, literal, moment, partitions
from metroculus.storage.group_commit import FailedTogether, GroupCommit
from tools.window import DAY, iso

KEPT_SECONDS = 2 * DAY

_RATES = NamespaceRate.__struct_fields__
_NOTHING = NamespaceRate("")
_Row = tuple[Any, ...]


_ENCODER = msgspec.json.Encoder()
_CLUSTER = msgspec.json.Decoder(ClusterRate)


class LivePoints:
    """One row a minute, account and namespace, and one with the sums, whose ``point`` is not empty.

    Of two of one minute the one that was written last is read.
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
        rows: list[_Row] = []
        for one in points:
            header = _ENCODER.encode(msgspec.convert(one, ClusterRate, from_attributes=True)).decode()
            rows.append((account, one.at, now, header, *astuple(replace(one.sums, namespace=""))))
            rows += [(account, one.at, now, "", *astuple(row)) for row in one.namespaces]
        try:
            self._group.commit(rows)
        except FailedTogether as failure:
            raise StoreError(str(failure)) from failure

    def _insert(self, groups: Sequence[Sequence[_Row]]) -> None:
        self._engine.insert(LIVE.name, LIVE.names, [row for rows in groups for row in rows])

    def of(self, account: str, start: int, end: int, namespace: str | None = None) -> list[LivePoint]:
        """The points of ``[start, end]``, in order, with one namespace of each or none.

        Raises:
            StoreError
        """
        names = ("",) if namespace is None else ("", namespace)
        named = f" AND namespace IN ({', '.join(map(literal, names))})"
        return self._points(f"{_between(account, start, end)}{named}", namespace)

    def at(self, account: str, stamp: int) -> LivePoint | None:
        """One point with all of its namespaces.

        Raises:
            StoreError
        """
        return next(iter(self._points(_between(account, stamp, stamp), None, every=True)), None)

    def _points(self, where: str, namespace: str | None, every: bool = False) -> list[LivePoint]:
        headers: dict[int, tuple[int, str, NamespaceRate]] = {}
        namespaces: dict[tuple[int, int], dict[str, NamespaceRate]] = defaultdict(dict)
        columns = ", ".join(("toUInt32(at) AS stamp", "told_at", "point", *_RATES))
        for row in self._engine.rows(f"SELECT {columns} FROM {LIVE.name} WHERE {where}"):
            stamp, told_at, point = int(row["stamp"]), int(row["told_at"]), str(row["point"])
            rates = NamespaceRate(str(row["namespace"]), *(float(row[name]) for name in _RATES[1:]))
            if point:
                headers[stamp] = max((told_at, point, rates), headers.get(stamp, (0, "", _NOTHING)), key=_told)
            elif every or rates.namespace == namespace:
                namespaces[stamp, told_at][rates.namespace] = rates
        try:
            return [
                LivePoint(
                    at=stamp, sums=sums, namespaces=tuple(one for _, one in sorted(namespaces[stamp, told_at].items())),
                    **asdict(_CLUSTER.decode(body)),
                )
                for stamp, (told_at, body, sums) in sorted(headers.items())
            ]  # fmt: skip
        except msgspec.DecodeError as problem:  # of another program
            raise StoreError(f"stored rates cannot be read: {problem}") from None

    def sweep(self, now: int) -> None:
        """Drop the days that lie wholly before what is kept.

        Raises:
            StoreError
        """
        first = int(iso(now - KEPT_SECONDS)[:10].replace("-", ""))
        for day in partitions(self._engine, LIVE.name):
            if day < first:
                alter(self._engine, LIVE.name, f"DROP PARTITION {day}")


def _told(header: tuple[int, str, NamespaceRate]) -> int:
    return header[0]


def _between(account: str, start: int, end: int) -> str:
    return f"account = {literal(account)} AND at >= {moment(start)} AND at <= {moment(end)}"
