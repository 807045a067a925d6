"""A month shared out to cost centers by an organization's rules; previewed, closed, and corrected after that."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from math import fsum
from weakref import WeakValueDictionary

import msgspec
import numpy as np
from cachetools import LRUCache
from msgspec import Struct
from msgspec.structs import replace

from metroculus.codes import ALREADY_CLOSED, INVALID, NOT_COMPLETE
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.reading import union, without
from metroculus.cost_model.rules import WIDTH, Cell, Charges, Row, Rules, RulesError, check, rows_by, share_out
from metroculus.metroculus_api.controllers.expenses import coverage_of
from metroculus.metroculus_api.controllers.stored import currencies_of, in_groups
from metroculus.metroculus_api.errors import history_of
from metroculus.metroculus_api.wire import wired
from metroculus.sources.accounts import Accounts
from metroculus.storage.engine import StoreError
from metroculus.storage.history import CostSums
from metroculus.storage.ledger import CommittedHours
from metroculus.storage.store import Store
from metroculus.storage.summaries import Answer
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import HOUR, SETTLING_SECONDS, Window
from tools.zones import UTC_ZONE

SMALL_RESIDUAL = 0.01
"""Of a month's total: by so much its hours may differ from their source's own totals when it is closed."""
FIRST_MONTH = "2000-01"
CLOSED_KEPT = 64


class Adjustment(structs.ChargebackAdjustment, frozen=True, kw_only=True):
    """What a closed month costs more than it said, for one row of the view ``by``."""

    by: str


_Key = tuple[str, str, str]
"""Name, kind and currency of a row."""


class _Total(Struct, frozen=True, array_like=True):
    """What one row comes to."""

    name: str
    kind: str
    currency: str
    total: float


class _Month(Struct, frozen=True, kw_only=True):
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


class _Read(_Month, frozen=True, kw_only=True):
    notes: tuple[str, ...]


class Closed(_Month, frozen=True, kw_only=True):
    """A month shared out; one that was closed is never changed."""

    rules: Rules
    charges: Charges
    adjustments: tuple[Adjustment, ...]
    total: dict[str, float]
    previous: dict[str, tuple[_Total, ...]] = {}
    """The rows of the month before by view, as they were."""
    closed_at: int = 0
    accept_incomplete: str | None = None
    fingerprints: dict[str, int] = {}
    """Of the month's markers, by account: another number where something was stored since."""


_CLOSED = msgspec.json.Decoder(Closed, dec_hook=lambda _, rows: np.array(rows, dtype=float))
_RULES = msgspec.json.Decoder(Rules)
_ACCOUNTS = msgspec.json.Decoder(list[str])


class _Known(Struct, frozen=True):
    """What an organization has decided."""

    organization: str
    accounts: tuple[str, ...]
    versions: tuple[Rules, ...]
    closed: tuple[str, ...]
    """Closed months, in order."""

    def rules(self, month: str) -> Rules:
        """Those that hold for a month: the last that are valid by then; none of anything before the first."""
        valid = [one for one in self.versions if one.valid_from <= month]
        return valid[-1] if valid else Rules(valid_from=str(month))


