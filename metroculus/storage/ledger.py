"""The batch rule: an hour is written as a batch that nobody sees until one row commits it.

Rows go in under a fresh batch id, in blocks; then one marker with the batch, its count of rows and its sequence.
Readers take the newest marker of an hour whose count is what is really there, so that a crash half way shows nothing, a
repeat or a restatement replaces, two writers leave one winner, and nothing has to be cleaned up before it can be read.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from math import fsum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import Allocation
from metroculus.cost_model.columns import Allocations, exact
from metroculus.cost_model.components import COMPONENTS, MANAGEMENT_COMPONENT
from metroculus.storage.blocks import NodeKind, inserts_of, without_empty
from metroculus.storage.columns import ALLOCATIONS, EXTRACTIONS
from metroculus.storage.engine import Block, Column, Engine, StoreError, literal, moment, numbers, values_of
from metroculus.storage.group_commit import FailedTogether, GroupCommit
from metroculus.storage.known_hours import KnownHours
from metroculus.storage.versions import Versions
from tools.window import HOUR

log = logging.getLogger("ledger")

COUNTER_BITS = 32
SUMMED_AS = 2
"""Changes whenever a summary holds more than it did."""

MONTH = "toUInt32(toDateTime(toStartOfMonth(hour), 'UTC'))"
"""SQL of the month that an hour belongs to: its first second."""

INSERTS_AT_ONCE = 2
SMALL_ROWS = 5_000
"""A commit of so few rows goes into one insert with others that are made at the same time."""
COUNTED_KEPT = 500_000
MARKERS_KEPT = 20_000
"""Of hours that were read before; some ten megabytes."""


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
    currency: str = "USD"
    covered: Mapping[str, int] = {}
    """Seconds of the hour that are known of a component, where they are fewer than ``seconds``."""
    residual_bound: float = 0.0
    """How far the hours of its day together may be from what the day says, USD; the same in each of them."""
    source: str = ""
    """Who told it, where that was not the account's first source hour by hour."""
    told_from: int = 0
    """Of an hour that is a part of a longer time that was told: when that began, and its end in ``told_until``."""
    told_until: int = 0

    @property
    def rows(self) -> int:
        return len(self.allocations) + (self.management is not None)

    def sums(self) -> dict[str, float]:
        """USD by cost column, of the columns that have any."""
        costs = Allocations.of(self.allocations).costs
        sums = {name: float(exact(line)) for name, line in zip(COMPONENTS, costs, strict=True) if line.any()}
        return sums | ({MANAGEMENT_COMPONENT: self.management} if self.management else {})


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
    currency: str = "USD"
    partly_covered: tuple[str, ...] = ()
    """Components that are known of less than ``seconds`` of the hour, and of how many in ``partly_covered_seconds``."""
    partly_covered_seconds: tuple[int, ...] = ()
    residual_bound: float = 0.0
    verified: bool = True
    """Whether all its rows were there when they were last counted, at ``checked_at``."""
    checked_at: int = 0
    source: str = ""
    told_from: int = 0
    told_until: int = 0

    @property
    def fence(self) -> int:
        return self.sequence >> COUNTER_BITS


class CommittedHours(Struct, frozen=True):
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


class NewestHour(Struct, frozen=True):
    """Until when an account is stored; ``sequence`` changes whenever an hour of it is written or read again."""

    end: int
    sequence: int


def choose(markers: Iterable[Marker], counts: Mapping[int, int]) -> tuple[dict[int, Marker], tuple[Marker, ...]]:
    """The winner of each hour, and the newer ones that were passed over because rows of theirs are missing.

    Args:
        counts: rows that are really there, by batch.
    """
    winners: dict[int, Marker] = {}
    passed: list[Marker] = []
    seen: set[int] = set()
    in_order = sorted(markers, key=lambda one: (one.hour, one.sequence, one.batch, one.checked_at), reverse=True)
    for marker in in_order:
        if marker.hour in winners:
            continue
        if counts.get(marker.batch, 0) == marker.rows:
            winners[marker.hour] = marker
        elif marker.batch not in seen:  # the newest word on it, of several
            seen.add(marker.batch)
            passed.append(marker)
    return dict(sorted(winners.items())), tuple(passed)


