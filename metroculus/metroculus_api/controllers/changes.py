"""What changed between two windows, and which hours were spikes; out of what is stored."""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum

from msgspec import Struct
from msgspec.structs import replace

from metroculus.codes import INVALID
from metroculus.cost_model.allocation import Filters
from metroculus.cost_model.changes import Kind, Step, changes, in_order
from metroculus.cost_model.reading import COVERAGE_THRESHOLD
from metroculus.metroculus_api.errors import cannot_group_by, history_of
from metroculus.sources.accounts import Accounts
from metroculus.storage.coverage import currencies_of
from metroculus.storage.ledger import CommittedHours, Marker
from metroculus.storage.store import Store
from metroculus.watch.spikes import find_spikes, groups_of
from metroculus.wire import coverage_of, window_of, wired
from optscale_client.metroculus_client import structs
from tools.deadline import Deadline
from tools.tornado_service.errors import ApiError
from tools.window import HOUR, Window


class _Compared(Struct, frozen=True):
    """The hours of two windows that both have, and what is known of one alone."""

    before: CommittedHours
    after: CommittedHours
    steps: tuple[Step, ...]
    """Time that one of the two lacks, or is longer by."""
    missing_before: int
    missing_after: int


class ChangesController:
    def __init__(self, accounts: Accounts, store: Store | None) -> None:
        self._accounts = accounts
        self._store = store

    async def changes(
        self, account: str, window: Window, against: Window, aggregate: Sequence[str], deadline: Deadline
    ) -> structs.Changes:
        """From what ``against`` cost to what ``window`` did, as steps that add up to the difference.

        Raises:
            ApiError: the two are in different currencies.
            NoSource, RegistryError, NoHistory, StoreError
        """
        store = history_of(self._store)
        sources = await self._accounts.of(account)
        unsupported = (*sources.unsupported(aggregate), *sources.not_stored(aggregate))
        if unsupported:
            raise cannot_group_by(unsupported, "aggregate", " in stored hours")
        unable = sources.sources_without(aggregate)
        filters = Filters(clusters=sources.clusters.named)

        def read() -> structs.Changes:
            committed = [store.ledger.committed(account, one.start, one.end) for one in (against, window)]
            currencies = sorted({currency for one in committed for currency in currencies_of(one)})
            if len(currencies) > 1:
                reason = f"what is stored is in several currencies ({', '.join(currencies)}), which are not compared"
                raise ApiError(INVALID, reason, ["window", "against"])
            compared = _compared(store, committed[0], committed[1], against, window, filters)
            before, after = (
                groups_of(store.history.measured(one, aggregate, filters)) for one in (compared.before, compared.after)
            )
            steps = in_order([*changes(before, after), *compared.steps])
            totals = [_total(store, one, filters) for one in committed]
            coverages = [
                coverage_of(account, one, asked, None, unable)
                for one, asked in zip(committed, (against, window), strict=True)
            ]
            return structs.Changes(
                cloud_account_id=account,
                window=window_of(window),
                against=window_of(against),
                aggregate=",".join(aggregate),
                currency=currencies[0] if currencies else None,
                before_cost=totals[0] if committed[0].hours else None,
                total_cost=totals[1] if committed[1].hours else None,
                difference=fsum((totals[1], -totals[0])) if committed[0].hours and committed[1].hours else None,
                complete=all(one.complete for one in coverages),
                before_source=coverages[0].source,
                source=coverages[1].source,
                missing_hours_before=compared.missing_before,
                missing_hours=compared.missing_after,
                steps=wired(steps, structs.ChangeStep),
            )

        return await store.ask(deadline.left(), read)

    async def anomalies(self, account: str, window: Window, deadline: Deadline) -> structs.Anomalies:
        """The spikes of a window, each with what caused it.

        Raises:
            NoSource, RegistryError, NoHistory, StoreError
        """
        store = history_of(self._store)
        filters = Filters(clusters=(await self._accounts.of(account)).clusters.named)

        def read() -> structs.Anomalies:
            found = find_spikes(store, account, window.start, window.end, filters)
            hours = range(window.start - window.start % HOUR, window.end, HOUR)
            return structs.Anomalies(
                cloud_account_id=account,
                window=window_of(window),
                currency=found.currency,
                hours=sum(hour in found.known for hour in hours),
                unknown_hours=sum(hour not in found.known for hour in hours if hour < window.final_until),
                anomalies=found.anomalies,
            )

        return await store.ask(deadline.left(), read)


def _seen(marker: Marker) -> bool:
    """Whether all of an hour was seen: a third of it is no fall in cost."""
    return marker.seconds >= COVERAGE_THRESHOLD * HOUR


def _compared(
    store: Store, old: CommittedHours, new: CommittedHours, against: Window, window: Window, filters: Filters
) -> _Compared:
    """Hours are paired by their place in their window: what has no partner is a step of its own."""
    shift = window.start - against.start
    pairs = {h for h in new.hours if h - shift in old.hours and _seen(new.hours[h]) and _seen(old.hours[h - shift])}
    paired = {"old": {hour - shift for hour in pairs}, "new": pairs}
    after = replace(new, hours={hour: new.hours[hour] for hour in sorted(pairs)})
    before = replace(old, hours={hour - shift: old.hours[hour - shift] for hour in sorted(pairs)})
    steps = []
    missing = []
    for sign, one, its_pairs, window_of_other, offset in (
        (-1.0, old, paired["old"], window, shift), (1.0, new, paired["new"], against, -shift),
    ):  # fmt: skip
        inside = {h: m for h, m in one.hours.items() if window_of_other.start <= h + offset < window_of_other.end}
        unpaired = {hour: marker for hour, marker in inside.items() if hour not in its_pairs}
        beyond = {hour: marker for hour, marker in one.hours.items() if hour not in inside}
        missing.append(len(unpaired))
        kinds: tuple[tuple[Kind, dict[int, Marker]], ...] = (("not_known", unpaired), ("length", beyond))
        for kind, hours in kinds:
            if hours:
                usd = sign * _total(store, replace(one, hours=hours), filters)
                steps.append(Step(kind=kind, amount=usd, after=float(len(hours)), unit="hours"))
    return _Compared(before, after, tuple(steps), missing_before=missing[1], missing_after=missing[0])


def _total(store: Store, committed: CommittedHours, filters: Filters) -> float:
    return fsum(one.total for one in store.history.sums(committed, (), filters))