class ChargebackController:
    """Reads what is stored and shares it out; rules and closed months are documents of the organization."""

    def __init__(self, accounts: Accounts, store: Store | None, clock: Callable[[], float]) -> None:
        self._accounts = accounts
        self._store = store
        self._clock = clock
        self._closed: LRUCache[tuple[str, str], Closed] = LRUCache(CLOSED_KEPT)
        """Closed months by organization and month: they never change."""
        self._changing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By organization, held while its rules change or a month is closed."""

    async def keep_accounts(self, organization: str, accounts: Sequence[str], deadline: Deadline) -> None:
        """Remember which accounts an organization has.

        Raises:
            NoHistory, StoreError
        """
        store, body = history_of(self._store), msgspec.json.encode(sorted(set(accounts))).decode()

        def keep() -> None:
            known = store.documents.newest(organization, "accounts").get("")
            if known is None or known.body != body:
                store.documents.put(organization, "accounts", "", body)

        await store.ask(deadline.left(), keep)

    async def rules(self, organization: str, deadline: Deadline) -> structs.AllocationRules:
        """Every version of its rules, the oldest first.

        Raises:
            NoHistory, StoreError
        """
        known = await self._known(organization, deadline)
        return structs.AllocationRules(organization, wired(known.versions, structs.Rules), tuple(sorted(known.closed)))

    async def put_rules(self, organization: str, rules: Rules, deadline: Deadline) -> structs.AllocationRules:
        """Rules that hold from a month on; those of the same month are replaced.

        Raises:
            ApiError: 400; 409 where a closed month would have other rules.
            NoHistory, StoreError
        """
        async with self._changing.setdefault(organization, asyncio.Lock()):
            await self._put_rules(organization, rules, deadline)
        return await self.rules(organization, deadline)

    async def _put_rules(self, organization: str, rules: Rules, deadline: Deadline) -> None:
        """Raises: ApiError, StoreError"""
        store, known = history_of(self._store), await self._known(organization, deadline)
        _checked(rules, known)
        later = [one.valid_from for one in known.versions if one.valid_from > rules.valid_from]
        touched = [m for m in known.closed if rules.valid_from <= m and (not later or m < later[0])]
        if touched:
            raise ApiError(
                ALREADY_CLOSED, f"{touched[0]} is closed: rules can hold from a later month on", ["valid_from"]
            )
        body = msgspec.json.encode(rules).decode()
        await store.ask(deadline.left(), store.documents.put, organization, "rules", rules.valid_from, body)

    async def preview(
        self, organization: str, month: str, by: str, rules: Rules, deadline: Deadline
    ) -> structs.ChargebackPreview:
        """A month under other rules beside its own, row by row; nothing is kept.

        Raises:
            ApiError, NoHistory, StoreError
        """
        self._month(month)
        known = await self._known(organization, deadline)
        _checked(rules, known)
        _check_by(by, rules)
        before, after = await asyncio.gather(
            self._charges(known, month, known.rules(month), deadline), self._charges(known, month, rules, deadline)
        )
        current, other = _totals(before, by), _totals(after, by)
        return structs.ChargebackPreview(
            organization_id=organization,
            month=month,
            by=by,
            rows=tuple(
                structs.PreviewRow(
                    name=key[0], kind=key[1], currency=key[2],
                    current_total_cost=current.get(key), total_cost=other.get(key),
                )
                for key in sorted({*current, *other})
            ),
        )  # fmt: skip

    async def chargeback(self, organization: str, month: str, by: str, deadline: Deadline) -> structs.Chargeback:
        """A month row by row: as it was closed, or as it is stored now.

        Raises:
            ApiError, NoHistory, StoreError
        """
        window = self._month(month)
        known = await self._known(organization, deadline)
        closed = await self._closed_month(known, month, deadline)
        _check_by(by, known.rules(month) if closed is None else closed.rules)
        if closed is None:
            closed, notes = await self._as_it_is(known, month, window, ("cost_center", by), deadline)
        else:
            notes = ()
        return await asyncio.to_thread(_told, known, month, window, by, closed, notes)

    async def _as_it_is(
        self, known: _Known, month: str, window: Window, views: Sequence[str], deadline: Deadline
    ) -> tuple[Closed, tuple[str, ...]]:
        """A month that is open as it would be if it were closed now, and what is to be said of it.

        Args:
            views: by which its adjustments and the month before are wanted.
        """
        rules, before = known.rules(month), _month_before(month)
        read, adjustments, previous = await asyncio.gather(
            self._read(known.accounts, window, rules, deadline),
            self._adjustments(known, month, views, deadline),
            self._charges(known, before, known.rules(before), deadline),
        )
        charges = await asyncio.to_thread(share_out, rules, read.cells)
        closed = _closed(rules, charges, read, adjustments, {by: _listed(_totals(previous, by)) for by in views})
        return closed, (*read.notes, *read.gaps)

    async def close(
        self, organization: str, month: str, accept_incomplete: str | None, deadline: Deadline
    ) -> structs.Chargeback:
        """Freeze a month. One that is closed already is answered as it is.

        Args:
            accept_incomplete: why it is closed though something is missing.

        Raises:
            ApiError: 409 while it runs, or where something is missing and nothing says why that is accepted.
            NoHistory, StoreError
        """
        window = self._month(month)
        async with self._changing.setdefault(organization, asyncio.Lock()):
            known = await self._known(organization, deadline)
            if month not in known.closed:
                await self._close(known, str(month), window, accept_incomplete, deadline)
        return await self.chargeback(organization, month, "cost_center", deadline)

    async def _close(
        self, known: _Known, month: str, window: Window, accept_incomplete: str | None, deadline: Deadline
    ) -> None:
        """Raises: ApiError, StoreError"""
        store = history_of(self._store)
        if window.end + SETTLING_SECONDS > self._clock():
            raise ApiError(NOT_COMPLETE, f"{month} is not over yet", ["month"])
        prints = await store.ask(
            deadline.left(), store.ledger.fingerprints, list(known.accounts), window.start, window.end
        )
        frozen, _ = await self._as_it_is(known, month, window, _views(known.rules(month)), deadline)
        if frozen.gaps and not (accept_incomplete or "").strip():
            reason = f"{'; '.join(frozen.gaps)}: fill the gaps, or say in accept_incomplete why it is closed as it is"
            raise ApiError(NOT_COMPLETE, reason, ["accept_incomplete"])
        frozen = replace(
            frozen,
            closed_at=int(self._clock()),
            accept_incomplete=accept_incomplete,
            fingerprints={account: months.get(window.start, 0) for account, months in prints.items()},
        )
        body = await asyncio.to_thread(lambda: msgspec.json.encode(frozen, enc_hook=np.ndarray.tolist).decode())
        await store.ask(deadline.left(), store.documents.put, known.organization, "closed_month", month, body)

    async def _known(self, organization: str, deadline: Deadline) -> _Known:
        """Raises: NoHistory, StoreError"""
        store = history_of(self._store)

        def read() -> _Known:
            accounts = store.documents.newest(organization, "accounts").get("")
            rules = store.documents.newest(organization, "rules")
            return _Known(
                organization,
                tuple(_ACCOUNTS.decode(accounts.body)) if accounts is not None else (),
                tuple(_RULES.decode(one.body) for one in rules.values()),
                store.documents.names(organization, "closed_month"),
            )

        return await store.ask(deadline.left(), read)

    def _month(self, month: str) -> Window:
        """Raises: ApiError: it is none, or has not begun."""
        if month < FIRST_MONTH:
            raise ApiError(INVALID, f"month must be a month such as 2026-11, from {FIRST_MONTH} on", ["month"])
        if month > UTC_ZONE.at(self._clock()).strftime("%Y-%m"):
            raise ApiError(INVALID, f"{month} has not begun", ["month"])
        return self._window(month)

    def _window(self, month: str) -> Window:
        start = int(UTC_ZONE.midnight(_first_day(month)))
        end = UTC_ZONE.period(start, "month")[1]
        settled = int(self._clock()) - SETTLING_SECONDS
        return Window(start, end, max(start, min(end, settled - settled % HOUR)))

    async def _closed_month(self, known: _Known, month: str, deadline: Deadline) -> Closed | None:
        """A month as it was closed; None for one that is open.

        Raises:
            StoreError
        """
        if month not in known.closed:
            return None
        key = (known.organization, str(month))
        if key not in self._closed:
            store = history_of(self._store)

            def read() -> Closed | None:
                found = store.documents.first(known.organization, "closed_month", month)
                return _CLOSED.decode(found.body) if found is not None else None

            closed = await store.ask(deadline.left(), read)
            if closed is None:
                raise StoreError("a replica of the store does not have a closed month yet")
            self._closed[key] = closed
        return self._closed[key]

    async def _charges(self, known: _Known, month: str, rules: Rules, deadline: Deadline) -> Charges:
        """A month under some rules; a closed one under its own as it was closed.

        Raises:
            StoreError
        """
        closed = await self._closed_month(known, month, deadline)
        if closed is not None and closed.rules == rules:
            return closed.charges
        read = await self._read(known.accounts, self._window(month), rules, deadline)
        return await asyncio.to_thread(share_out, rules, read.cells)

    async def _read(
        self,
        accounts: Sequence[str],
        window: Window,
        rules: Rules,
        deadline: Deadline,
        limited_to: Mapping[str, tuple[str, ...]] | None = None,
    ) -> _Read:
        """What is stored of a month, by namespace and by every label that rules ask for.

        Args:
            limited_to: the clusters of each account; without it as its source has them now.

        Raises:
            StoreError
        """
        store, names = history_of(self._store), [f"label:{label}" for label in rules.labels]
        await self._accounts.look_up(accounts)
        sources = dict(zip(accounts, await asyncio.gather(*map(self._accounts.of, accounts)), strict=True))
        clusters_of = limited_to or {account: one.clusters.named for account, one in sources.items()}
        unable = {account: one.sources_without(names) if names else frozenset() for account, one in sources.items()}
        by_clusters: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for account in accounts:
            by_clusters[clusters_of[account]].append(account)
        found: dict[str, Answer] = {}
        alone: dict[tuple[str, str], list[CostSums]] = {}
        for clusters, several in by_clusters.items():
            filters = Filters(clusters=clusters)
            for group in in_groups(several, window.end - window.start):
                asked = (group, window.start, window.end, ("namespace", *names), filters)
                answers = await store.ask(deadline.left(), store.summaries.sums_by_account, *asked)
                found |= answers
                for account, answer in answers.items():
                    for currency, part in _by_currency(answer.committed).items():
                        more = (part, ("namespace", *names), filters)
                        alone[account, currency] = await store.ask(deadline.left(), store.history.sums, *more)
        return await asyncio.to_thread(_read_of, clusters_of, window, found, alone, unable)

    async def _adjustments(
        self, known: _Known, month: str, views: Sequence[str], deadline: Deadline
    ) -> tuple[Adjustment, ...]:
        """What closed months cost more than they said, and nobody has booked: due in the first open month after each.

        Raises:
            StoreError
        """
        store, due = history_of(self._store), []
        for over in known.closed:
            open_month = _month_after(over)
            while open_month in known.closed:
                open_month = _month_after(open_month)
            if open_month == month:
                due.append(over)
        if not due:
            return ()
        closed = {
            one: was for one in known.closed if (was := await self._closed_month(known, one, deadline)) is not None
        }
        accounts = sorted({account for one in due for account in closed[one].hours})
        first, last = self._window(due[0]).start, self._window(due[-1]).end
        prints = await store.ask(deadline.left(), store.ledger.fingerprints, accounts, first, last)
        adjustments: list[Adjustment] = []
        for one in due:
            window, was = self._window(one), closed[one]
            now = {account: prints[account].get(window.start, 0) for account in was.hours}
            if now != was.fingerprints:
                read = await self._read(sorted(was.hours), window, was.rules, deadline, was.clusters)
                booked = [a for of in closed.values() for a in of.adjustments if a.month == one]
                adjustments += await asyncio.to_thread(_corrections, one, was, read, booked, views)
        return tuple(adjustments)


def _corrections(
    month: str, was: Closed, read: _Read, booked: Sequence[Adjustment], views: Sequence[str]
) -> list[Adjustment]:
    """By each view: what its rows are now, less what they were when it was closed and what was booked since.

    A cluster of which hours are kept no longer is taken as it was.
    """
    gone = {account for account, stretches in was.hours.items() if list(without(stretches, read.hours[account]))}
    cells = [cell for cell in was.cells if cell.cluster in gone]
    charges = share_out(was.rules, [*cells, *(cell for cell in read.cells if cell.cluster not in gone)])
    found = []
    for by in {*views}.intersection(_views(was.rules)):
        amounts: dict[_Key, list[float]] = defaultdict(list)
        for sign, of in ((1.0, charges), (-1.0, was.charges)):
            for key, usd in _totals(of, by).items():
                amounts[key].append(sign * usd)
        for one in booked:
            if one.by == by:
                amounts[one.name, one.kind, one.currency].append(-one.amount)
        for (name, kind, currency), parts in sorted(amounts.items()):
            usd = fsum(parts)
            if abs(usd) > 1e-9 * max(map(abs, parts)):
                found.append(Adjustment(month=month, by=by, name=name, kind=kind, currency=currency, amount=usd))
    return found


def _by_currency(committed: CommittedHours) -> dict[str, CommittedHours]:
    """The hours of each currency by themselves, where they are in several."""
    currencies = currencies_of(committed)
    if len(currencies) < 2:
        return {}
    return {
        currency: replace(
            committed, hours={h: marker for h, marker in committed.hours.items() if marker.currency == currency}
        )
        for currency in currencies
    }


def _read_of(
    clusters_of: Mapping[str, tuple[str, ...]],
    window: Window,
    found: Mapping[str, Answer],
    alone: Mapping[tuple[str, str], Sequence[CostSums]],
    unable: Mapping[str, frozenset[str]],
) -> _Read:
    """Args: clusters_of: the accounts, with the clusters that each is limited to."""
    cells, statements, covered, gaps, notes = [], [], [], [], []
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
        cannot = sum(marker.source in unable[account] for marker in answer.committed.hours.values())
        if cannot:
            notes.append(f"{cannot} hours of cluster {account} were told by a source that tells no labels")
    hours = {
        account: tuple(union((hour, hour + HOUR) for hour in sorted(found[account].committed.hours)))
        for account in clusters_of
    }
    return _Read(
        cells=tuple(cells),
        statements=tuple(statements),
        accounts=tuple(covered),
        hours=hours,
        clusters=dict(clusters_of),
        gaps=tuple(gaps),
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


def _closed(
    rules: Rules,
    charges: Charges,
    read: _Read,
    adjustments: tuple[Adjustment, ...],
    previous: dict[str, tuple[_Total, ...]],
) -> Closed:
    totals: dict[str, list[float]] = defaultdict(list)
    for currency, row in zip(charges.currencies, charges.amounts, strict=True):
        totals[currency] += row.tolist()
    return Closed(
        **{name: getattr(read, name) for name in _Month.__struct_fields__},
        rules=rules,
        charges=charges,
        adjustments=adjustments,
        total={currency: fsum(parts) for currency, parts in sorted(totals.items())},
        previous=previous,
    )


def _views(rules: Rules) -> tuple[str, ...]:
    """Everything that a month under these rules can be looked at by."""
    return ("cost_center", "namespace", "cluster", *(f"label:{one}" for one in rules.labels))


def _totals(charges: Charges, by: str) -> dict[_Key, float]:
    """What each row comes to; none by a label that the charges do not know."""
    if by.startswith("label:") and by.removeprefix("label:") not in charges.label_names:
        return {}
    return {(row.name, row.kind, row.currency): row.total for row in rows_by(charges, by)}


def _listed(totals: Mapping[_Key, float]) -> tuple[_Total, ...]:
    return tuple(_Total(*key, usd) for key, usd in sorted(totals.items()))


def _told(
    known: _Known, month: str, window: Window, by: str, closed: Closed, notes: tuple[str, ...]
) -> structs.Chargeback:
    lacking = {one.month for one in closed.adjustments} - {one.month for one in closed.adjustments if one.by == by}
    told = [
        f"the corrections of {one} are not known by {by}: its rules ask for no such label" for one in sorted(lacking)
    ]
    previous = {(one.name, one.kind, one.currency): one.total for one in closed.previous.get(by, ())}
    overhead: dict[str, list[float]] = defaultdict(list)
    for one in closed.rules.overhead:
        overhead[one.currency].append(one.amount_month)
    return structs.Chargeback(
        organization_id=known.organization,
        month=month,
        start=UTC_ZONE.iso(window.start),
        end=UTC_ZONE.iso(window.end),
        by=by,
        rules_valid_from=closed.rules.valid_from if closed.rules in known.versions else None,
        closed_at=closed.closed_at or None,
        accept_incomplete=closed.accept_incomplete,
        complete=bool(closed.accounts) and all(one.complete for one in closed.accounts),
        totals=closed.total,
        overhead={currency: fsum(parts) for currency, parts in overhead.items()},
        statements=closed.statements,
        accounts=closed.accounts,
        rows=tuple(_row(row, previous.get((row.name, row.kind, row.currency))) for row in rows_by(closed.charges, by)),
        adjustments=wired((one for one in closed.adjustments if one.by == by), structs.ChargebackAdjustment),
        notes=(*closed.charges.notes, *notes, *told),
    )


def _row(row: Row, previous: float | None) -> structs.ChargebackRow:
    components = row.direct[: WIDTH - 1]
    names = structs.Columns.__struct_fields__[1:]
    return structs.ChargebackRow(
        name=row.name,
        kind=row.kind,
        currency=row.currency,
        total_cost=row.total,
        direct_cost=fsum(components),
        **dict(zip(names, components, strict=True)),
        shared=row.shared,
        overhead=row.overhead,
        idle_cost=row.idle,
        management_cost=row.direct[-1] + row.management,
        previous_total_cost=previous,
    )


def _checked(rules: Rules, known: _Known) -> None:
    try:
        check(rules, frozenset(known.accounts))
    except RulesError as problem:
        raise ApiError(INVALID, str(problem), ["body"]) from None


def _check_by(by: str, rules: Rules) -> None:
    if by.startswith("label:") and by.removeprefix("label:") not in rules.labels:
        asked = ", ".join(f"label:{one}" for one in rules.labels) or "no label"
        raise ApiError(INVALID, f"by: the rules of this month ask for {asked}, not for {by}", ["by"])


def _first_day(month: str) -> date:
    return date(int(month[:4]), int(month[5:]), 1)


def _month_before(month: str) -> str:
    return (_first_day(month) - timedelta(days=1)).isoformat()[:7]


def _month_after(month: str) -> str:
    return (_first_day(month) + timedelta(days=32)).isoformat()[:7]