class FencedWriter:
    """A right to write, with its fence; every batch gets a sequence above all that this writer wrote before."""

    def __init__(self, fence: int) -> None:
        if not 0 < fence < 1 << COUNTER_BITS:
            raise ValueError("a fence is between 1 and 2^32 - 1")
        self.fence = fence
        self._counter = 0

    def sequence(self) -> int:
        self._counter += 1
        return self.fence << COUNTER_BITS | self._counter


class _Committed(Struct, frozen=True):
    """What one caller commits: markers of one account, and the rows of theirs that are still to be inserted."""

    account: str
    markers: tuple[Marker, ...]
    blocks: tuple[Block, ...] = ()
    counted: bool = False
    """Whether the markers only confirm hours whose rows were counted before: nothing of their costs changes."""


class Ledger:
    """Writes and finds committed hours.

    Args:
        clock: Unix seconds; it dates batches for sweeping and decides nothing else.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float]) -> None:
        self._engine = engine
        self._clock = clock
        self.versions = Versions()
        self._group = GroupCommit(self._commit)
        self._counted: dict[int, int] = {}
        """Rows of batches that were found whole, where nobody else could take any away since."""
        self._known = KnownHours(MARKERS_KEPT)

    def commit(self, batches: Sequence[HourBatch], writer: FencedWriter) -> list[Marker]:
        """Store hours of one account; when it returns they are there, whole, and survive the process.

        Raises:
            StoreError: nothing of the batches whose marker was not written is visible.
        """
        if not batches:
            return []
        accounts = {batch.account for batch in batches}
        if len(accounts) != 1:
            raise ValueError("batches of one account at a time")
        account = accounts.pop()
        if sum(batch.rows for batch in batches) > SMALL_ROWS:
            numbered = [(batch, self.new_batch()) for batch in batches]
            with self._inserting(inserts_of(account, numbered)):
                markers = [_marker(one, number, writer.sequence()) for one, number in numbered]
            self._commit([_Committed(account, tuple(markers))])
            return markers
        return list(self._commit_together(lambda: self._small(account, batches, writer)).markers)

    def _commit_together(self, make: Callable[[], _Committed]) -> _Committed:
        """Commit with what others commit at the same time, or alone where the engine refuses the group.

        Args:
            make: makes what is committed; for each try anew, as rows of a try that failed may be there.
        """
        committed = make()
        try:
            self._group.commit(committed)
        except FailedTogether as failed:
            if isinstance(failed.cause, StoreError) and failed.cause.code is None:  # no answer, for any account
                raise failed.cause from None
            committed = make()
            self._commit([committed])
        return committed

    def _small(self, account: str, batches: Sequence[HourBatch], writer: FencedWriter) -> _Committed:
        numbered = [(batch, self.new_batch()) for batch in batches]
        markers = tuple(_marker(one, number, writer.sequence()) for one, number in numbered)
        blocks = tuple(block for insert in inserts_of(account, numbered) for block in insert)
        return _Committed(account, markers, blocks)

    def _commit(self, group: Sequence[_Committed]) -> None:
        """Insert the rows of several accounts that are not there yet, count what is new, and let it be read."""
        blocks = [block for one in group for block in one.blocks]
        if blocks:
            self._insert(blocks)
        new = [(one.account, marker) for one in group if not one.counted for marker in one.markers]
        counted = [(one.account, marker) for one in group if one.counted for marker in one.markers]
        with ExitStack() as changing:
            for account in dict.fromkeys(account for account, _ in new):
                changing.enter_context(self.versions.changing(account))
            self._mark([*self._checked(new), *counted])

    def _checked(self, markers: Sequence[tuple[str, Marker]]) -> list[tuple[str, Marker]]:
        """Markers by account, with what counting their rows came to."""
        if not markers:
            return []
        now = int(self._clock())
        hours = [marker.hour for _, marker in markers]
        accounts = list(dict.fromkeys(account for account, _ in markers))
        where = f"{of_accounts(accounts)} AND hour >= {moment(min(hours))} AND hour <= {moment(max(hours))}"
        counts = self._count(where, [marker.batch for _, marker in markers])
        return [
            (account, replace(marker, verified=counts.get(marker.batch, 0) == marker.rows, checked_at=now))
            for account, marker in markers
        ]

    def verify(self, account: str) -> int:
        """Count the rows of every hour that is read again, and record what changed, for whoever reads by SQL.

        Returns:
            how many batches are not whole any more.

        Raises:
            StoreError
        """
        span = self.span(account)
        if span is None:
            return 0
        self.forget()
        committed = self.committed(account, *span)

        def checked(marker: Marker, whole: bool) -> Marker:
            """Above what was known of it, whatever the clock says."""
            return replace(marker, verified=whole, checked_at=max(int(self._clock()), marker.checked_at + 1))

        broken = [checked(m, False) for m in committed.passed_over if m.verified]
        whole = [checked(m, True) for m in committed.hours.values() if not m.verified]
        self._mark([(account, marker) for marker in (*broken, *whole)])
        return len(committed.passed_over)

    @contextmanager
    def _inserting(self, inserts: Iterator[list[Block]]) -> Iterator[None]:
        """Several inserts: while the engine takes one, the next is made; no more than two are ever in memory."""
        with ThreadPoolExecutor(INSERTS_AT_ONCE) as hands:
            running: set[Future[None]] = set()
            for blocks in inserts:
                if len(running) == INSERTS_AT_ONCE:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for one in done:
                        one.result()
                running.add(hands.submit(self._insert, blocks))
            yield
            for one in running:
                one.result()

    def _insert(self, blocks: Sequence[Block]) -> None:
        self._engine.insert_blocks(ALLOCATIONS.name, without_empty(blocks))

    def confirm(self, account: str, markers: Sequence[Marker], writer: FencedWriter, fetched_at: int) -> None:
        """Say that hours were read again and are as they were: the same batches under a newer sequence."""
        again = tuple(replace(m, sequence=writer.sequence(), fetched_at=fetched_at) for m in markers)
        if again:
            self._commit_together(lambda: _Committed(account, again, counted=True))

    def _mark(self, markers: Sequence[tuple[str, Marker]]) -> None:
        names = Marker.__struct_fields__
        rows = [(account, *(_stored(getattr(m, name)) for name in names)) for account, m in markers]
        try:
            self._engine.insert(EXTRACTIONS.name, ("account", *names), rows)
        finally:  # what failed may be there, too
            self._known.changed({account for account, _ in markers})

    def committed(self, account: str, start: int, end: int, up_to: int | None = None) -> CommittedHours:
        """The committed hours that lie wholly in ``[start, end)``.

        Args:
            up_to: a sequence; what was committed under a later one is as if it were not there.

        Raises:
            StoreError
        """
        return self.committed_of([account], start, end, up_to)[account]

    def committed_of(
        self, accounts: Sequence[str], start: int, end: int, up_to: int | None = None
    ) -> dict[str, CommittedHours]:
        """``committed`` of several accounts, with as many questions as for one.

        Raises:
            StoreError
        """
        first, last = start + -start % HOUR, end - end % HOUR
        if first >= last or not accounts:
            return {account: CommittedHours(account, start, end, {}) for account in accounts}
        if not self._engine.alone:
            found: Mapping[str, CommittedHours] = self._read(accounts, first, last, up_to)
        else:
            found = self._known_or_read(tuple(accounts), first, last, up_to)
        return {account: replace(one, start=start, end=end) for account, one in found.items()}

    def _known_or_read(
        self, accounts: tuple[str, ...], first: int, last: int, up_to: int | None
    ) -> Mapping[str, CommittedHours]:
        stretch, changes = (first, last, up_to), self._known.changes()
        known = self._known.find(accounts, stretch)
        if known is not None:
            return known
        found = self._read(accounts, first, last, up_to)
        if not any(one.passed_over for one in found.values()):  # else their rows are counted again each time
            self._known.keep(accounts, stretch, found, changes)
        return found

    def _read(self, accounts: Sequence[str], first: int, last: int, up_to: int | None) -> dict[str, CommittedHours]:
        """The committed hours of ``[first, last)``, whole hours of which there is at least one."""
        by_account: dict[str, list[Marker]] = {account: [] for account in accounts}
        where = f"{of_accounts(accounts)} AND hour >= {moment(first)} AND hour < {moment(last)}"
        marked = where if up_to is None else f"{where} AND sequence <= {int(up_to)}"
        for account, marker in self._markers_of(marked):
            by_account[account].append(marker)
        counts = self._counts(where, [marker for markers in by_account.values() for marker in markers])
        return {account: _chosen(account, first, last, markers, counts) for account, markers in by_account.items()}

    def _counts(self, where: str, markers: Sequence[Marker]) -> Mapping[int, int]:
        """Rows that are there, by batch."""
        counted = self._counted if self._engine.alone else {}
        known = {m.batch: counted[m.batch] for m in markers if m.batch in counted}
        unknown = sorted({marker.batch for marker in markers} - known.keys())
        if not unknown:
            return known
        counts = self._count(where, unknown)
        if self._engine.alone:
            if len(self._counted) > COUNTED_KEPT:
                self._counted = {}
            self._counted |= {m.batch: m.rows for m in markers if m.rows and counts.get(m.batch) == m.rows}
        return {**known, **counts}

    def forget(self) -> None:
        """Rows or markers were taken away: what was read before is read again."""
        self._counted = {}
        self._known.forget()

    def _count(self, where: str, batches: Sequence[int]) -> dict[int, int]:
        """Rows that are there now, by batch."""
        return {
            row["batch"]: row["there"]
            for row in self._engine.rows(
                f"SELECT batch, count() AS there FROM {ALLOCATIONS.name} WHERE {where}"
                f" AND batch IN ({numbers(batches)}) GROUP BY hour, batch{self._engine.dialect.in_order}"
            )
        }

    def newest_of(self, accounts: Sequence[str], start: int, end: int) -> dict[str, dict[int, Marker]]:
        """Newest marker per account and hour, row counts not verified; for reading summaries."""
        where = f"{of_accounts(accounts)} AND hour >= {moment(start)} AND hour <= {moment(end - HOUR)}"
        newest: dict[str, dict[int, Marker]] = {account: {} for account in accounts}
        for account, marker in self._markers_of(where):
            known = newest[account].get(marker.hour)
            if known is None or (marker.sequence, marker.batch) > (known.sequence, known.batch):
                newest[account][marker.hour] = marker
        return newest

    def _markers_of(self, where: str) -> Iterator[tuple[str, Marker]]:
        """Markers with their accounts. As columns: an organization's month is a hundred thousand of them."""
        kind = literal(self._engine.dialect.type_of("LowCardinality(String)"))
        packed = {name: name for name in ("account", *_MARKER_FIELDS)} | {"hour": "toUInt32(hour)"}
        packed |= {name: f"arrayStringConcat(arrayMap(one -> toString(one), {name}), ',')" for name in _LISTS}
        packed |= {name: f"CAST({packed[name]}, {kind})" for name in ("account", "currency", "source", *_LISTS)}
        chosen = ", ".join(f"{sql} AS m_{name}" for name, sql in packed.items())
        found = self._engine.columns(f"SELECT {chosen} FROM {EXTRACTIONS.name} WHERE {where}")
        if found:
            columns = [_unpacked(name, found[f"m_{name}"]) for name in _MARKER_FIELDS]
            yield from zip(found["m_account"].list(), map(Marker, *columns), strict=True)

    def fingerprints(self, accounts: Sequence[str], start: int, end: int) -> dict[str, dict[int, int]]:
        """By account and first second of a month of UTC: another number whenever a marker of it is written.

        Raises:
            StoreError
        """
        found: dict[str, dict[int, int]] = {account: {} for account in accounts}
        names = ", ".join(name for name in _MARKER_FIELDS if name not in _LISTS)
        for row in self._engine.rows(
            f"SELECT account, {MONTH} AS month, sum(cityHash64({names})) AS fingerprint"
            f" FROM {EXTRACTIONS.name} WHERE {of_accounts(accounts)}"
            f" AND hour >= {moment(start)} AND hour <= {moment(end - HOUR)} GROUP BY account, month"
        ):
            found[str(row["account"])][int(row["month"])] = int(row["fingerprint"])
        return found

    def newest_sequences(self, since: int) -> dict[str, int]:
        """By account, a number that changes whenever an hour of at least ``since`` is written or read again.

        Raises:
            StoreError
        """
        return {account: newest.sequence for account, newest in self.newest_hours(since).items()}

    def newest_hours(self, since: int) -> dict[str, NewestHour]:
        """How far each account is stored, of those that have an hour of at least ``since``.

        Raises:
            StoreError
        """
        rows = self._engine.rows(
            f"SELECT account, toUInt32(max(hour)) AS last_hour, max(sequence) AS newest FROM {EXTRACTIONS.name}"
            f" WHERE hour >= {moment(since)} GROUP BY account"
        )
        return {str(row["account"]): NewestHour(int(row["last_hour"]) + HOUR, int(row["newest"])) for row in rows}

    def accounts(self) -> list[str]:
        """Every account with a committed hour."""
        return sorted(
            str(row["account"]) for row in self._engine.rows(f"SELECT DISTINCT account FROM {EXTRACTIONS.name}")
        )

    def span(self, account: str) -> tuple[int, int] | None:
        """The first committed hour and the end of the last; None where there is none."""
        rows = list(
            self._engine.rows(
                "SELECT count() AS there, toUInt32(min(hour)) AS first, toUInt32(max(hour)) AS last"
                f" FROM {EXTRACTIONS.name}"
                f" WHERE account = {literal(account)}"
            )
        )
        return (int(rows[0]["first"]), int(rows[0]["last"]) + HOUR) if rows[0]["there"] else None

    def new_batch(self) -> int:
        """Seconds and chance: dated, so that what was orphaned can be told from what is being written."""
        return int(self._clock()) << COUNTER_BITS | secrets.randbits(COUNTER_BITS)


