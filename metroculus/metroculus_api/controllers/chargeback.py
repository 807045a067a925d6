"""A month shared out to cost centers by an organization's rules; previewed, closed, and corrected after that."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import fsum

import msgspec
import numpy as np
from msgspec.structs import replace

from metroculus.codes import ALREADY_CLOSED, INVALID, NOT_COMPLETE
from metroculus.cost_model.columns import known_costs
from metroculus.cost_model.rules import WIDTH, Charges, Row, Rules, RulesError, check, rows_by, share_out
from metroculus.metroculus_api.controllers.change_locks import ChangeLocks, require_version
from metroculus.metroculus_api.errors import history_of
from metroculus.storage.store import Store
from metroculus.watch.months import (
    Adjustment,
    Closed,
    Decisions,
    Months,
    ReadMonth,
    RowTotal,
    StoredMonth,
    month_after,
    month_before,
    restated,
)
from metroculus.wire import version_of, wired
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import SETTLING_SECONDS, Window
from tools.zones import UTC_ZONE

FIRST_MONTH = "2000-01"

_Key = tuple[str, str, str]
"""Name, kind and currency of a row."""


class ChargebackController:
    """Reads what is stored and shares it out; rules and closed months are documents of the organization."""

    def __init__(self, store: Store | None, months: Months | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._months = months
        self._clock = clock
        self._locks = ChangeLocks()
        """Held while rules of an organization change, or a month of it is closed."""

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
        known = await history_of(self._months).decisions(organization, deadline)
        versions, closed = wired(known.versions, structs.Rules), tuple(sorted(known.closed))
        return structs.AllocationRules(organization, versions, closed, version_of(known.versions))

    async def put_rules(
        self, organization: str, rules: Rules, version: str | None, deadline: Deadline
    ) -> structs.AllocationRules:
        """Rules that hold from a month on; those of the same month are replaced.

        Args:
            version: of the rules that these were made from; None to replace whatever is there.

        Raises:
            ApiError: 400; 409 where a closed month would have other rules, or the version is another.
            NoHistory, StoreError
        """
        async with self._locks.hold(organization, deadline):
            await self._put_rules(organization, rules, version, deadline)
        return await self.rules(organization, deadline)

    async def _put_rules(self, organization: str, rules: Rules, version: str | None, deadline: Deadline) -> None:
        """Raises: ApiError, StoreError"""
        store, known = history_of(self._store), await history_of(self._months).decisions(organization, deadline)
        if rules in known.versions:  # a request that is repeated finds its own change
            return
        require_version(version, known.versions, "the rules")
        _checked(rules, known)
        later = [one.valid_from for one in known.versions if one.valid_from > rules.valid_from]
        touched = [m for m in known.closed if rules.valid_from <= m and (not later or m < later[0])]
        if touched:
            raise ApiError(
                ALREADY_CLOSED, f"{touched[0]} is closed: rules can hold from a later month on", ["valid_from"]
            )
        body = msgspec.json.encode(rules).decode()
        after, put = known.sequences.get(rules.valid_from, 0), store.documents.put
        await store.ask(deadline.left(), put, organization, "rules", rules.valid_from, body, after=after)

    async def preview(
        self, organization: str, month: str, by: str, rules: Rules, deadline: Deadline
    ) -> structs.ChargebackPreview:
        """A month under other rules beside its own, row by row; nothing is kept.

        Raises:
            ApiError, NoHistory, StoreError
        """
        self._month(month)
        known = await history_of(self._months).decisions(organization, deadline)
        _checked(rules, known)
        _check_by(by, rules)
        before, after = await asyncio.gather(
            history_of(self._months).charges(known, month, known.rules(month), deadline),
            history_of(self._months).charges(known, month, rules, deadline),
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
        known = await history_of(self._months).decisions(organization, deadline)
        closed = await history_of(self._months).closed(known, month, deadline)
        _check_by(by, known.rules(month) if closed is None else closed.rules)
        if closed is None:
            closed, notes = await self._as_it_is(known, month, window, ("cost_center", by), deadline)
        else:
            notes = ()
        return await asyncio.to_thread(_told, known, month, window, by, closed, notes)

    async def _as_it_is(
        self, known: Decisions, month: str, window: Window, views: Sequence[str], deadline: Deadline
    ) -> tuple[Closed, tuple[str, ...]]:
        """A month that is open as it would be if it were closed now, and what is to be said of it.

        Args:
            views: by which its adjustments and the month before are wanted.
        """
        rules, before = known.rules(month), month_before(month)
        read, adjustments, previous = await asyncio.gather(
            history_of(self._months).read(known.accounts, window, rules, deadline),
            self._adjustments(known, month, views, deadline),
            history_of(self._months).charges(known, before, known.rules(before), deadline),
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
        async with self._locks.hold(organization, deadline):
            known = await history_of(self._months).decisions(organization, deadline)
            if month not in known.closed:
                await self._close(known, str(month), window, accept_incomplete, deadline)
        return await self.chargeback(organization, month, "cost_center", deadline)

    async def _close(
        self, known: Decisions, month: str, window: Window, accept_incomplete: str | None, deadline: Deadline
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

    def _month(self, month: str) -> Window:
        """Raises: ApiError: it is none, or has not begun."""
        if month < FIRST_MONTH:
            raise ApiError(INVALID, f"month must be a month such as 2026-11, from {FIRST_MONTH} on", ["month"])
        if month > UTC_ZONE.at(self._clock()).strftime("%Y-%m"):
            raise ApiError(INVALID, f"{month} has not begun", ["month"])
        return history_of(self._months).window(month)

    async def _adjustments(
        self, known: Decisions, month: str, views: Sequence[str], deadline: Deadline
    ) -> tuple[Adjustment, ...]:
        """What closed months cost more than they said, and nobody has booked: due in the first open month after each.

        Raises:
            StoreError
        """
        store, months, due = history_of(self._store), history_of(self._months), []
        for over in known.closed:
            open_month = month_after(over)
            while open_month in known.closed:
                open_month = month_after(open_month)
            if open_month == month:
                due.append(over)
        if not due:
            return ()
        closed = {one: was for one in known.closed if (was := await months.closed(known, one, deadline)) is not None}
        accounts = sorted({account for one in due for account in closed[one].hours})
        first, last = months.window(due[0]).start, months.window(due[-1]).end
        prints = await store.ask(deadline.left(), store.ledger.fingerprints, accounts, first, last)
        adjustments: list[Adjustment] = []
        for one in due:
            window, was = months.window(one), closed[one]
            now = {account: prints[account].get(window.start, 0) for account in was.hours}
            if now != was.fingerprints:
                read = await months.read(sorted(was.hours), window, was.rules, deadline, was.clusters)
                booked = [a for of in closed.values() for a in of.adjustments if a.month == one]
                adjustments += await asyncio.to_thread(_corrections, one, was, read, booked, views)
        return tuple(adjustments)


def _corrections(
    month: str, was: Closed, read: ReadMonth, booked: Sequence[Adjustment], views: Sequence[str]
) -> list[Adjustment]:
    """By each view: what its rows are now, less what they were when it was closed and what was booked since."""
    charges = restated(was, read)
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


def _closed(
    rules: Rules,
    charges: Charges,
    read: ReadMonth,
    adjustments: tuple[Adjustment, ...],
    previous: dict[str, tuple[RowTotal, ...]],
) -> Closed:
    totals: dict[str, list[float]] = defaultdict(list)
    for currency, row in zip(charges.currencies, charges.amounts, strict=True):
        totals[currency] += row.tolist()
    return Closed(
        **{name: getattr(read, name) for name in StoredMonth.__struct_fields__},
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


def _listed(totals: Mapping[_Key, float]) -> tuple[RowTotal, ...]:
    return tuple(RowTotal(*key, usd) for key, usd in sorted(totals.items()))


def _told(
    known: Decisions, month: str, window: Window, by: str, closed: Closed, notes: tuple[str, ...]
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
        rows=tuple(
            _row(row, previous.get((row.name, row.kind, row.currency)), closed.silent)
            for row in rows_by(closed.charges, by)
        ),
        adjustments=wired((one for one in closed.adjustments if one.by == by), structs.ChargebackAdjustment),
        notes=(*closed.charges.notes, *notes, *told),
    )


def _row(row: Row, previous: float | None, silent: Sequence[str]) -> structs.ChargebackRow:
    components = [float(usd) for usd in row.direct[: WIDTH - 1]]
    names = structs.Columns.__struct_fields__[1:]
    return structs.ChargebackRow(
        name=row.name,
        kind=row.kind,
        currency=row.currency,
        total_cost=row.total,
        direct_cost=fsum(components),
        **dict(zip(names, known_costs(components, 0, silent), strict=True)),
        shared=row.shared,
        overhead=row.overhead,
        idle_cost=row.idle,
        management_cost=row.direct[-1] + row.management,
        previous_total_cost=previous,
    )


def _checked(rules: Rules, known: Decisions) -> None:
    """Raises: ApiError: they name a cluster that is not the organization's, and that its rules did not name before."""
    before = {match.cluster for one in known.versions for of in one.matched for match in of.match if match.cluster}
    try:
        check(rules, frozenset(known.accounts).union(before))
    except RulesError as problem:
        raise ApiError(INVALID, str(problem), ["body"]) from None


def _check_by(by: str, rules: Rules) -> None:
    if by.startswith("label:") and by.removeprefix("label:") not in rules.labels:
        asked = ", ".join(f"label:{one}" for one in rules.labels) or "no label"
        raise ApiError(INVALID, f"by: the rules of this month ask for {asked}, not for {by}", ["by"])
