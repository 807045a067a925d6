"""What is kept for each UTC day that is over: what a cluster was made of, and what could be saved."""

from __future__ import annotations

from collections.abc import Callable

from metroculus.cost_model.assets import Asset
from metroculus.cost_model.savings import FoundSavings
from metroculus.metroculus_worker.ownership import Owned
from metroculus.sources.accounts import Accounts
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.window import DAY, SETTLING_SECONDS, Window

SAVINGS_OF_DAYS = 7
READ_AGAIN_DAYS = 3
"""Days younger than this are read again: bills arrive late."""


async def extract_assets(
    store: Store,
    accounts: Accounts,
    account: str,
    owned: Owned,
    window: tuple[int, int],
    clock: Callable[[], float],
    seconds_a_call: float,
) -> int:
    """Store the days of a window that are over and lack, or may still change.

    Returns:
        how many days were written.

    Raises:
        SourceError, StoreError
    """
    now = int(clock())
    first, last = window[0] - window[0] % DAY, min(window[1], now - SETTLING_SECONDS)
    last -= last % DAY
    if first >= last:
        return 0
    stored = await store.run(store.assets.days, account, first, last)
    wanted = [d for d in range(first, last, DAY) if d not in stored or d + (READ_AGAIN_DAYS + 1) * DAY > now]
    written = 0
    for day in reversed(wanted):
        assets = await _read(accounts, account, Window.past(day, day + DAY), seconds_a_call)
        if assets and owned.still():
            batch = store.ledger.new_batch()
            await store.run(store.assets.commit, account, day, assets, batch, now, owned.writer)
            written += 1
    return written


def settled_day(now: int) -> int:
    """The first second of the last UTC day that is over and has settled."""
    settled = now - SETTLING_SECONDS
    return settled - settled % DAY - DAY


async def extract_savings(
    store: Store, accounts: Accounts, account: str, owned: Owned, clock: Callable[[], float], seconds_a_call: float
) -> bool:
    """Store what could be saved as of the last day that has settled, where that is not stored yet.

    Returns:
        whether it is stored now; where it could not be had whole, the next round tries again.

    Raises:
        StoreError
    """
    now = int(clock())
    day = settled_day(now)
    if await store.run(store.savings.has, account, day):
        return True
    sources = await accounts.of(account)
    if not sources.any:
        return False
    week = Window.past(day + DAY - SAVINGS_OF_DAYS * DAY, day + DAY)
    reading = await sources.savings(week, None, Deadline(seconds_a_call))
    if reading.source.status != "ok":
        return False
    unused, told = await sources.unused(Window.past(day, day + DAY), Deadline(seconds_a_call))
    if told is not None and not told.fine:
        return False
    found = FoundSavings(
        currency=await sources.currency(Deadline(seconds_a_call)),
        window_seconds=week.seconds,
        usages=reading.usages,
        recommendations=() if reading.usages else reading.recommendations,
        by_category=reading.by_category,
        unused=tuple(unused),
    )
    if not owned.still():
        return False
    await store.run(store.savings.commit, account, day, found, now, owned.writer)
    return True


async def _read(accounts: Accounts, account: str, window: Window, seconds_a_call: float) -> tuple[Asset, ...]:
    """A day's assets; none where the source does not have them whole."""
    sources = await accounts.of(account)
    if not sources.any:
        return ()
    reading = await sources.assets(window, Deadline(seconds_a_call))
    return reading.assets if reading.source.status == "ok" else ()