def of_accounts(accounts: Sequence[str]) -> str:
    """The condition that a row is of one of some accounts."""
    named = ", ".join(map(literal, accounts))
    return f"account = {named}" if len(accounts) == 1 else f"account IN ({named})"


def _chosen(account: str, start: int, end: int, markers: Sequence[Marker], counts: Mapping[int, int]) -> CommittedHours:
    winners, passed = choose(markers, counts)
    if passed:
        log.error("%d batches of account %s are not whole and were passed over", len(passed), account)
    return CommittedHours(account, start, end, winners, passed)


def _marker(batch: HourBatch, number: int, sequence: int) -> Marker:
    sums = batch.sums()
    return Marker(
        hour=batch.hour,
        batch=number,
        sequence=sequence,
        rows=batch.rows,
        total=fsum(sums.values()),
        components=tuple(sums),
        residual=batch.residual,
        spread=batch.spread,
        reconciled=batch.reconciled,
        seconds=batch.seconds,
        quarantined=batch.quarantined,
        unknown=batch.unknown,
        not_covered=batch.not_covered,
        fetched_at=batch.fetched_at,
        digest=batch.digest,
        currency=batch.currency,
        partly_covered=tuple(batch.covered),
        partly_covered_seconds=tuple(batch.covered.values()),
        residual_bound=batch.residual_bound,
        source=batch.source,
        told_from=batch.told_from,
        told_until=batch.told_until,
    )


def _stored(value: object) -> object:
    """A field as a column holds it."""
    return list(value) if isinstance(value, tuple) else int(value) if isinstance(value, bool) else value


_MARKER_FIELDS = Marker.__struct_fields__
_LISTS: Mapping[str, Callable[[str], str | int]] = {
    "components": str,
    "unknown": str,
    "not_covered": str,
    "partly_covered": str,
    "partly_covered_seconds": int,
}
"""Columns of lists, which are read as one text each, and what their items are; names of components have no commas."""


def _unpacked(name: str, column: Column) -> list[Any]:
    """A column of markers as the fields hold it."""
    if name in _LISTS:
        read = _LISTS[name]
        lists: list[Any] = column.map_to(lambda text: tuple(map(read, text.split(","))) if text else ()).list()
        return lists
    if name in ("reconciled", "verified"):
        return list(column.astype(bool).tolist())
    return values_of(column)


def built_from(markers: Iterable[Marker]) -> int:
    """A number that stands for these batches of these hours, as this program sums them up.

    What a program summed up that knew fewer columns is late, and made anew.
    """
    text = f"{SUMMED_AS}:" + ",".join(f"{m.hour}:{m.batch}" for m in sorted(markers, key=lambda one: one.hour))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
