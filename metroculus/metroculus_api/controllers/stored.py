"""What the store holds of a window, as a reading beside those of the live sources."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from math import fsum

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.reading import (
    COVERAGE_THRESHOLD,
    AllocationReading,
    AllocationSet,
    ManagementReading,
    SourceReport,
    StoredReading,
)
from metroculus.cost_model.statement import Question
from metroculus.storage.engine import StoreError
from metroculus.storage.ledger import CommittedHours, Marker
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.window import DAY, HOUR, Window
from tools.zones import Period

log = logging.getLogger("stored")

STORE = "store"


HOURS_AT_ONCE = 60_000
"""Of all accounts together: some tens of megabytes, and some seconds of the oldest servers."""


def in_groups(accounts: Sequence[str], seconds: int) -> Iterator[Sequence[str]]:
    """Split accounts into groups of which so many seconds each come to ``HOURS_AT_ONCE`` at most."""
    size = max(1, HOURS_AT_ONCE * HOUR // max(HOUR, seconds))
    return (accounts[first : first + size] for first in range(0, len(accounts), size))


def properties_of(question: Question) -> tuple[str, ...]:
    """What rows of the store must be told apart by, beside their namespace, to answer a question."""
    needed = question.grouping.needed(question.filters)
    if not needed:
        return ()
    # A pod's rows are read with its namespace and all its services; a filter by service needs no column of its own.
    grouped = [name for name in needed if name != "service" or "service" in question.aggregate]
    return ("pod", *(name for name in grouped if name not in ("namespace", "pod")))


def source_of(committed: CommittedHours, window: Window, divided: Period | None = None) -> SourceReport:
    """How much of a window's final time is stored, and what is to be said of it.

    Args:
        divided: into which periods of the window's zone its figures are divided.
    """
    hours = committed.hours.values()
    final = [m.seconds for m in hours if m.hour < window.final_until]
    share = min(1.0, sum(final) / window.final_seconds) if window.final_seconds else None
    notes = []
    unreconciled = [m for m in hours if not m.reconciled]
    bound = residual_bound(unreconciled)
    if unreconciled:
        notes.append(
            f"{len(unreconciled)} hours are unreconciled: they differ from the source's own totals by up to {bound:.5f}"
        )
    quarantined = sum(m.quarantined for m in hours)
    if quarantined:
        notes.append(f"{quarantined} rows could not be read and are not counted")
    unknown = sorted({name for m in hours for name in m.unknown})
    if unknown:
        notes.append(f"stored without a value for: {', '.join(unknown)}")
    cut = cut_hours(committed)
    alone = _without_the_rest(cut, committed, window, divided)
    if cut:
        notes.append(
            f"{len(cut)} hours are parts of longer times that the source told, by when each thing ran"
            + (f"; {alone} of them without the rest of theirs" if alone else "")
        )
    for source in sorted({m.source for m in hours if m.source}):
        notes.append(f"{sum(m.source == source for m in hours)} hours were told by {source}")
    if committed.passed_over:
        notes.append(f"{len(committed.passed_over)} stored batches are not whole and were passed over")
    covered = sum(m.seconds for m in hours)
    thin = covered < COVERAGE_THRESHOLD * HOUR * len(committed.hours)
    return SourceReport(
        name=STORE,
        status="partial" if quarantined or unknown or thin or unreconciled or alone else "ok",
        fetched_at=min((m.fetched_at for m in hours), default=None),
        coverage=share,
        warnings=tuple(notes),
        residual_bound=bound if unreconciled else None,
    )


def cut_hours(committed: CommittedHours) -> list[Marker]:
    """The hours that are parts of longer times that were told: exact only together with the rest of those."""
    return [marker for marker in committed.hours.values() if marker.told_until]


def _without_the_rest(cut: Sequence[Marker], committed: CommittedHours, window: Window, divided: Period | None) -> int:
    """How many hours are estimates: the longer time that they were cut from is not all in one figure."""
    spans = {(marker.told_from, marker.told_until) for marker in cut}
    whole = {span for span in spans if _all_cut(span, committed)}

    def in_one_figure(marker: Marker) -> bool:
        start, end = committed.start, committed.end
        if divided is not None:
            first, last = window.zone.period(marker.hour, divided)
            start, end = max(start, first), min(end, last)
        return start <= marker.told_from and marker.told_until <= end

    return sum((one.told_from, one.told_until) not in whole or not in_one_figure(one) for one in cut)


def _all_cut(span: tuple[int, int], committed: CommittedHours) -> bool:
    """Whether every hour of a longer time is stored as a part of it, so that they add up to it."""
    start, end = span
    inside = (committed.hours.get(hour) for hour in range(start - start % HOUR, end, HOUR))
    return all(one is not None and one.told_from < end and one.told_until > start for one in inside)


def currencies_of(committed: CommittedHours) -> list[str]:
    """What the money of stored hours is in; more than one where a source changed its mind."""
    return sorted({marker.currency for marker in committed.hours.values()})


def residual_bound(unreconciled: Iterable[Marker]) -> float:
    """How far hours may be from their own totals: each from its control, and each day's from the day."""
    days: list[Marker] = []
    apart = []
    for marker in sorted(unreconciled, key=lambda one: one.hour):
        apart.append(abs(marker.residual))
        # The hours of one day say the same bound; days of a source may begin at any hour.
        if not days or days[-1].residual_bound != marker.residual_bound or marker.hour - days[-1].hour >= DAY:
            days.append(marker)
    return fsum((*apart, *(marker.residual_bound for marker in days)))


def whole(committed: CommittedHours, source: SourceReport) -> bool:
    """Whether what is stored of a window is all of its final time, and all known."""
    covered = source.coverage is None or source.coverage >= COVERAGE_THRESHOLD
    return bool(committed.hours) and covered and source.status == "ok"


