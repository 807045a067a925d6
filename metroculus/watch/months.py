"""An organization's months: what is stored of its clusters, shared out by its rules, or as it was closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from math import fsum

import msgspec
import numpy as np
from cachetools import LRUCache
from msgspec import Struct

from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.reading import union, without
from metroculus.cost_model.rules import Cell, Charges, Rules, share_out
from metroculus.sources.accounts import Accounts
from metroculus.storage.coverage import by_clusters, by_currency, currencies_of
from metroculus.storage.engine import StoreError
from metroculus.storage.history import CostSums
from metroculus.storage.store import Store
from metroculus.storage.summaries import Answer
from metroculus.wire import coverage_of
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.window import HOUR, SETTLING_SECONDS, Window
from tools.zones import UTC_ZONE

SMALL_RESIDUAL = 0.01
"""Of a month's total: by so much its hours may differ from their source's own totals when it is closed."""
CLOSED_KEPT = 64


class Adjustment(structs.ChargebackAdjustment, frozen=True, kw_only=True):
    """What a closed month costs more than it said, for one row of the view ``by``."""

    by: str


class RowTotal(Struct, frozen=True, array_like=True):
    """What one row comes to."""

    name: str
    kind: str
    currency: str
    total: float


class StoredMonth(Struct, frozen=True, kw_only=True):
    """What is stored of a month."""

    cells: tuple[Cell, ...]
    statements: tuple[structs.ChargebackStatement, ...]
    accounts: tuple[structs.AccountCoverage, ...]
    hours: dict[str, tuple[tuple[int, int], ...]]
    """The stretches of hours that are stored, by account."""
    clusters: dict[str, tuple[str, ...]]
    """The clusters that each account is limited to; none where it has one alone."""
    gaps: tuple[str, ...]
    """What it lacks, as sentences."""
    silent: tuple[str, ...] = ()
    """Components that some hour of some cluster does not tell."""


class ReadMonth(StoredMonth, frozen=True, kw_only=True):
    notes: tuple[str, ...]


class Closed(StoredMonth, frozen=True, kw_only=True):
    """A month shared out; one that was closed is never changed."""

    rules: Rules
    charges: Charges
    adjustments: tuple[Adjustment, ...]
    total: dict[str, float]
    previous: dict[str, tuple[RowTotal, ...]] = {}
    """The rows of the month before by view, as they were."""
    closed_at: int = 0
    accept_incomplete: str | None = None
    fingerprints: dict[str, int] = {}
    """Of the month's markers, by account: another number where something was stored since."""


_CLOSED = msgspec.json.Decoder(Closed, dec_hook=lambda _, rows: np.array(rows, dtype=float))
_RULES = msgspec.json.Decoder(Rules)
_ACCOUNTS = msgspec.json.Decoder(list[str])


class Decisions(Struct, frozen=True):
    """What an organization has decided."""

    organization: str
    accounts: tuple[str, ...]
    versions: tuple[Rules, ...]
    closed: tuple[str, ...]
    """Closed months, in order."""
    sequences: Mapping[str, int] = {}
    """Of the documents of its rules, by the month that they are valid from."""

    def rules(self, month: str) -> Rules:
        """Those that hold for a month: the last that are valid by then; none of anything before the first."""
        valid = [one for one in self.versions if one.valid_from <= month]
        return valid[-1] if valid else Rules(valid_from=str(month))


