"""The spikes of a cluster out of what is stored, each with what caused it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum

from msgspec import Struct

from metroculus.cost_model.allocation import IDLE, MANAGEMENT, Filters
from metroculus.cost_model.anomalies import LOOK_BACK_SECONDS, Spike, spikes
from metroculus.cost_model.changes import GROUP_SEPARATOR, Measured, Step, changes
from metroculus.storage.coverage import is_all_known
from metroculus.storage.ledger import CommittedHours, Marker
from metroculus.storage.store import Store
from metroculus.wire import wired
from optscale_client.metroculus_client import structs
from tools.window import DAY, HOUR

MAX_SPIKES = 500
CAUSES = 5
"""Namespaces that are named with a spike."""


class FoundSpikes(Struct, frozen=True):
    """What was held against its like: the hours that are whole, in the currency of the newest, and the spikes."""

    known: Mapping[int, float]
    currency: str | None
    anomalies: tuple[structs.Anomaly, ...]


def find_spikes(store: Store, account: str, start: int, end: int, filters: Filters) -> FoundSpikes:
    """The spikes of ``[start, end)``, the newest ``MAX_SPIKES``; blocks.

    Raises:
        StoreError
    """
    answer = store.summaries.sums(account, start - LOOK_BACK_SECONDS - HOUR, end, ("hour",), filters)
    markers = answer.committed.hours
    currency = markers[max(markers)].currency if markers else None
    totals = {int(one.keys[0]): one.total for one in answer.sums}
    known = {
        hour: totals.get(hour, 0.0)
        for hour, marker in markers.items()
        if _may_be_held(marker) and marker.currency == currency
    }
    found = spikes(known, range(start - start % HOUR, end, HOUR))[-MAX_SPIKES:]
    return FoundSpikes(known, currency, tuple(_anomaly(store, account, one, markers, filters) for one in found))


def groups_of(measured: Sequence[tuple[tuple[str, ...], Measured]]) -> dict[str, Measured]:
    """By the name that is shown; what no namespace owns has one name, whatever it is grouped by."""
    return {keys[0] if keys[0] in (IDLE, MANAGEMENT) else GROUP_SEPARATOR.join(keys): one for keys, one in measured}


def _anomaly(
    store: Store, account: str, spike: Spike, markers: Mapping[int, Marker], filters: Filters
) -> structs.Anomaly:
    """A spike with the steps from the same hour of the day before, or of the last hour that is whole before it."""
    before = (spike.hour - DAY, *range(spike.hour - HOUR, spike.hour - DAY, -HOUR))
    held = next((hour for hour in before if _may_be_held(markers.get(hour))), None)
    steps: list[Step] = []
    if held is not None:
        was, now = (
            groups_of(store.history.measured(_only(account, markers[hour]), ("namespace",), filters))
            for hour in (held, spike.hour)
        )
        steps = changes(was, now)
    rises: dict[str, list[float]] = {}
    for step in steps:
        if step.group is not None:
            rises.setdefault(step.group, []).append(step.amount)
    risen = {group: usd for group, parts in rises.items() if (usd := fsum(parts)) > 0}
    rise = fsum(risen.values())
    ranked = sorted(risen.items(), key=lambda one: (-one[1], one[0]))[:CAUSES]
    return structs.Anomaly(
        hour=spike.hour,
        total_cost=spike.total,
        typical_cost=spike.typical,
        limit_cost=spike.limit,
        mean_cost_before=spike.mean_before,
        against_hour=held,
        causes=tuple(structs.AnomalyCause(namespace=name, rise=usd, share=usd / rise) for name, usd in ranked),
        steps=wired(steps, structs.ChangeStep),
    )


def _only(account: str, marker: Marker) -> CommittedHours:
    return CommittedHours(account, marker.hour, marker.hour + HOUR, {marker.hour: marker})


def _may_be_held(marker: Marker | None) -> bool:
    """Whether an hour may be held against others: all of it known, as its source's own totals say, and told by itself.

    An hour that was cut out of its day is a share of that, and says nothing of the hour.
    """
    if marker is None or marker.told_until - marker.told_from >= DAY:
        return False
    return is_all_known(marker) and marker.reconciled
