"""What the store holds of a window, as a reading beside those of the live sources."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from metroculus.cost_model.reading import (
    AllocationReading,
    AllocationSet,
    ManagementReading,
    SourceReport,
    StoredReading,
)
from metroculus.cost_model.statement import Question
from metroculus.storage.coverage import STORE, currencies_of, source_of
from metroculus.storage.engine import StoreError
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from tools.deadline import Deadline
from tools.window import Window

log = logging.getLogger("stored")


def properties_of(question: Question) -> tuple[str, ...]:
    """What rows of the store must be told apart by, beside their namespace, to answer a question."""
    needed = question.grouping.needed(question.filters)
    if not needed or by_namespace(question):
        return ()
    # A pod's rows are read with its namespace and all its services; a filter by service needs no column of its own.
    grouped = [name for name in needed if name != "service" or "service" in question.properties]
    return ("pod", *(name for name in grouped if name not in ("namespace", "pod")))


def by_namespace(question: Question) -> bool:
    """Whether sums of namespaces, each with the names of its pods, are enough: idle is shared by what pods cost."""
    return question.grouping.needed(question.filters) == ("namespace",) and question.idle != "share"


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
            sets=(stored,) if hours else (),
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
    """What is stored of several accounts in one window, by account: hours, and their sums by namespace if read."""

    committed: Mapping[str, CommittedHours]
    sums: Mapping[str, tuple[AllocationSet, float | None]]
    failed: bool = False
    """Whether the store could not be asked: it is not asked again for each of them."""


class StoredHours:
    """Reads a window's committed hours; a store that fails is a source that failed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def read_ahead(
        self, accounts: Sequence[str], window: Window, deadline: Deadline, sums: bool = True
    ) -> ReadAhead:
        """What ``read`` needs of many accounts, with as many questions as of one.

        Args:
            sums: whether by namespace, too; else the hours alone.
        """
        store = self._store
        try:
            asked = (list(accounts), window.start, window.end)
            committed = await store.ask(share_of(deadline), store.ledger.committed_of, *asked)
            if not sums:
                return ReadAhead(committed, {})
            stored = [one for one in committed.values() if one.hours]
            told = await store.ask(share_of(deadline), store.history.allocations_of, stored)
        except StoreError as failure:
            log.warning("the store failed: %s", failure)
            return ReadAhead({}, {}, failed=True)
        return ReadAhead(committed, dict(zip([one.account for one in stored], told, strict=True)))

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
            with_pods = by_namespace(question)
            plain = counted is found and not properties and not clusters and not with_pods
            if ahead is not None and account in ahead.sums and plain:
                stored, usd = ahead.sums[account]
            elif counted.hours:
                by_services = "service" in question.grouping.needed(question.filters)
                asked = (counted, properties, clusters, by_services, with_pods)
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