def reading_of(committed: CommittedHours, window: Window, stored: AllocationSet, usd: float | None) -> StoredReading:
    """The stored rows with what the markers say, and management of the same hours."""
    hours = committed.hours.values()
    source = source_of(committed, window)
    missing = {name for m in hours for name in m.unknown} - {"management"}
    not_covered = {name for m in hours for name in m.not_covered}
    known = not any("management" in (*m.unknown, *m.not_covered) for m in hours)
    return StoredReading(
        AllocationReading(
            source=source,
            sets=(stored,),
            missing=tuple(sorted(missing)),
            not_covered=tuple(sorted(not_covered - {"management"} - missing)),
        ),
        ManagementReading(source=source, usd=(usd or 0.0) if known else None, covers="management" not in not_covered),
        window.only(committed.missing()),
    )


def share_of(deadline: Deadline) -> float:
    """Seconds that a question to the store may take, so that a store that hangs leaves time to ask the others."""
    return max(0.0, deadline.left() / 2)


def in_one_currency(committed: CommittedHours, live: str) -> tuple[CommittedHours, str, str | None]:
    """The hours whose money may be added, what it is in, and what is to be said of the others.

    Money in different currencies is never added. What the live source says now counts where it tells a part of the
    window, else what the newest hour says.

    Args:
        live: the currency of the live source; empty where that is not known.
    """
    hours = committed.hours
    found = currencies_of(committed)
    newest = hours[max(hours)].currency
    chosen = live if live and (committed.missing() or live in found) else newest
    others = [hour for hour, marker in hours.items() if marker.currency != chosen]
    if not others:
        return committed, chosen, None
    told = ", ".join(sorted({hours[hour].currency for hour in others}))
    note = f"{len(others)} hours are in {told} and are not counted; nothing is converted"
    kept = {hour: marker for hour, marker in hours.items() if marker.currency == chosen}
    return replace(committed, hours=kept), chosen, note


def of_sources(committed: CommittedHours, unable_sources: frozenset[str]) -> CommittedHours:
    """The hours without those that were told by sources that cannot tell what is asked for."""
    kept = {hour: marker for hour, marker in committed.hours.items() if marker.source not in unable_sources}
    return committed if len(kept) == len(committed.hours) else replace(committed, hours=kept)


class ReadAhead(Struct, frozen=True):
    """What is stored of several accounts in one window, by account: hours, and their sums by namespace."""

    committed: Mapping[str, CommittedHours]
    sums: Mapping[str, tuple[AllocationSet, float | None]]
    failed: bool = False
    """Whether the store could not be asked: it is not asked again for each of them."""


class StoredHours:
    """Reads a window's committed hours; a store that fails is a source that failed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read_ahead(self, accounts: Sequence[str], window: Window, deadline: Deadline) -> ReadAhead:
        """What ``read`` needs of many accounts, with as many questions as of one."""
        store = self._store
        try:
            asked = (list(accounts), window.start, window.end)
            committed = await store.ask(share_of(deadline), store.ledger.committed_of, *asked)
            stored = [one for one in committed.values() if one.hours]
            sums = await store.ask(share_of(deadline), store.history.allocations_of, stored)
        except StoreError as failure:
            log.warning("the store failed: %s", failure)
            return ReadAhead({}, {}, failed=True)
        return ReadAhead(committed, dict(zip([one.account for one in stored], sums, strict=True)))

    async def read(
        self,
        question: Question,
        unable_sources: frozenset[str],
        live_currency: Callable[[], Awaitable[str]],
        deadline: Deadline,
        ahead: ReadAhead | None = None,
    ) -> tuple[StoredReading | None, SourceReport | None, str]:
        """What is stored, None where nothing is; the store as a source where it could not be asked; the currency.

        Args:
            unable_sources: sources whose hours cannot tell what is asked for; they are asked live.
            ahead: what was read of this window already.
            live_currency: asks what the money of the live source is in, empty where that is not known; asked only
                where something of the window is live, or stored in several currencies.
        """
        window, store, currency = question.window, self._store, question.currency
        try:
            account = question.cloud_account_id
            if ahead is not None and ahead.failed:
                raise StoreError("it could not be asked a moment ago")
            if ahead is not None:
                found = ahead.committed[account]
            else:
                found = await store.ask(share_of(deadline), store.ledger.committed, account, window.start, window.end)
            committed = of_sources(found, unable_sources)
            if not committed.hours:
                return None, None, currency
            if committed.missing() or len(currencies_of(committed)) > 1:
                currency = await live_currency()
            counted, currency, note = in_one_currency(committed, currency)
            properties, clusters = properties_of(question), question.filters.clusters
            stored, usd = AllocationSet(window.start, window.start), None
            if ahead is not None and counted is found and not properties and not clusters:
                stored, usd = ahead.sums[account]
            elif counted.hours:
                asked = (counted, properties, clusters)
                stored, usd = await store.ask(share_of(deadline), store.history.allocations, *asked)
        except StoreError as failure:
            log.warning("the store failed: %s", failure)
            return None, SourceReport(name=STORE, status="unavailable", error="the store cannot be used"), currency
        reading = reading_of(counted, window, stored, usd)
        if note is not None:
            reading = _with_note(reading, note, window.only(committed.missing()))
        return reading, None, currency


def _with_note(reading: StoredReading, note: str, rest: Window) -> StoredReading:
    """A reading that leaves something out of what is stored: that is not asked live, and the store is partial."""
    source = replace(reading.allocation.source, status="partial", warnings=(*reading.allocation.source.warnings, note))
    return replace(
        reading,
        allocation=replace(reading.allocation, source=source),
        management=replace(reading.management, source=source),
        rest=rest,
    )
