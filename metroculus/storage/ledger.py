"""The batch rule: an hour is written as a batch that nobody sees until one row commits it.

Rows go in under a fresh batch id, in blocks; then one marker with the batch, its count of rows and its sequence.
Readers take the newest marker of an hour whose count is what is really there, so that a crash half way shows nothing, a
repeat or a restatement replaces, two writers leave one winner, and nothing has to be cleaned up before it can be read.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from itertools import islice
from math import fsum
from operator import attrgetter
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import COMPONENTS, Allocation
from metroculus.storage.engine import Engine, literal, moment, numbers
from metroculus.storage.rows import BLOCK_ROWS, Line, NodeKind, lines_of
from metroculus.storage.schema import ALLOCATIONS, EXTRACTIONS
from metroculus.storage.versions import Versions
from tools.window import HOUR

log = logging.getLogger("ledger")

COUNTER_BITS = 32
_READ_COST = {name: attrgetter(name) for name in COMPONENTS}

BLOCKS_AT_ONCE = 2
COUNTED_KEPT = 100_000


class HourBatch(Struct, frozen=True, kw_only=True):
    """What is to be stored of one hour of one account.

    No allocations and no management is an hour that truly cost nothing, which is not the same as an hour without a
    batch. Money is USD.
    """

    account: str
    hour: int
    """Its first second, Unix, UTC."""
    allocations: Sequence[Allocation] = ()
    management: float | None = None
    """None where no source told it; it is then in ``unknown`` or ``not_covered``."""
    nodes: Mapping[str, NodeKind] = {}
    residual: float = 0.0
    """What the hour's control total has beyond the rows as they were read."""
    spread: float = 0.0
    """What the day's own set added to the rows."""
    reconciled: bool = True
    seconds: int = HOUR
    """Time of the hour that the source knew of."""
    quarantined: int = 0
    unknown: tuple[str, ...] = ()
    not_covered: tuple[str, ...] = ()
    fetched_at: int = 0
    digest: int = 0
    """Of what was read, to tell whether a later reading differs."""

    @property
    def rows(self) -> int:
        return len(self.allocations) + (self.management is not None)

    def sums(self) -> dict[str, float]:
        """USD by cost column, of the columns that have any."""
        costs: dict[str, float] = {}
        every = [a.costs for a in self.allocations]
        for name, read in _READ_COST.items():
            column = list(map(read, every))
            if any(column):
                costs[name] = fsum(column)
        return costs | ({"management": self.management} if self.management else {})


class Marker(Struct, frozen=True, gc=False):
    """One committed batch, as ``k8s_extractions`` holds it (its account apart)."""

    hour: int
    batch: int
    sequence: int
    rows: int
    total: float
    components: tuple[str, ...]
    """The cost columns that have any."""
    residual: float
    spread: float
    reconciled: bool
    seconds: int
    quarantined: int
    unknown: tuple[str, ...]
    not_covered: tuple[str, ...]
    fetched_at: int
    digest: int

    @property
    def fence(self) -> int:
        return self.sequence >> COUNTER_BITS


class Held(Struct, frozen=True):
    """The committed hours of an account in ``[start, end)``, by hour, and the markers that were passed over."""

    account: str
    start: int
    end: int
    hours: Mapping[int, Marker]
    passed_over: tuple[Marker, ...] = ()

    def missing(self) -> list[tuple[int, int]]:
        """The stretches of the window that are not stored, in order."""
        stretches: list[tuple[int, int]] = []
        stamp = self.start
        while stamp < self.end:
            edge = min(stamp - stamp % HOUR + HOUR, self.end)
            if stamp % HOUR or edge - stamp < HOUR or stamp not in self.hours:
                if stretches and stretches[-1][1] == stamp:
                    stretches[-1] = (stretches[-1][0], edge)
                else:
                    stretches.append((stamp, edge))
            stamp = edge
        return stretches


