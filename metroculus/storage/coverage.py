"""How much of a window is stored of an account, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import fsum

from msgspec.structs import replace

from metroculus.cost_model.reading import COVERAGE_THRESHOLD, SourceReport
from metroculus.storage.ledger import CommittedHours, Marker
from tools.window import DAY, HOUR, Window
from tools.zones import Period

STORE = "store"


HOURS_AT_ONCE = 60_000
"""Of all accounts together: some tens of megabytes, and some seconds of the oldest servers."""


def in_groups(accounts: Sequence[str], seconds: int) -> Iterator[Sequence[str]]:
    """Split accounts into groups of which so many seconds each come to ``HOURS_AT_ONCE`` at most."""
    size = max(1, HOURS_AT_ONCE * HOUR // max(HOUR, seconds))
    return (accounts[first : first + size] for first in range(0, len(accounts), size))


def in_groups_of_hours(hours_of: Mapping[str, int]) -> Iterator[Sequence[str]]:
    """Split accounts into groups that have ``HOURS_AT_ONCE`` at most.

    Args:
        hours_of: how many each account has at most.
    """
    group: list[str] = []
    held = 0
    for account, hours in hours_of.items():
        if group and held + hours > HOURS_AT_ONCE:
            yield group
            group, held = [], 0
        group.append(account)
        held += hours
    if group:
        yield group


def by_clusters(
    clusters_of: Mapping[str, tuple[str, ...]], seconds: int
) -> Iterator[tuple[tuple[str, ...], Sequence[str]]]:
    """Groups of accounts that one question can be asked of: limited to the same clusters, and not too many hours.

    Args:
        clusters_of: the clusters that each account is limited to.
        seconds: of each account.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for account, clusters in clusters_of.items():
        alike.setdefault(clusters, []).append(account)
    for clusters, accounts in alike.items():
        for group in in_groups(accounts, seconds):
            yield clusters, group


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


def silent_in(committed: CommittedHours) -> frozenset[str]:
    """The components that some stored hour does not tell, whether it should or cannot."""
    markers = committed.hours.values()
    return frozenset(name for marker in markers for name in (*marker.unknown, *marker.not_covered))


def by_currency(committed: CommittedHours) -> dict[str, CommittedHours]:
    """The hours of each currency by themselves."""
    currencies = currencies_of(committed)
    if len(currencies) == 1:
        return {currencies[0]: committed}
    return {
        currency: replace(committed, hours={h: m for h, m in committed.hours.items() if m.currency == currency})
        for currency in currencies
    }


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


def is_all_known(marker: Marker) -> bool:
    """Whether all of an hour was seen, and nothing of it is unknown."""
    return marker.seconds >= HOUR and not (marker.unknown or marker.quarantined or marker.partly_covered)