class Months:
    """Reads an organization's decisions, and its months by them."""

    def __init__(self, accounts: Accounts, store: Store, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock
        self._closed: LRUCache[tuple[str, str], Closed] = LRUCache(CLOSED_KEPT)
        """Closed months by organization and month: they never change."""

    async def decisions(self, organization: str, deadline: Deadline) -> Decisions:
        """What an organization has decided.

        Raises:
            StoreError
        """
        store = self._store

        def read() -> Decisions:
            accounts = store.documents.newest(organization, "accounts").get("")
            rules = store.documents.newest(organization, "rules")
            return Decisions(
                organization,
                tuple(_ACCOUNTS.decode(accounts.body)) if accounts is not None else (),
                tuple(_RULES.decode(one.body) for one in rules.values()),
                store.documents.names(organization, "closed_month"),
                {one.name: one.sequence for one in rules.values()},
            )

        return await store.ask(deadline.left(), read)

    def window(self, month: str) -> Window:
        """A month of UTC, of which the settled hours are final."""
        start = first_second(month)
        end = UTC_ZONE.period(start, "month")[1]
        settled = int(self._clock()) - SETTLING_SECONDS
        return Window(start, end, max(start, min(end, settled - settled % HOUR)))

    async def closed(self, known: Decisions, month: str, deadline: Deadline) -> Closed | None:
        """A month as it was closed; None for one that is open.

        Raises:
            StoreError
        """
        if month not in known.closed:
            return None
        key = (known.organization, str(month))
        if key not in self._closed:
            store = self._store

            def read() -> Closed | None:
                found = store.documents.first(known.organization, "closed_month", month)
                return _CLOSED.decode(found.body) if found is not None else None

            closed = await store.ask(deadline.left(), read)
            if closed is None:
                raise StoreError("a replica of the store does not have a closed month yet")
            self._closed[key] = closed
        return self._closed[key]

    async def charges(self, known: Decisions, month: str, rules: Rules, deadline: Deadline) -> Charges:
        """A month under some rules; a closed one under its own as it was closed.

        Raises:
            StoreError
        """
        closed = await self.closed(known, month, deadline)
        if closed is not None and closed.rules == rules:
            return closed.charges
        read = await self.read(known.accounts, self.window(month), rules, deadline)
        return await asyncio.to_thread(share_out, rules, read.cells)

    async def charges_now(self, known: Decisions, month: str, deadline: Deadline) -> Charges:
        """A month under its own rules, with what was restated since it was closed.

        Raises:
            StoreError
        """
        was = await self.closed(known, month, deadline)
        if was is None:
            return await self.charges(known, month, known.rules(month), deadline)
        window, accounts = self.window(month), sorted(was.hours)
        asked = (accounts, window.start, window.end)
        prints = await self._store.ask(deadline.left(), self._store.ledger.fingerprints, *asked)
        if {account: prints[account].get(window.start, 0) for account in accounts} == was.fingerprints:
            return was.charges
        read = await self.read(accounts, window, was.rules, deadline, was.clusters)
        return await asyncio.to_thread(restated, was, read)

    async def read(
        self,
        accounts: Sequence[str],
        window: Window,
        rules: Rules,
        deadline: Deadline,
        limited_to: Mapping[str, tuple[str, ...]] | None = None,
    ) -> ReadMonth:
        """What is stored of a month, by namespace and by every label that rules ask for.

        Args:
            limited_to: the clusters of each account; without it as its source has them now.

        Raises:
            StoreError
        """
        store, names = self._store, [f"label:{label}" for label in rules.labels]
        sources = await self._accounts.of_all(accounts)
        clusters_of = limited_to or {account: one.clusters.named for account, one in sources.items()}
        unable = {account: one.sources_without(names) if names else frozenset() for account, one in sources.items()}
        found: dict[str, Answer] = {}
        alone: dict[tuple[str, str], list[CostSums]] = {}
        for clusters, group in by_clusters(clusters_of, window.end - window.start):
            filters = Filters(clusters=clusters)
            asked = (group, window.start, window.end, ("namespace", *names), filters)
            answers = await store.ask(deadline.left(), store.summaries.sums_by_account, *asked)
            found |= answers
            for account, answer in answers.items():
                parts = by_currency(answer.committed)
                for currency, part in parts.items() if len(parts) > 1 else ():
                    more = (part, ("namespace", *names), filters)
                    alone[account, currency] = await store.ask(deadline.left(), store.history.sums, *more)
        return await asyncio.to_thread(_read_of, clusters_of, window, found, alone, unable)


def restated(was: Closed, read: ReadMonth) -> Charges:
    """A closed month with what is stored now; a cluster of which hours are kept no longer is taken as it was."""
    gone = {account for account, stretches in was.hours.items() if list(without(stretches, read.hours[account]))}
    cells = [cell for cell in was.cells if cell.cluster in gone]
    return share_out(was.rules, [*cells, *(cell for cell in read.cells if cell.cluster not in gone)])


def _read_of(
    clusters_of: Mapping[str, tuple[str, ...]],
    window: Window,
    found: Mapping[str, Answer],
    alone: Mapping[tuple[str, str], Sequence[CostSums]],
    unable: Mapping[str, frozenset[str]],
) -> ReadMonth:
    """Args: clusters_of: the accounts, with the clusters that each is limited to."""
    cells, statements, covered, gaps, notes = [], [], [], [], []
    silent: set[str] = set()
    for account in clusters_of:
        answer = found[account]
        currencies = currencies_of(answer.committed)
        parts = {one: answer.sums for one in currencies[:1]}
        if len(currencies) > 1:
            parts = {one: tuple(alone[account, one]) for one in currencies}
        for currency, sums in parts.items():
            cells += [_cell(account, currency, one) for one in sums]
            total = fsum(one.total for one in sums)
            statements.append(
                structs.ChargebackStatement(cloud_account_id=account, currency=currency, total_cost=total)
            )
        coverage = coverage_of(account, answer.committed, window, None, unable[account])
        covered.append(coverage)
        gaps += _gaps(account, answer, window, coverage)
        silent.update(
            name for marker in answer.committed.hours.values() for name in (*marker.unknown, *marker.not_covered)
        )
        cannot = sum(marker.source in unable[account] for marker in answer.committed.hours.values())
        if cannot:
            notes.append(f"{cannot} hours of cluster {account} were told by a source that tells no labels")
    hours = {
        account: tuple(union((hour, hour + HOUR) for hour in sorted(found[account].committed.hours)))
        for account in clusters_of
    }
    return ReadMonth(
        cells=tuple(cells),
        statements=tuple(statements),
        accounts=tuple(covered),
        hours=hours,
        clusters=dict(clusters_of),
        gaps=tuple(gaps),
        silent=tuple(sorted(silent)),
        notes=tuple(notes),
    )


def _cell(account: str, currency: str, one: CostSums) -> Cell:
    namespace, *labels = map(str, one.keys)
    return Cell(account, currency, namespace, tuple(labels), (*one.costs.by_component(), one.management))


def _gaps(account: str, answer: Answer, window: Window, coverage: structs.AccountCoverage) -> list[str]:
    """What is missing of a cluster's month; a residual that is small beside the month is nothing that is missing."""
    committed, source = answer.committed, coverage.source
    lacking = fsum(end - start for start, end in committed.missing()) / HOUR
    if lacking:
        return [f"cluster {account} lacks {lacking:.0f} hours"]
    total = fsum(one.total for one in answer.sums)
    small = (source.residual_bound or 0.0) <= SMALL_RESIDUAL * abs(total)
    unknown = sorted({name for marker in committed.hours.values() for name in marker.unknown})
    quarantined = sum(marker.quarantined for marker in committed.hours.values())
    found = [f"cluster {account} does not tell {', '.join(unknown)}"] if unknown else []
    if quarantined:
        found.append(f"{quarantined} rows of cluster {account} could not be read")
    if not small:
        found.append(f"cluster {account} may be off by {source.residual_bound:.2f}")
    if not found and not coverage.complete and not source.residual_bound:
        found.append(f"cluster {account}: {'; '.join(source.warnings) or 'not all of it is known'}")
    return found


def first_day(month: str) -> date:
    """Of a month such as 2026-11."""
    return date(int(month[:4]), int(month[5:]), 1)


def first_second(month: str) -> int:
    """Of a month of UTC."""
    return int(UTC_ZONE.midnight(first_day(month)))


def month_before(month: str) -> str:
    return (first_day(month) - timedelta(days=1)).isoformat()[:7]


def month_after(month: str) -> str:
    return (first_day(month) + timedelta(days=32)).isoformat()[:7]
