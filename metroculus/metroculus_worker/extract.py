"""Reads hours from an account's source and commits them: what is unchanged is confirmed, what is missing is a gap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import fsum

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.allocation import Allocation, Costs
from metroculus.cost_model.hours import control, spread
from metroculus.cost_model.statement import COVERAGE_THRESHOLD
from metroculus.metroculus_worker.ownership import Owned
from metroculus.metroculus_worker.plan import Stretch, closed
from metroculus.sources.accounts import Accounts
from metroculus.sources.errors import SourceError
from metroculus.sources.hours import HourReading, HourSource, hour_source
from metroculus.storage.gaps import Gap
from metroculus.storage.jobs import Repair
from metroculus.storage.ledger import HourBatch, Marker
from metroculus.storage.rows import NodeKind
from metroculus.storage.store import Store
from tools.window import DAY, HOUR, SETTLING_SECONDS

log = logging.getLogger("extract")

_ENCODER = msgspec.json.Encoder()


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

    @property
    def rows(self) -> int:
        return sum(marker.rows for marker in self.written)

    @property
    def total(self) -> float:
        return fsum(marker.total for marker in self.written)


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

    async def extract(self, account: str, owned: Owned, stretch: Stretch, order: RepairOrder | None = None) -> Outcome:
        """Read a stretch and store what it says.

        Raises:
            StoreError: nothing of what was not committed is visible.
            LostOwnership
        """
        source = hour_source(account, await self._accounts.of(account), self._timeout)
        now = int(self._clock())
        if source is None:
            return await self._with_gaps(account, dict.fromkeys(stretch.hours, "no cost source is configured"), now)
        read = await source.hours(stretch.start, stretch.end)
        missing = dict(read.missing)
        whole = {h: r for h, r in read.hours.items() if not _still_filling(r, now)}
        missing |= {h: "the source has not filled this hour yet" for h in read.hours if h not in whole}
        held = (await self._store.run(self._store.ledger.held, account, stretch.start, stretch.end)).hours
        day, told_day = await self._day(source, stretch, len(whole))
        if not told_day:  # rows that do not follow the day's set must not replace rows that do
            whole = {hour: reading for hour, reading in whole.items() if hour not in held}
        readings = [whole[hour] for hour in sorted(whole)]
        batches = await self._store.run(assemble, account, readings, day, now)
        same = [held[b.hour] for b in batches if b.hour in held and held[b.hour].digest == b.digest]
        changed = [b for b in batches if b.hour not in held or held[b.hour].digest != b.digest]
        kept = [b.hour for b in changed if b.hour in held and closed(b.hour, now) and order is None]
        changed = [b for b in changed if b.hour not in kept]
        if not owned.still():
            raise LostOwnership(account)
        if order is not None:  # first: a change that nobody knows of would be worse than one that did not come about
            await self._audit(order, held, changed, now)
        written = await self._store.run(self._store.ledger.commit, changed, owned.pen)
        await self._store.run(self._store.ledger.confirm, account, same, owned.pen, now)
        told = await self._with_gaps(account, missing, now)
        return replace(
            told, written=tuple(written), confirmed=tuple(m.hour for m in same), kept=tuple(kept), failure=read.failure
        )

    async def _day(self, source: HourSource, stretch: Stretch, hours: int) -> tuple[dict[str, Costs] | None, bool]:
        """The set of a day that is over and whose hours are all there, and whether it could be asked for."""
        if not stretch.whole or hours * HOUR != DAY:
            return None, True
        try:
            return await source.day(stretch.start), True
        except SourceError as failure:
            log.info("the set of a day could not be had: %s", failure)
            return None, False

    async def _with_gaps(self, account: str, missing: dict[int, str], now: int) -> Outcome:
        if missing:
            gaps = [Gap(hour, now, why) for hour, why in sorted(missing.items())]
            await self._store.run(self._store.gaps.record, account, gaps)
        return Outcome(missing=missing)

    async def _audit(
        self, order: RepairOrder, held: Mapping[int, Marker], changed: Sequence[HourBatch], now: int
    ) -> None:
        repairs = [
            Repair(
                account=batch.account, hour=batch.hour, repair=order.id, who=order.who, why=order.why,
                before=held[batch.hour].total if batch.hour in held else 0.0, after=fsum(batch.sums().values()),
                before_batch=held[batch.hour].batch if batch.hour in held else 0, repaired_at=now,
            )
            for batch in changed
        ]  # fmt: skip
        await self._store.run(self._store.jobs.audit, repairs)


def assemble(
    account: str, readings: Sequence[HourReading], day: Mapping[str, Costs] | None, now: int
) -> list[HourBatch]:
    """What to store of hours, in order; with a day's own set they are all of its hours, and follow it."""
    rows: Sequence[Sequence[Allocation]] = [sorted(reading.allocations, key=_by_name) for reading in readings]
    usd: Sequence[float] = (0.0,) * len(readings)
    agrees = True
    if day is not None:
        followed = spread(rows, day)
        rows, usd, agrees = followed.hours, followed.usd, followed.reconciled
    batches = []
    for reading, allocations, added in zip(readings, rows, usd, strict=True):
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
                seconds=reading.seconds,
                quarantined=reading.quarantined,
                unknown=reading.unknown,
                not_covered=reading.not_covered,
                fetched_at=now,
                digest=digest(allocations, reading, reconciled),
            )
        )
    return batches


def _still_filling(reading: HourReading, now: int) -> bool:
    """Whether the source may not have the whole hour yet."""
    over = reading.hour + HOUR
    return reading.seconds < COVERAGE_THRESHOLD * HOUR and now < over + SETTLING_SECONDS


def _by_name(allocation: Allocation) -> tuple[str, ...]:
    return (allocation.name, allocation.namespace, allocation.pod, allocation.container, allocation.node)


def digest(allocations: Sequence[Allocation], reading: HourReading, reconciled: bool) -> int:
    """A number that stands for everything that is stored of an hour."""
    hashed = blake2b(_ENCODER.encode_lines(allocations), digest_size=8)
    besides = (
        reading.management, reading.seconds, reading.quarantined, reading.unknown, reading.not_covered, reconciled,
        sorted(reading.nodes.items()),
    )  # fmt: skip
    hashed.update(_ENCODER.encode(besides))
    return int.from_bytes(hashed.digest(), "big")
