"""Reads hours from an account's source and commits them: what is unchanged is confirmed, what is missing is a gap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Sequence, Set
from hashlib import blake2b
from math import fsum
from typing import TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import MANAGEMENT, Filters
from metroculus.cost_model.columns import Allocations
from metroculus.cost_model.components import Costs
from metroculus.cost_model.reading import COVERAGE_THRESHOLD
from metroculus.cost_model.settle import SPREAD_SHARE, Spread, control, follow, less
from metroculus.metroculus_worker.ownership import Owned
from metroculus.plan import Stretch, closed
from metroculus.sources.accounts import Accounts
from metroculus.sources.choose import AccountSources, HourReading, HoursRead
from metroculus.sources.errors import SourceError
from metroculus.sources.source import NOTHING_KNOWN
from metroculus.storage.blocks import NodeKind
from metroculus.storage.gaps import Gap
from metroculus.storage.jobs import Repair
from metroculus.storage.ledger import CommittedHours, HourBatch, Marker
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.window import DAY, HOUR, SETTLING_SECONDS

log = logging.getLogger("extract")

T = TypeVar("T")
_ENCODER = msgspec.json.Encoder()

HOURS_A_DAY = 24
CLOSED = "the hour is closed, and changes only by a repair"
NOTHING_NEWER = "nothing newer was pushed of this hour"
COVERS_LESS = "the source knows less of this hour than is stored, and what is stored stays"
SAME_USD, SAME_SHARE = 0.01, 1e-4
"""A day that is no further from its hours than this says what they say."""
LEAST_LEFT, MOST_LEFT = 0.05, 2.0
"""What a day costs beyond its told hours, as a share of what its other hours are estimated at: below the first those
hours are empty, above the second the day contradicts the hours that are stored."""
NO_CURRENCY = "the source does not say its currency now"
KEPT_NO_LONGER = "the source keeps this hour no longer, and what it told of it stays"


class LostOwnership(Exception):
    """Another worker owns the cluster now."""


class Outcome(Struct, frozen=True, kw_only=True):
    """What became of a stretch, by hour."""

    written: tuple[Marker, ...] = ()
    confirmed: tuple[int, ...] = ()
    missing: dict[int, str] = {}
    kept: tuple[int, ...] = ()
    """Closed hours that differ now and were left as they are."""
    failure: str | None = None
    """Why the source failed, where that is why hours lack."""
    silent: bool = False
    """Whether it did not answer at all: what is asked next would wait as long."""

    @property
    def rows(self) -> int:
        return sum(marker.rows for marker in self.written)

    @property
    def total(self) -> float:
        return fsum(marker.total for marker in self.written)


class _Committed(Struct, frozen=True):
    """What became of hours that were read; ``all_of_them`` is whether each that differs was written."""

    written: tuple[Marker, ...]
    confirmed: tuple[int, ...]
    kept: tuple[int, ...]
    all_of_them: bool


class _Held(Struct, frozen=True):
    """Readings of a stretch that are to be stored, stored hours that stay, and what the day says of the readings."""

    whole: dict[int, HourReading]
    stays: dict[int, str]
    day: Mapping[str, Costs] | None
    why: str
    """Why there is no day, where there is none."""
    missing: dict[int, str] = {}


class RepairOrder(Struct, frozen=True):
    """Leave to change closed hours: who asked, why, and the id under which it is audited."""

    id: str
    who: str
    why: str


class Extractor:
    """Extracts stretches of one account at a time.

    Args:
        clock: Unix seconds.
        timeout: seconds for one call to an upstream.
    """

    def __init__(self, store: Store, accounts: Accounts, clock: Callable[[], float], timeout: float) -> None:
        self._store = store
        self._accounts = accounts
        self._clock = clock
        self._timeout = timeout
        self._hours_a_call: dict[str, int] = {}
        """By account, where its source did not answer for a whole day in time."""

    async def extract(
        self,
        account: str,
        owned: Owned,
        stretch: Stretch,
        order: RepairOrder | None = None,
        asked: range | None = None,
    ) -> Outcome:
        """Read a stretch and store what it says.

        Args:
            asked: the hours that may change; the others of the stretch are read for their day's sake.

        Raises:
            StoreError: nothing of what was not committed is visible.
            LostOwnership
        """
        sources = await self._accounts.of(account)
        now = int(self._clock())
        if not sources.any:
            return await self._with_gaps(account, dict.fromkeys(stretch.hours, "no cost source is configured"), now)
        read = await self._read(sources, account, stretch)
        if read.silent and not read.hours:
            return Outcome(missing=dict(read.missing), failure=read.failure, silent=True)
        missing = dict(read.missing)
        whole = {h: r for h, r in read.hours.items() if not _still_filling(r, now)}
        missing |= {h: "the source has not filled this hour yet" for h in read.hours if h not in whole}
        committed = (await self._store.run(self._store.ledger.committed, account, stretch.start, stretch.end)).hours
        stays = _not_replaced(whole, committed, order is not None)
        held = await self._held(sources, account, stretch, whole, committed, stays)
        missing, whole, stays, day = missing | held.missing, held.whole, held.stays, held.day
        staying = await self._staying(account, stretch, committed) if day is None else {}
        whole = {hour: reading for hour, reading in whole.items() if hour not in staying}
        readings = [whole[hour] for hour in sorted(whole)]
        currency = await self._currency(sources, account, committed)
        if currency is None:
            return await self._with_gaps(account, missing | dict.fromkeys(whole, NO_CURRENCY), now)
        batches, followed = await self._store.run(assemble, account, readings, day, now, currency)
        done = await self._commit(account, owned, batches, committed, order, asked, now)
        if followed is not None and done.all_of_them:
            sequence = owned.writer.sequence()
            await self._store.run(
                self._store.followed_days.record, account, stretch.start, followed.residuals, sequence, now
            )
        unchanged = dict.fromkeys(staying.keys() - missing.keys(), held.why) | stays
        told_before = {hour for hour, reading in whole.items() if reading.told_at} - {one.hour for one in done.written}
        unchanged |= dict.fromkeys(told_before, NOTHING_NEWER)
        asked_again = unchanged | dict.fromkeys(done.kept, CLOSED)
        # Of a source that does not answer it is not known what it lacks: its hours are due again with the next round.
        tried = {} if read.silent else missing
        await self._with_gaps(account, tried | asked_again, now)
        outcome = Outcome(missing=missing | unchanged if order is not None else missing)
        return replace(
            outcome,
            written=done.written,
            confirmed=done.confirmed,
            kept=done.kept,
            failure=read.failure,
            silent=read.silent,
        )

    def hours_a_call(self, account: str) -> int:
        """How many hours an account's source is asked for at once."""
        return self._hours_a_call.get(account, HOURS_A_DAY)

    async def _read(self, sources: AccountSources, account: str, stretch: Stretch) -> HoursRead:
        """The hours of a stretch; a source that was too slow for them is asked for half as many at once the next time.

        So one that hangs costs one deadline a round, and one that is slow is found the size that it can answer.
        """
        at_once = self.hours_a_call(account)
        read = await sources.hours(stretch.start, stretch.end, self._timeout, at_once)
        if read.late:
            self._hours_a_call[account] = max(1, min(at_once, len(stretch.hours)) // 2)
        elif not read.silent and len(stretch.hours) >= at_once:
            self._hours_a_call.pop(account, None)
            if 2 * at_once < HOURS_A_DAY:
                self._hours_a_call[account] = 2 * at_once
        return read

    async def _commit(
        self,
        account: str,
        owned: Owned,
        batches: Sequence[HourBatch],
        committed: Mapping[int, Marker],
        order: RepairOrder | None,
        asked: range | None,
        asked_at: int,
    ) -> _Committed:
        """Store what differs from what is stored, and confirm the rest as far as it was asked for now.

        Raises:
            StoreError, LostOwnership
        """
        now = int(self._clock())
        same = [committed[b.hour] for b in batches if b.hour in committed and committed[b.hour].digest == b.digest]
        asked_now = {batch.hour for batch in batches if batch.fetched_at >= asked_at}
        changed = [b for b in batches if b.hour not in committed or committed[b.hour].digest != b.digest]
        kept = [b.hour for b in changed if b.hour in committed and closed(b.hour, now) and order is None]
        wanted = [b for b in changed if b.hour not in kept and (asked is None or b.hour in asked)]
        if not owned.still():
            raise LostOwnership(account)
        if order is not None:  # first: a change that nobody knows of would be worse than one that did not come about
            await self._audit(order, committed, wanted, now)
        written = await self._store.run(self._store.ledger.commit, wanted, owned.writer)
        confirmed = [marker for marker in same if marker.hour in asked_now]
        await self._store.run(self._store.ledger.confirm, account, confirmed, owned.writer, now)
        hours = tuple(marker.hour for marker in same)
        return _Committed(tuple(written), hours, tuple(kept), len(wanted) == len(changed))

    async def _currency(self, sources: AccountSources, account: str, committed: Mapping[int, Marker]) -> str | None:
        """As the source says; where it cannot be asked now, as what is stored of the account says last.

        None where nothing is stored either: euros must not be kept as dollars for ever.
        """
        told = await sources.known_currency(Deadline(self._timeout))
        if told is not None:
            return told
        if not committed:
            span = await self._store.run(self._store.ledger.span, account)
            since = span[1] - DAY if span else 0
            committed = (await self._store.run(self._store.ledger.committed, account, since, since + DAY)).hours
        return committed[max(committed)].currency if committed else None

    def now(self) -> int:
        """Unix seconds."""
        return int(self._clock())

    async def day_shift(self, account: str) -> int:
        """Seconds after midnight UTC at which days of an account's source begin."""
        return await (await self._accounts.of(account)).day_shift(self._timeout)

    async def _held(
        self,
        sources: AccountSources,
        account: str,
        stretch: Stretch,
        whole: Mapping[int, HourReading],
        committed: Mapping[int, Marker],
        stays: Mapping[int, str],
    ) -> _Held:
        """Readings held against the set of their day: what is to be stored, and what it follows."""
        # A day of which another source told hours is the first one's set of what it has: it is no control of them.
        by_first = sum(
            not reading.source or reading.cut_from is not None
            for hour, reading in whole.items()
            if stays.get(hour, KEPT_NO_LONGER) == KEPT_NO_LONGER
        )
        day, why = await self._day(sources, stretch, by_first)
        if day is None:
            return _Held(_without(whole, stays), dict(stays), None, why)
        beside = {hour: committed[hour] for hour, reason in stays.items() if reason == KEPT_NO_LONGER}
        told = await self._costs_of(sources, account, stretch, beside)
        verdict = beside_its_day(whole, frozenset(beside), day, told)
        stays = _without(stays, verdict.replaced)
        whole = _without(_without(whole, verdict.empty), stays)
        if verdict.empty:
            return _Held(whole, stays, None, why, dict.fromkeys(verdict.empty, NOTHING_KNOWN))
        return _Held(whole, stays, less(day, told) if beside and not verdict.replaced else day, why)

    async def _day(
        self, sources: AccountSources, stretch: Stretch, hours: int
    ) -> tuple[Mapping[str, Costs] | None, str]:
        """The set of a day that is over and whose hours are all there; None, and why, where it cannot be had."""
        if not stretch.whole or hours * HOUR != DAY:
            return None, "its day is not whole, and stored hours that followed it stay"
        try:
            day = await sources.day(stretch.start, self._timeout)
        except SourceError as failure:
            log.info("the set of a day could not be had: %s", failure)
            day = None
        return day, "the set of its day could not be had, and stored hours that followed it stay"

    async def _costs_of(
        self, sources: AccountSources, account: str, stretch: Stretch, hours: Mapping[int, Marker]
    ) -> dict[str, Costs]:
        """What stored hours cost, by owner."""
        committed = CommittedHours(account, stretch.start, stretch.end, hours)
        filters = Filters(clusters=sources.clusters.named)
        sums = await self._store.run(self._store.history.sums, committed, ("namespace",), filters)
        return {str(one.keys[0]): one.costs for one in sums if str(one.keys[0]) != MANAGEMENT}

    async def _staying(self, account: str, stretch: Stretch, committed: Mapping[int, Marker]) -> Mapping[int, Marker]:
        """Committed hours that follow their day: what was read without the day must not replace them."""
        begun = (account, stretch.start - DAY + HOUR, stretch.end)
        followed = await self._store.run(self._store.followed_days.of, *begun)
        return {h: marker for h, marker in committed.items() if any(day <= h < day + DAY for day in followed)}

    async def _with_gaps(self, account: str, missing: dict[int, str], now: int) -> Outcome:
        if missing:
            gaps = [Gap(hour, now, why) for hour, why in sorted(missing.items())]
            await self._store.run(self._store.gaps.record, account, gaps)
        return Outcome(missing=missing)

    async def _audit(
        self, order: RepairOrder, committed: Mapping[int, Marker], changed: Sequence[HourBatch], now: int
    ) -> None:
        repairs = [
            Repair(
                account=batch.account, hour=batch.hour, repair=order.id, who=order.who, why=order.why,
                before=committed[batch.hour].total if batch.hour in committed else 0.0,
                after=fsum(batch.sums().values()),
                before_batch=committed[batch.hour].batch if batch.hour in committed else 0, repaired_at=now,
            )
            for batch in changed
        ]  # fmt: skip
        await self._store.run(self._store.jobs.audit, repairs)


def assemble(
    account: str, readings: Sequence[HourReading], day: Mapping[str, Costs] | None, now: int, currency: str = "USD"
) -> tuple[list[HourBatch], Spread | None]:
    """What to store of hours, in order; with a day's own set they are all of its hours, and follow it."""
    rows: Sequence[Allocations] = [in_order(reading.allocations) for reading in readings]
    loose = [reading.gone or reading.from_its_day for reading in readings]
    followed = follow(rows, loose, day) if day is not None else None
    if followed is None:
        followed_rows, usd, agrees, bound = rows, (0.0,) * len(readings), True, 0.0
    else:
        followed_rows, usd, agrees, bound = followed.hours, followed.usd, followed.reconciled, followed.bound
    batches = []
    for reading, allocations, added in zip(readings, followed_rows, usd, strict=True):
        held_against = control(reading.allocations, reading.control) if reading.control is not None else None
        reconciled = agrees and (held_against is None or held_against.reconciled)
        batches.append(
            HourBatch(
                account=account,
                hour=reading.hour,
                allocations=allocations,
                management=reading.management,
                nodes={name: NodeKind(*kind) for name, kind in reading.nodes.items()},
                residual=held_against.residual if held_against else 0.0,
                spread=added,
                reconciled=reconciled,
                residual_bound=bound,
                seconds=reading.seconds,
                quarantined=reading.quarantined,
                unknown=reading.unknown,
                not_covered=reading.not_covered,
                fetched_at=reading.told_at or now,
                currency=currency,
                source=reading.source,
                told_from=reading.cut_from[0] if reading.cut_from else 0,
                told_until=reading.cut_from[1] if reading.cut_from else 0,
                digest=digest(allocations, reading, reconciled, currency),
            )
        )
    return batches, followed


def _without(hours: Mapping[int, T], others: Container[int]) -> dict[int, T]:
    return {hour: one for hour, one in hours.items() if hour not in others}


class Verdict(Struct, frozen=True):
    """What becomes of hours that are cut out of their day beside hours that were told."""

    replaced: frozenset[int] = frozenset()
    """Stored hours that the day contradicts and nobody can ask for again: hours cut out of the day replace them."""
    empty: frozenset[int] = frozenset()
    """Hours for which the day leaves no cost: everything in it ran in the other hours."""


def beside_its_day(
    readings: Mapping[int, HourReading], kept: Set[int], day: Mapping[str, Costs], told: Mapping[str, Costs]
) -> Verdict:
    """Hold what a day says against the hours of it that are kept as they were told.

    Args:
        readings: the hours as they are read now; those that the source keeps no longer are cut out of the day.
        kept: hours that are stored as they were told, and cannot be told again.
        day: what the day says, by owner.
        told: what the kept hours cost, by owner.
    """
    firm = [reading for reading in readings.values() if not reading.from_its_day]
    cut = {hour: reading for hour, reading in readings.items() if reading.from_its_day and hour not in kept}
    says = fsum(costs.total for costs in day.values())
    rest = fsum([says, *(-one.allocations.total() for one in firm), *(-costs.total for costs in told.values())])
    if not cut:
        share = SPREAD_SHARE if firm else SAME_SHARE  # hours that can be asked for follow their day as far as that
        return Verdict(replaced=frozenset(kept)) if abs(rest) > SAME_USD + share * abs(says) else Verdict()
    estimate = fsum(reading.allocations.total() for reading in cut.values())
    if any(reading.gone for reading in firm) or not estimate:
        return Verdict()
    left = rest / estimate
    if abs(left) < LEAST_LEFT:
        return Verdict(empty=frozenset(cut))
    return Verdict() if 0.0 < left <= MOST_LEFT else Verdict(replaced=frozenset(kept))


def _not_replaced(
    readings: Mapping[int, HourReading], committed: Mapping[int, Marker], repaired: bool
) -> dict[int, str]:
    """Stored hours that a reading must not replace, each with the reason."""
    found = {}
    for hour, reading in readings.items():
        stored = committed.get(hour)
        if stored is not None and not _may_replace(reading, stored):
            found[hour] = KEPT_NO_LONGER
        elif stored is not None and 0 < reading.told_at < stored.fetched_at:
            found[hour] = NOTHING_NEWER
        elif stored is not None and not repaired and reading.seconds < COVERAGE_THRESHOLD * stored.seconds:
            found[hour] = COVERS_LESS
    return found


def _may_replace(reading: HourReading, stored: Marker) -> bool:
    """Whether a reading may take the place of a stored hour.

    What the first source says of the hour itself replaces anything. What is cut from a longer time, or told by another
    source, replaces only what came about in the same way: neither is surely better than the other.
    """
    as_read = (reading.source, reading.cut_from is not None)
    return as_read == ("", False) or as_read == (stored.source, stored.told_until > 0)


def _still_filling(reading: HourReading, now: int) -> bool:
    """Whether the source may not have the whole hour yet."""
    over = reading.hour + HOUR
    return reading.seconds < COVERAGE_THRESHOLD * HOUR and now < over + SETTLING_SECONDS


_ORDER = ("name", "namespace", "pod", "container", "node")


def in_order(allocations: Allocations) -> Allocations:
    """The rows by their names: two readings that say the same are the same, whatever the order of their answers."""
    ranks = [allocations.texts[field].ranked()[0] for field in reversed(_ORDER)]
    return allocations.take(np.lexsort(ranks)) if len(allocations) else allocations


def digest(allocations: Allocations, reading: HourReading, reconciled: bool, currency: str) -> int:
    """A number that stands for everything that is stored of an hour."""
    hashed = blake2b(digest_size=8)
    for numbers in (allocations.measures, allocations.unknown, allocations.start, allocations.end):
        hashed.update(np.ascontiguousarray(numbers).tobytes())
    for field, column in sorted(allocations.texts.items()):
        hashed.update(_ENCODER.encode((field, column.list())))
    besides = (
        reading.management, reading.seconds, reading.quarantined, reading.unknown, reading.not_covered, reconciled,
        sorted(reading.nodes.items()), currency,
    )  # fmt: skip
    if reading.source or reading.cut_from:  # apart, so that what was stored before these were known has the same number
        hashed.update(_ENCODER.encode((reading.source, reading.cut_from)))
    hashed.update(_ENCODER.encode(besides))
    return int.from_bytes(hashed.digest(), "big")