def choose(markers: Iterable[Marker], counts: Mapping[int, int]) -> tuple[dict[int, Marker], tuple[Marker, ...]]:
    """The winner of each hour, and the newer ones that were passed over because rows of theirs are missing.

    Args:
        counts: rows that are really there, by batch.
    """
    winners: dict[int, Marker] = {}
    passed: list[Marker] = []
    for marker in sorted(markers, key=lambda one: (one.hour, one.sequence, one.batch), reverse=True):
        if marker.hour in winners:
            continue
        if counts.get(marker.batch, 0) == marker.rows:
            winners[marker.hour] = marker
        else:
            passed.append(marker)
    return dict(sorted(winners.items())), tuple(passed)


class Pen:
    """A right to write, with its fence; every batch gets a sequence above all that this pen wrote before."""

    def __init__(self, fence: int) -> None:
        if not 0 < fence < 1 << COUNTER_BITS:
            raise ValueError("a fence is between 1 and 2^32 - 1")
        self.fence = fence
        self._counter = 0

    def sequence(self) -> int:
        self._counter += 1
        return self.fence << COUNTER_BITS | self._counter


class Ledger:
    """Writes and finds committed hours.

    Args:
        clock: Unix seconds; it dates batches for sweeping and decides nothing else.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self.versions = Versions()
        self._counted: dict[int, int] = {}
        """Rows of batches that were found whole, where nobody else could take any away since."""

    def commit(self, batches: Sequence[HourBatch], pen: Pen) -> list[Marker]:
        """Store hours of one account; when it returns they are there, whole, and survive the process.

        Raises:
            StoreError: nothing of the batches whose marker was not written is visible.
        """
        if not batches:
            return []
        accounts = {batch.account for batch in batches}
        if len(accounts) != 1:
            raise ValueError("batches of one account at a time")
        numbered = [(batch, self.new_batch()) for batch in batches]
        lines = (
            line
            for batch, number in numbered
            for line in lines_of(batch.hour, number, batch.allocations, batch.management, batch.nodes)
        )
        account = accounts.pop()
        with self._inserting(account, lines):
            markers = [_marker(one, number, pen.sequence()) for one, number in numbered]
        with self.versions.changing(account):
            self._mark(account, markers)
        return markers

    @contextmanager
    def _inserting(self, account: str, lines: Iterator[Line]) -> Iterator[None]:
        """Rows in blocks: while the engine takes one, the next is made; no more than two are ever held."""
        with ThreadPoolExecutor(BLOCKS_AT_ONCE) as hands:
            pending: deque[Future[None]] = deque()
            for block in _blocks(lines):
                if len(pending) == BLOCKS_AT_ONCE:
                    pending.popleft().result()
                pending.append(hands.submit(self._engine.insert_lines, account, block))
            yield
            for one in pending:
                one.result()

    def confirm(self, account: str, markers: Sequence[Marker], pen: Pen, fetched_at: int) -> None:
        """Say that hours were read again and are as they were: the same batches under a newer sequence."""
        again = [replace(m, sequence=pen.sequence(), fetched_at=fetched_at) for m in markers]
        self._mark(account, again)

    def _mark(self, account: str, markers: Sequence[Marker]) -> None:
        rows = [(account, *(_stored(getattr(m, name)) for name in EXTRACTIONS.names[1:])) for m in markers]
        self._engine.insert(EXTRACTIONS.name, EXTRACTIONS.names, rows)

    def held(self, account: str, start: int, end: int) -> Held:
        """The committed hours that lie wholly in ``[start, end)``.

        Raises:
            StoreError
        """
        if end - start < HOUR:
            return Held(account, start, end, {})
        where = f"account = {literal(account)} AND hour >= {moment(start)} AND hour <= {moment(end - HOUR)}"
        markers = list(self._markers(where))
        if not markers:
            return Held(account, start, end, {})
        counts = self._counts(where, markers)
        winners, passed = choose(markers, counts)
        if passed:
            log.error("%d batches of account %s are not whole and were passed over", len(passed), account)
        return Held(account, start, end, winners, passed)

    def _counts(self, where: str, markers: Sequence[Marker]) -> Mapping[int, int]:
        """Rows that are there, by batch."""
        known = self._counted if self._engine.alone else {}
        unknown = sorted({marker.batch for marker in markers} - known.keys())
        if not unknown:
            return known
        counts: dict[int, int] = {
            batch: rows
            for batch, rows in self._engine.query(
                f"SELECT batch, count() FROM {ALLOCATIONS.name} WHERE {where} AND batch IN ({numbers(unknown)})"
                f" GROUP BY hour, batch{self._engine.dialect.in_order}"
            )
        }
        if self._engine.alone:
            if len(self._counted) > COUNTED_KEPT:
                self._counted.clear()
            self._counted |= {m.batch: m.rows for m in markers if m.rows and counts.get(m.batch) == m.rows}
        return {**known, **counts}

    def newest(self, account: str, start: int, end: int) -> dict[int, Marker]:
        """The newest marker of each hour, its rows not counted: for what was built from rows that were."""
        where = f"account = {literal(account)} AND hour >= {moment(start)} AND hour <= {moment(end - HOUR)}"
        newest: dict[int, Marker] = {}
        for marker in self._markers(where):
            known = newest.get(marker.hour)
            if known is None or (marker.sequence, marker.batch) > (known.sequence, known.batch):
                newest[marker.hour] = marker
        return newest

    def _markers(self, where: str) -> Iterator[Marker]:
        columns = ", ".join(f"toUInt32({name})" if name == "hour" else name for name in EXTRACTIONS.names[1:])
        for row in self._engine.query(f"SELECT {columns} FROM {EXTRACTIONS.name} WHERE {where}"):
            yield _read_marker(row)

    def highest_fence(self) -> int:
        """The highest fence that ever wrote; a new one starts above it."""
        rows = list(self._engine.query(f"SELECT count(), max(sequence) FROM {EXTRACTIONS.name}"))
        return int(rows[0][1]) >> COUNTER_BITS if rows[0][0] else 0

    def accounts(self) -> list[str]:
        """Every account with a committed hour."""
        return sorted(str(row[0]) for row in self._engine.query(f"SELECT DISTINCT account FROM {EXTRACTIONS.name}"))

    def span(self, account: str) -> tuple[int, int] | None:
        """The first committed hour and the end of the last; None where there is none."""
        rows = list(
            self._engine.query(
                f"SELECT count(), toUInt32(min(hour)), toUInt32(max(hour)) FROM {EXTRACTIONS.name}"
                f" WHERE account = {literal(account)}"
            )
        )
        return (int(rows[0][1]), int(rows[0][2]) + HOUR) if rows[0][0] else None

    def batches(self, account: str) -> set[int]:
        """The batches that are read, and newer ones that are not whole: they are evidence.

        Raises:
            StoreError
        """
        span = self.span(account)
        if span is None:
            return set()
        held = self.held(account, *span)
        return {m.batch for m in held.passed_over} | {m.batch for m in held.hours.values()}

    def new_batch(self) -> int:
        """Seconds and chance: dated, so that what was orphaned can be told from what is being written."""
        return int(self._clock()) << COUNTER_BITS | secrets.randbits(COUNTER_BITS)


def _marker(batch: HourBatch, number: int, sequence: int) -> Marker:
    sums = batch.sums()
    return Marker(
        batch.hour, number, sequence, batch.rows, fsum(sums.values()), tuple(sums), batch.residual, batch.spread,
        batch.reconciled, batch.seconds, batch.quarantined, batch.unknown, batch.not_covered, batch.fetched_at,
        batch.digest,
    )  # fmt: skip


def _stored(value: object) -> object:
    """A field as a column holds it."""
    return list(value) if isinstance(value, tuple) else int(value) if isinstance(value, bool) else value


def _read_marker(row: Sequence[Any]) -> Marker:
    """The columns stand in the order of the fields."""
    hour, batch, sequence, rows, total, components, residual, spread, reconciled, seconds, quarantined, *more = row
    unknown, not_covered, fetched_at, digest = more
    return Marker(
        hour, batch, sequence, rows, total, tuple(components), residual, spread, bool(reconciled), seconds, quarantined,
        tuple(unknown), tuple(not_covered), fetched_at, digest,
    )  # fmt: skip


def built_from(markers: Iterable[Marker]) -> int:
    """A number that stands for these batches of these hours."""
    text = ",".join(f"{m.hour}:{m.batch}" for m in sorted(markers, key=lambda one: one.hour))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def _blocks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    stream = iter(lines)
    while block := list(islice(stream, BLOCK_ROWS)):
        yield block
