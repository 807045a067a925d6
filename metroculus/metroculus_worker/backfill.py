"""Fills a stretch of the past: what is stored stays, what lacks is read, day by day."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Set

from msgspec import Struct

from metroculus.metroculus_worker.extract import Extractor, Outcome, RepairOrder
from metroculus.metroculus_worker.ownership import Owned
from metroculus.plan import Stretch, closed, day_of, last_complete_hour
from metroculus.storage.store import Store
from tools.window import DAY, HOUR, SETTLING_SECONDS


class Progress(Struct, frozen=True, kw_only=True):
    """How far a back-fill is, in hours; ``missing`` could not be had."""

    total: int
    done: int = 0
    missing: int = 0
    last_reason: str = ""

    @property
    def complete(self) -> bool:
        return self.done == self.total


Report = Callable[[Progress], None]


async def do_nothing() -> None:
    """The default of ``before_a_day``."""


def bounds(first: int, last: int, now: int) -> tuple[int, int]:
    """Whole hours of ``[first, last)`` that are over and settled."""
    settled = last_complete_hour(now - SETTLING_SECONDS)
    return first - first % HOUR, min(last + -last % HOUR, settled)


async def backfill(
    store: Store,
    extractor: Extractor,
    account: str,
    owned: Owned,
    window: tuple[int, int],
    parallel: int,
    report: Report,
    order: RepairOrder | None = None,
    before_a_day: Callable[[], Awaitable[None]] = do_nothing,
) -> Progress:
    """Store every hour of a window, the newest days first; with an ``order`` stored and closed hours are read again.

    An open hour that another source told instead of the first one is asked for once more, and counts as stored. Where
    the source does not answer, it is asked no further: the hours that are left are missing.

    Args:
        window: whole hours.
        parallel: days that the source is asked for side by side.
        before_a_day: what goes before each.

    Raises:
        StoreError, LostOwnership
    """
    first, last = window
    committed = await store.run(store.ledger.committed, account, first, last)
    told = {h for h, marker in committed.hours.items() if not marker.source or closed(h, extractor.now())}
    lacking = set(range(first, last, HOUR)) - (set() if order else told)
    stored = set() if order else set(committed.hours)
    total = max(0, last - first) // HOUR
    progress = Progress(total=total, done=total - len(lacking))
    report(progress)
    gate = asyncio.Semaphore(max(1, parallel))
    reader = _DayReader(extractor, account, owned, order, range(first, last, HOUR))

    async def day(stretch: Stretch) -> None:
        nonlocal progress
        async with gate:
            await before_a_day()
            outcome = await reader.extract(stretch)
        wanted = lacking & set(stretch.hours)
        missing = (wanted & set(outcome.missing)) - stored
        progress = Progress(
            total=total,
            done=progress.done + len(wanted) - len(missing),
            missing=progress.missing + len(missing),
            last_reason=next(iter(outcome.missing.values()), progress.last_reason),
        )
        report(progress)

    shift = await extractor.day_shift(account) if lacking else 0
    days = [asyncio.create_task(day(one)) for one in _stretches(lacking, window, shift, extractor.now())]
    try:
        await asyncio.gather(*days)
    finally:  # one day that could not be stored ends the others: they would fail the same way
        for task in days:
            task.cancel()
        await asyncio.gather(*days, return_exceptions=True)
    return progress


class _DayReader:
    """Reads one day after another of one account, until its source does not answer."""

    def __init__(
        self, extractor: Extractor, account: str, owned: Owned, order: RepairOrder | None, asked: range
    ) -> None:
        self._extractor = extractor
        self._account = account
        self._owned = owned
        self._order = order
        self._asked = asked
        self._silence: str | None = None

    async def extract(self, stretch: Stretch) -> Outcome:
        """A day; one that is not answered in time is asked for by fewer hours at once, down to single ones."""
        while self._silence is None:
            at_once = self._extractor.hours_a_call(self._account)
            outcome = await self._extractor.extract(self._account, self._owned, stretch, self._order, self._asked)
            if not outcome.silent:
                return outcome
            if self._extractor.hours_a_call(self._account) >= at_once:
                self._silence = outcome.failure or ""
                return outcome
        return Outcome(missing=dict.fromkeys(stretch.hours, self._silence), failure=self._silence, silent=True)


def _stretches(lacking: Set[int], window: tuple[int, int], shift: int, now: int) -> Iterator[Stretch]:
    """The days of which hours lack, the newest first."""
    first, last = window
    for start in range(day_of(last - 1, shift), first - DAY, -DAY):
        wanted = [hour for hour in range(max(start, first), min(start + DAY, last), HOUR) if hour in lacking]
        if wanted:
            yield _stretch(start, wanted, now)


def _stretch(day: int, wanted: list[int], now: int) -> Stretch:
    """A day that is over is read whole, so that its hours can follow its own set."""
    if day + DAY + SETTLING_SECONDS <= now:
        return Stretch(day, day + DAY, whole=True)
    return Stretch(wanted[0], wanted[-1] + HOUR)
